"""Signatures over callbacks: whether the bytes that came are those that M-Pesa, or whoever holds its keys, sent.

The signature stands in one header, base64, over the raw bytes of the body, exactly as they came: nothing is parsed
before it is checked, so no two readings of one body can differ.
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
"""Base64. Sandbox: HMAC-SHA-256 keyed with the merchant's passkey. Live: RSASSA-PKCS1-v1_5 with SHA-256."""


class CallbackSecrets(Protocol):
    """Knows the secrets that sandbox callbacks are signed with."""

    async def passkeys_of(self, merchant_id: str, env: Env) -> Sequence[Secret]:
        """The passkeys of the merchant's shortcodes in an env, retired ones too: each may still call back.

        Any of them proves the merchant's own passkey; which payment it is about is bound by the address's token.
        """
        ...


def read_signature(header: str) -> bytes | None:
    """The bytes of a signature header, None when it is not base64."""
    try:
        return base64.b64decode(header.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None


def sign_with_passkey(passkey: Secret, body: bytes) -> str:
    """The header value for a sandbox callback."""
    return base64.b64encode(_digest(passkey, body)).decode()


def is_signed_with_passkey(passkey: Secret, body: bytes, signature: bytes) -> bool:
    """Whether a sandbox callback carries this merchant's signature; takes the same time for every wrong one."""
    return hmac.compare_digest(_digest(passkey, body), signature)


def is_signed_with_certificate(certificate: Certificate, body: bytes, signature: bytes) -> bool:
    """Whether a live callback carries the signature of the certificate's owner."""
    return certificate.has_signed(body, signature)


def _digest(passkey: Secret, body: bytes) -> bytes:
    return hmac.new(passkey.reveal().encode(), body, hashlib.sha256).digest()
