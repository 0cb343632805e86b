"""The unguessable part of a callback address: it says what the callback is for, and only we can have written it."""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from mpesa_gateway.security.scopes import Env

_TOKEN = re.compile(r"([sl])-(mer_[0-9a-z]{26})-([a-z]{3}_[0-9a-z]{26})\.([0-9a-f]{32}|[A-Za-z0-9_-]{22})\Z", re.ASCII)
_ENVS: dict[str, Env] = {"s": "sandbox", "l": "live"}

_TO_TOKEN = str.maketrans("xm", "io")
_FROM_TOKEN = str.maketrans("io", "xm")
"""Identifiers are random letters without i, l, o and u. Without x and m too, none of the words that M-Pesa filters in
addresses (exe, cmd, sql, query) can come about in them; in hexadecimal none can anyway."""


@dataclass(frozen=True)
class Subject:
    """What a token was made for."""

    env: Env
    merchant_id: str
    subject_id: str


def make_token(key: bytes, kind: str, subject: Subject) -> str:
    """The token for a kind of callback about one subject: its ids, and 128 bits of HMAC-SHA-256 over all of them."""
    ids = "-".join(_exchange(one, _TO_TOKEN) for one in (subject.merchant_id, subject.subject_id))
    return f"{subject.env[0]}-{ids}.{_mac(key, kind, subject).hex()}"


def read_token(key: bytes, kind: str, token: str) -> Subject | None:
    """What a token was made for, None when we did not make it for this kind."""
    found = _TOKEN.match(token)
    if found is None:
        return None
    subject = Subject(_ENVS[found[1]], _exchange(found[2], _FROM_TOKEN), _exchange(found[3], _FROM_TOKEN))
    mac = _mac(key, kind, subject)
    # The form with 22 characters is that of the release before: pushes made by it are still under way.
    known = mac.hex() if len(found[4]) == 32 else base64.urlsafe_b64encode(mac).decode().rstrip("=")
    return subject if hmac.compare_digest(known, found[4]) else None


def _exchange(identifier: str, letters: dict[int, int]) -> str:
    prefix, mark, rest = identifier.partition("_")
    return prefix + mark + rest.translate(letters)


def _mac(key: bytes, kind: str, subject: Subject) -> bytes:
    text = f"{kind}|{subject.env}|{subject.merchant_id}|{subject.subject_id}"
    return hmac.new(key, text.encode(), hashlib.sha256).digest()[:16]
