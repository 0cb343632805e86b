"""Webhooks: signed public events, delivered with retries and replays."""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "webhooks",
        "mpesa_gateway_webhooks.commands:webhooks",
        "Show events, forward them to your own machine, trigger them, and send them again.",
    ),
)
