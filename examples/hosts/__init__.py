"""One theatre in three frameworks: what a host does with a gateway inside its own application."""
