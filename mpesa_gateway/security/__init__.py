"""Who may do what, and how secrets are kept: merchants, API keys, scopes, sealing, limits and the audit log."""
