"""The c2b plugin: money that a payer sends without a request, account numbers, and validation."""
