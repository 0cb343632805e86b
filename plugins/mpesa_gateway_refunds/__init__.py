"""Refunds: money that a merchant sends back to a payer, by M-Pesa's reversal, once for each request.

This plugin owns refunds and their reversals. What it may take back is set aside on the payment, in one transaction.
"""
