"""Operators and their sessions, as numbered SQL files."""
