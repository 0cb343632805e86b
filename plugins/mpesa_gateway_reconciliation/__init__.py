"""The reconciliation plugin: owns runs and statement lines.

Money that fits two payments waits for proof or a person's decision.
"""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "reconcile",
        "mpesa_gateway_reconciliation.commands:reconcile",
        "Read M-Pesa's statement of a merchant's shortcode and match its lines; exits with 1 if the run fails.",
    ),
)
