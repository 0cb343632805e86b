"""The unguessable part of a callback address: it says what the callback is for, and only we can have written it."""

import base64
import hashlib
import hmac
import re

from mpesa_gateway.security.scopes import Env

_TOKEN = re.compile(r"([sl])-([a-z]{3}_[0-9a-z]{26})\.([A-Za-z0-9_-]{22})\Z", re.ASCII)
_ENVS: dict[str, Env] = {"s": "sandbox", "l": "live"}


def make_token(key: bytes, kind: str, env: Env, subject_id: str) -> str:
    """The token for a kind of callback about one subject: its id, and 128 bits of HMAC-SHA-256 over all three."""
    return f"{env[0]}-{subject_id}.{_mac(key, kind, env, subject_id)}"


def read_token(key: bytes, kind: str, token: str) -> tuple[Env, str] | None:
    """The env and subject that a token was made for, None when we did not make it for this kind."""
    found = _TOKEN.match(token)
    if found is None:
        return None
    env, subject_id = _ENVS[found[1]], found[2]
    return (env, subject_id) if hmac.compare_digest(_mac(key, kind, env, subject_id), found[3]) else None


def _mac(key: bytes, kind: str, env: str, subject_id: str) -> str:
    digest = hmac.new(key, f"{kind}|{env}|{subject_id}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")
