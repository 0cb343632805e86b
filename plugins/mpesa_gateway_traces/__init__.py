"""Exports the gateway's OpenTelemetry traces: requests, calls to M-Pesa, jobs and webhooks.

It owns no tables, routes or jobs, and knows no other plugin: spans are started through the kernel's ``tracing``.
"""
