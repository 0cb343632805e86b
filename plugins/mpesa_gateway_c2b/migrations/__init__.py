"""The migrations of c2b, as numbered SQL files."""
