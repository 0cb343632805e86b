"""Webhook delay and payment expiry while every call to M-Pesa hangs."""
