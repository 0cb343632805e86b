"""SQL migrations of the inbox."""
