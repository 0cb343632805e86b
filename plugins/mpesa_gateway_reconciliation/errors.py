"""Errors of reconciliation."""

from mpesa_gateway.errors import Conflict


class RunInProgress(Conflict):
    """Another run of this merchant has not finished."""

    retryable = True


class RunLost(Exception):
    """The run's lease has expired; another run may have started."""


class LineSettled(Conflict):
    """The statement line already belongs to a payment."""
