"""The migrations of payments, as numbered SQL files."""
