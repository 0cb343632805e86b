"""The c2b plugin: money that a payer sends without a request, account numbers, and validation."""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "c2b",
        "mpesa_gateway_c2b.commands:c2b",
        "Register shortcodes for payments that nobody asked for, and show their registration.",
    ),
    CommandEntry(
        "accounts", "mpesa_gateway_c2b.commands:accounts", "Show account numbers and the money that they have received."
    ),
)
