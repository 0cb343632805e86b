"""SQL migrations of webhooks."""
