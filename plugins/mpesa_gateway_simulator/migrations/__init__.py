"""The simulator's memory, as numbered SQL files."""
