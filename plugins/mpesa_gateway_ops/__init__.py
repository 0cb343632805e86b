"""The operators' pages under /ops: login, sessions, roles, layout, queue and the kernel's own pages.

Other plugins register their pages, actions and panels; this plugin imports none of them.
"""

from mpesa_gateway.command_entry import CommandEntry

COMMANDS = (
    CommandEntry(
        "people",
        "mpesa_gateway_ops.commands:people",
        "Invite, list and remove the persons who use the pages under /ops.",
    ),
)
