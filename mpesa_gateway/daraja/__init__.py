"""The client for Safaricom's Daraja API; Daraja's terms are not used outside this package."""
