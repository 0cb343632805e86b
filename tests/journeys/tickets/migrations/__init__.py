"""Migrations of the tickets product."""
