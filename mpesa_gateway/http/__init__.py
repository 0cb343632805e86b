"""The HTTP server, and calls to merchants."""
