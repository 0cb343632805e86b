"""Traces: what the gateway does for a request, through M-Pesa and jobs to the webhook, told to OpenTelemetry.

It owns no tables, routes or jobs, and knows no other plugin: all of them tell the kernel's ``gateway.tracer``.
"""
