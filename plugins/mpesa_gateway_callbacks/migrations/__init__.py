"""The inbox of callbacks, as numbered SQL files."""
