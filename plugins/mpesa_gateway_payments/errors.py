"""What only payments can refuse."""

from mpesa_gateway.errors import Conflict


class NotRefundable(Conflict):
    """The payment's state does not allow this refund."""


class NotAsked(Conflict):
    """Daraja cannot be asked about this payment: it has no CheckoutRequestID, or has ended."""


class ShortcodeRetired(Conflict):
    """The shortcode that the payment is bound to takes no payments any more."""
