"""References of the gateway's own, for payments without one of the merchant's."""

import base64
import hashlib
import re

OWN_REFERENCE = re.compile("[A-Z2-7]{12}")
"""The form of our own references; a merchant's may have it too."""


def own_reference(payment_id: str) -> str:
    """Return an AccountReference of 12 characters, practically unique.

    Pull statements return it as ``billreference``; Daraja's push takes no id of ours.
    """
    digest = hashlib.sha256(payment_id.encode()).digest()
    return base64.b32encode(digest)[:12].decode()
