"""A self-hosted M-Pesa payments gateway."""
