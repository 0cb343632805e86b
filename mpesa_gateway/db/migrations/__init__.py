"""The kernel's tables, as numbered SQL files."""
