"""The payments plugin: owns payments and their status.

Callbacks, queries and expiry change a payment through one transition, which only the first of them passes.
"""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "payments",
        "mpesa_gateway_payments.commands:payments",
        "List payments, show one, and query M-Pesa about one that has not ended.",
    ),
)
