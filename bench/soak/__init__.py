"""Finds out what this machine can carry, lets it carry 70 % for long while things break, and then far too much."""
