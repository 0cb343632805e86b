"""Credentials of the merchants' shortcodes, stored sealed and shown masked."""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "receivers", "mpesa_gateway_credentials.commands:receivers", "Show and change who owns a live paybill or till."
    ),
    CommandEntry(
        "shortcodes",
        "mpesa_gateway_credentials.shortcode_commands:shortcodes",
        "Show a merchant's shortcodes, choose the default one and retire one.",
    ),
)
