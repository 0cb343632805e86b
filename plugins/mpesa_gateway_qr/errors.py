"""Errors of QR codes."""

from mpesa_gateway.errors import Conflict


class PaymentEnded(Conflict):
    """The payment is not pending, so a QR code would collect its amount again."""
