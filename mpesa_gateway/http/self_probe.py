"""Challenge and response that prove to the doctor that a URL leads to this gateway."""

import hashlib
import hmac
import re

from mpesa_gateway.security.gateway_secrets import CALLBACK_TOKENS, GatewaySecrets

_CHALLENGE = re.compile(r"([0-9a-f]{32})([0-9a-f]{32})\Z", re.ASCII)


def create_challenge(vault: GatewaySecrets, nonce: bytes) -> str:
    """Return the challenge for 16 random bytes: 64 hexadecimal digits."""
    return nonce.hex() + _mac(vault, "ask", nonce)


def answer_challenge(vault: GatewaySecrets, challenge: str) -> str | None:
    """Return the proof, or None for an invalid challenge."""
    found = _CHALLENGE.match(challenge)
    if found is None:
        return None
    nonce = bytes.fromhex(found[1])
    return expected_proof(vault, nonce) if hmac.compare_digest(_mac(vault, "ask", nonce), found[2]) else None


def expected_proof(vault: GatewaySecrets, nonce: bytes) -> str:
    return _mac(vault, "answer", nonce)


def _mac(vault: GatewaySecrets, part: str, nonce: bytes) -> str:
    # Callback tokens use the same key; their text starts with a callback kind.
    text = f"doctor\0{part}\0".encode() + nonce
    return hmac.new(vault.secret(CALLBACK_TOKENS), text, hashlib.sha256).hexdigest()[:32]
