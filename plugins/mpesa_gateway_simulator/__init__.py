"""A simulated Daraja for the sandbox, with simulated phones and faults on request.

It normally runs as a process of its own and shares only HTTP with the gateway, so that tests use real sockets.
"""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "demo",
        "mpesa_gateway_simulator.commands:demo",
        "Play 21 steps against the running `up`; without one, start it for as long as the demo takes.",
    ),
)
