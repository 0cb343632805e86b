"""Refunds of payments by M-Pesa's reversals, one reversal per refund.

The refunded amount is reserved on the payment, in the same transaction.
"""
