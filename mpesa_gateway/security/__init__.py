"""Merchants, API keys, scopes, sealing, rate limits and the audit log."""
