"""What the host types: one command group or command a file, put together in ``mpesa_gateway.cli``."""
