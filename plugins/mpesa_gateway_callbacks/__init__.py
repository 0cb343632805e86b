"""Callbacks from Safaricom: verified, stored with a verdict, and applied once."""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "callbacks", "mpesa_gateway_callbacks.commands:callbacks", "List, show and replay callbacks from Safaricom."
    ),
)
