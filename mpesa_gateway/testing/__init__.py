"""Test tools for this project and for plugins: real servers and real processes."""
