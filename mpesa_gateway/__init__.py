"""The kernel of a self-hosted M-Pesa payments gateway: HTTP, Postgres, the queue and Daraja's wire."""
