"""Prometheus metrics of the kernel and all plugins."""

COMMANDS = ()
