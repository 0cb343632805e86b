"""Postgres: connection pool, transactions, outbox, idempotency and migrations."""
