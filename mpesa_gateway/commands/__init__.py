"""Commands of ``mpesa_gateway.cli``: one file for each group."""
