"""Safaricom's callbacks: who may post one, what it says, each kept with its verdict, none applied twice.

This plugin owns the addresses that we hand to Daraja and the inbox. It says what was reported and never learns what a
payment is.
"""
