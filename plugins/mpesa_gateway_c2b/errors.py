"""Errors of c2b."""

from mpesa_gateway.errors import Conflict
from mpesa_gateway_callbacks.api import DifferentSubject


class AddressRefused(Conflict):
    """Safaricom would refuse the gateway's public address."""


class RegistrationInProgress(Conflict):
    """Another registration of this shortcode has not ended."""

    retryable = True


class OtherReceiver(DifferentSubject):
    """The confirmation is of money for another shortcode than its address."""

    reason = "receiver"
