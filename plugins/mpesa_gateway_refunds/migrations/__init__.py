"""Refunds, as numbered SQL files."""
