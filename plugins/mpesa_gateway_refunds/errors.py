"""What only refunds can refuse."""

from mpesa_gateway.errors import Conflict


class RefundEnded(Conflict):
    """The refund has ended, or is not one that a person has to decide."""
