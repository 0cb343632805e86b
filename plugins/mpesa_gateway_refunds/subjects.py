"""What the callbacks about a refund are addressed to: its reversal, or the payment that it sends back."""

from mpesa_gateway.ids import renamed
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import MpesaCredentials

ABOUT_REVERSAL, ABOUT_PAYMENT = "rfd", "rfp"
"""The prefixes of a query's subject: the refund's reversal, or its payment."""


def callback_subjects(refund_id: str) -> list[str]:
    """Return the subjects of a refund's callbacks: the refund, and the queries about its payment."""
    return [refund_id, renamed(refund_id, ABOUT_PAYMENT)]


def callback_url(callbacks: Callbacks, kind: str, credentials: MpesaCredentials, subject_id: str) -> str:
    """Return the address that Daraja calls back about a subject."""
    return callbacks.url_for(kind, env=credentials.env, merchant_id=credentials.merchant_id, subject_id=subject_id)
