"""The operators' pages under /ops: how the gateway is, what the queue does, which jobs failed; behind a login.

This plugin owns operators, their passwords and their sessions. What it shows belongs to the kernel: the health of its
parts and its queue.
"""
