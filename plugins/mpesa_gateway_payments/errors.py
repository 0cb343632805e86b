"""Errors of payments."""

from mpesa_gateway.errors import Conflict


class NotRefundable(Conflict):
    """The payment's state does not allow this refund."""


class NotQueryable(Conflict):
    """Daraja cannot be queried about this payment: it has no CheckoutRequestID, or has ended."""


class ShortcodeRetired(Conflict):
    """The payment's shortcode does not accept payments any more."""
