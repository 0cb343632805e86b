"""The storage of a completed payment in Postgres."""
