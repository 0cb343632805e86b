"""Credentials: each merchant's keys to M-Pesa, sealed at rest, shown by their last four characters only."""
