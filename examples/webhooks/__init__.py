"""Verification of webhook signatures, in five languages."""
