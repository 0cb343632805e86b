"""How long a webhook takes, and whether payments expire in time, while every question to M-Pesa hangs."""
