"""Stored credentials, as numbered SQL files."""
