"""Errors of refunds."""

from mpesa_gateway.errors import Conflict


class RefundEnded(Conflict):
    """The refund has ended, or does not need review."""
