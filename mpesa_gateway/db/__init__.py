"""Postgres, the only truth: one pool, transactions, the outbox, idempotency and migrations."""
