"""Refunds of payments by M-Pesa's reversals, one reversal per refund.

The refunded amount is reserved on the payment, in the same transaction.
"""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "refunds",
        "mpesa_gateway_refunds.commands:refunds",
        "List refunds, show one, and query M-Pesa about one that has not ended.",
    ),
)
