"""The numbered SQL files of this plugin."""
