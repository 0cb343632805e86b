"""Webhooks: every public event reaches the merchant's endpoint, signed, tried again, and replayed on demand.

This plugin owns endpoints, deliveries and attempts. It hears of events by their base class and needs no edit for a new
one.
"""
