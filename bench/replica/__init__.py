"""What a replica for reads takes off the primary: lists, exports, and creates beside both, with it and without."""
