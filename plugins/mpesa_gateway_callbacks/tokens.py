"""The unguessable part of a callback address: it says what the callback is for, and only we can have written it."""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from mpesa_gateway.security.scopes import Env

_TOKEN = re.compile(r"([sl])-(mer_[0-9a-z]{26})-([a-z]{3}_[0-9a-z]{26})\.([A-Za-z0-9_-]{22})\Z", re.ASCII)
_ENVS: dict[str, Env] = {"s": "sandbox", "l": "live"}


@dataclass(frozen=True)
class Subject:
    """What a token was made for."""

    env: Env
    merchant_id: str
    subject_id: str


def make_token(key: bytes, kind: str, subject: Subject) -> str:
    """The token for a kind of callback about one subject: its ids, and 128 bits of HMAC-SHA-256 over all of them."""
    return f"{subject.env[0]}-{subject.merchant_id}-{subject.subject_id}.{_mac(key, kind, subject)}"


def read_token(key: bytes, kind: str, token: str) -> Subject | None:
    """What a token was made for, None when we did not make it for this kind."""
    found = _TOKEN.match(token)
    if found is None:
        return None
    subject = Subject(_ENVS[found[1]], found[2], found[3])
    return subject if hmac.compare_digest(_mac(key, kind, subject), found[4]) else None


def _mac(key: bytes, kind: str, subject: Subject) -> str:
    text = f"{kind}|{subject.env}|{subject.merchant_id}|{subject.subject_id}"
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")
