"""What only reconciliation can refuse."""

from mpesa_gateway.errors import Conflict


class RunInProgress(Conflict):
    """Another run of this merchant has not finished."""

    retryable = True


class RunLost(Exception):
    """A run took so long that it was given up; another may be at work."""


class LineSettled(Conflict):
    """The statement line belongs to a payment already."""
