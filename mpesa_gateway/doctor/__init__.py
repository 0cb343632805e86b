"""Looks whether everything is as going live needs it, and whether the books agree. It changes nothing."""
