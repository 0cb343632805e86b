"""The client for Safaricom's Daraja API, whose terms stay in this package."""
