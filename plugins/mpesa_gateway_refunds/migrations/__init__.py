"""SQL migrations of refunds."""
