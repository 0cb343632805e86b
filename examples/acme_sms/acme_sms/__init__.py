"""Sends a text message to a buyer for each completed payment, and records its state."""
