"""The transactions plugin: one row for each receipt, with the reports that have shown it."""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "transactions",
        "mpesa_gateway_transactions.commands:transactions",
        "List the money that M-Pesa moved, show one transaction, and allocate incoming money.",
    ),
)
