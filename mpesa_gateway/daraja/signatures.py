"""Signatures of callbacks, over the raw body bytes and verified before parsing."""

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
"""Base64. Sandbox: HMAC-SHA-256 with the merchant's passkey. Live: RSASSA-PKCS1-v1_5 with SHA-256."""


class CallbackSecrets(Protocol):
    """Source of passkeys."""

    async def passkeys_of(self, merchant_id: str, env: Env) -> Sequence[Secret]:
        """Return the passkeys of the merchant's shortcodes in an env, including retired ones."""
        ...


def read_signature(header: str) -> bytes | None:
    try:
        return base64.b64decode(header.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None


def sign_with_passkey(passkey: Secret, body: bytes) -> str:
    return base64.b64encode(_digest(passkey, body)).decode()


def is_signed_with_passkey(passkey: Secret, body: bytes, signature: bytes) -> bool:
    return hmac.compare_digest(_digest(passkey, body), signature)


def is_signed_with_certificate(certificate: Certificate, body: bytes, signature: bytes) -> bool:
    return certificate.has_signed(body, signature)


def _digest(passkey: Secret, body: bytes) -> bytes:
    return hmac.new(passkey.reveal().encode(), body, hashlib.sha256).digest()
