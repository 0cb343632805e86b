"""Payments: a merchant wants an amount from a payer, one STK push is sent for it, and it ends once, one way.

This plugin owns the payment and its status. Everything that can end a payment (callback, query, expiry) goes through
one transition that lets only the first one through.
"""
