"""Callbacks from Safaricom: verified, stored with a verdict, and applied once.

Owns the callback addresses that Daraja gets, and the inbox. Knows nothing about payments.
"""
