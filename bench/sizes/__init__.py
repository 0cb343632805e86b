"""What a completed payment costs in Postgres."""
