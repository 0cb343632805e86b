"""Metrics on prometheus_client: one registry per gateway, definitions, and collectors."""
