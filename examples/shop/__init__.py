"""A tiny shop whose buyers pay by M-Pesa."""
