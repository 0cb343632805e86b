"""Prometheus' text format for the metrics of the kernel and of all plugins. It owns no tables."""
