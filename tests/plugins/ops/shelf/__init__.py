"""Templates of a host's plugin."""
