"""Proves to the doctor that an address leads to this very gateway, and says how its request was seen: to nobody else.

Whoever asks shows that it knows a secret of this installation, and the answer shows the same for what was asked:
neither a wrong target nor a cache in between can give it.
"""

import hashlib
import hmac
import re

from mpesa_gateway.security.gateway_secrets import CALLBACK_TOKENS, GatewaySecrets

_ASKED = re.compile(r"([0-9a-f]{32})([0-9a-f]{32})\Z", re.ASCII)


def create_nonce(vault: GatewaySecrets, nonce: bytes) -> str:
    """What to send, for 16 random bytes: 64 hexadecimal digits."""
    return nonce.hex() + _mac(vault, "ask", nonce)


def answer(vault: GatewaySecrets, asked: str) -> str | None:
    """The proof for what was asked; None for whoever does not know our secret."""
    found = _ASKED.match(asked)
    if found is None:
        return None
    nonce = bytes.fromhex(found[1])
    return expected(vault, nonce) if hmac.compare_digest(_mac(vault, "ask", nonce), found[2]) else None


def expected(vault: GatewaySecrets, nonce: bytes) -> str:
    """The proof that this gateway gives for these bytes."""
    return _mac(vault, "answer", nonce)


def _mac(vault: GatewaySecrets, part: str, nonce: bytes) -> str:
    # Tokens of callbacks are MACs under the same key, and begin with a kind of callback.
    text = f"doctor\0{part}\0".encode() + nonce
    return hmac.new(vault.secret(CALLBACK_TOKENS), text, hashlib.sha256).hexdigest()[:32]
