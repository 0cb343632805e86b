"""The operators' pages under /ops, behind a login: the frame, the roles, the queue, and what belongs to the kernel.

This plugin owns operators, their passwords and their sessions. Payments, refunds and the rest are shown by the plugins
that own them: each brings its pages, its acts and what it adds to others' pages, and this one knows none of them.
"""
