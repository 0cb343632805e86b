"""Migrations of the table of texts."""
