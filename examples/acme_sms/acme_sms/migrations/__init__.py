"""The table of texts, step by step."""
