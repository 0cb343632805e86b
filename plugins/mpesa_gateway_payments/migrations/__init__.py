"""Payments and their timelines, as numbered SQL files."""
