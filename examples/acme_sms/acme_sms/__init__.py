"""Owns the text message that a buyer gets once their payment has arrived: what is owed, what was sent, what was not."""
