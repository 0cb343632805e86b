"""Breaks everything around a gateway at work, and afterwards compares its books with what really happened."""
