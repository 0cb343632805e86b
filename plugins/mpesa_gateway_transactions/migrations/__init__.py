"""The migrations of transactions, as numbered SQL files."""
