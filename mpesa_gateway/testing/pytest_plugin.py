"""The fixtures that this project and third-party plugins test with: real Postgres, real Valkey, real processes."""
