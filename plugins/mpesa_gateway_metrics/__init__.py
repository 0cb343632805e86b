"""Metrics: what every plugin counts, times and reads, in Prometheus' text format, for those who are let in.

It owns no tables, and knows no other plugin: each brings its own ``counts`` and ``readings``.
"""
