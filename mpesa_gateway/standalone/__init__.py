"""Everything on one machine: Postgres and Valkey of our own, and the processes of a small shop, started together."""
