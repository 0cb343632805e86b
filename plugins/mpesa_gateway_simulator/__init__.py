"""A simulated Daraja for the sandbox, with simulated phones and faults on request.

It normally runs as a process of its own and shares only HTTP with the gateway, so that tests use real sockets.
"""
