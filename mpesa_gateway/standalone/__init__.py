"""Runs everything on one machine: embedded Postgres and Valkey, and the gateway's processes."""
