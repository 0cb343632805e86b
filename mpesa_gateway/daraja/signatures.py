"""Signatures of callbacks.

One base64 header signs the raw body bytes. Verification precedes parsing, so that both use the same bytes.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Protocol

from mpesa_gateway.daraja.certificates import Certificate
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Env

HEADER = "X-Mpesa-Signature"
"""Sandbox: HMAC-SHA-256 with the merchant's passkey. Live: RSASSA-PKCS1-v1_5 with SHA-256."""


class CallbackSecrets(Protocol):
    """Source of the passkeys that sign sandbox callbacks."""

    async def passkeys_of(self, merchant_id: str, env: Env) -> Sequence[Secret]:
        """Return the passkeys of the merchant's shortcodes in an env, including retired ones.

        Any of them proves the merchant; the token in the address identifies the payment.
        """
        ...


def read_signature(header: str) -> bytes | None:
    """Return the decoded header, or None if it is not base64."""
    try:
        return base64.b64decode(header.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None


def sign_with_passkey(passkey: Secret, body: bytes) -> str:
    return base64.b64encode(_digest(passkey, body)).decode()


def is_signed_with_passkey(passkey: Secret, body: bytes, signature: bytes) -> bool:
    """Verify a sandbox signature in constant time."""
    return hmac.compare_digest(_digest(passkey, body), signature)


def is_signed_with_certificate(certificate: Certificate, body: bytes, signature: bytes) -> bool:
    return certificate.has_signed(body, signature)


def _digest(passkey: Secret, body: bytes) -> bytes:
    return hmac.new(passkey.reveal().encode(), body, hashlib.sha256).digest()
