"""Metrics: one registry per gateway, definitions and collectors."""
