"""Webhooks: signed public events, delivered to the merchant's endpoint with retries and replays.

Owns endpoints, deliveries and attempts. Subscribes to the events' base class, so a new event needs no change here.
"""
