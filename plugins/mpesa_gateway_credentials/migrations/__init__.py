"""SQL migrations of credentials."""
