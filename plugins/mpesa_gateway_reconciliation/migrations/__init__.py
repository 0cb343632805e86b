"""The migrations of reconciliation, as numbered SQL files."""
