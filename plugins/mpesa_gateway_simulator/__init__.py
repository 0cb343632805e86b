"""Our own Daraja, for the sandbox: it takes pushes, asks simulated phones, and calls back as well or badly as told.

It stands alone: normally a process of its own that shares nothing with the gateway but HTTP (and a Postgres for its
memory), so that what is tried here is tried through real sockets.
"""
