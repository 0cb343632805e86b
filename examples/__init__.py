"""The gateway in other people's systems."""
