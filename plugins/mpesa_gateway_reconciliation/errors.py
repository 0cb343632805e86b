"""What only reconciliation can refuse."""

from mpesa_gateway.errors import Conflict


class RunInProgress(Conflict):
    """Another run of this merchant has not finished."""

    retryable = True


class LineSettled(Conflict):
    """The statement line belongs to a payment already."""
