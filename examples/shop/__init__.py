"""A small shop with M-Pesa payments."""
