"""Endpoints, deliveries and attempts, as numbered SQL files."""
