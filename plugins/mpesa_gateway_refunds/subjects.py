"""Subjects of a refund's callbacks: its reversal and its payment."""

from mpesa_gateway.ids import renamed
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import MpesaCredentials

ABOUT_REVERSAL, ABOUT_PAYMENT = "rfd", "rfp"
"""Prefixes of a query's subject."""


def callback_subjects(refund_id: str) -> list[str]:
    """Return a refund's subjects: the reversal, and queries about its payment."""
    return [refund_id, renamed(refund_id, ABOUT_PAYMENT)]


def callback_url(callbacks: Callbacks, kind: str, credentials: MpesaCredentials, subject_id: str) -> str:
    return callbacks.url_for(kind, env=credentials.env, merchant_id=credentials.merchant_id, subject_id=subject_id)
