"""Metrics on prometheus_client: a registry per gateway, the kernel's definitions, and collectors that run per scrape."""
