"""Webhooks: signed public events, delivered with retries and replays."""
