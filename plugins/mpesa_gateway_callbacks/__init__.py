"""Callbacks from Safaricom: verified, stored with a verdict, and applied once."""
