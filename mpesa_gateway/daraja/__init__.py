"""Safaricom's Daraja API: its wire, its codes, its token. Provider words stop at this folder's door."""
