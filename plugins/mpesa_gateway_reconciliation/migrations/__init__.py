"""Runs and statement lines, as numbered SQL files."""
