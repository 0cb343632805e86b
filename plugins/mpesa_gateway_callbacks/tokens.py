"""Authenticated tokens of callback addresses."""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import lru_cache

from mpesa_gateway.security.scopes import Env

_TOKEN = re.compile(r"([sl])-(mer_[0-9a-z]{26})-([a-z]{3}_[0-9a-z]{26})\.([0-9a-f]{32}|[A-Za-z0-9_-]{22})\Z", re.ASCII)
_ENVS: dict[str, Env] = {"s": "sandbox", "l": "live"}

_TO_TOKEN = str.maketrans("xm", "io")
_FROM_TOKEN = str.maketrans("io", "xm")
"""Identifiers contain no i, l, o and u. Without x and m too, they cannot contain the words that M-Pesa filters in
addresses (exe, cmd, sql, query)."""


@dataclass(frozen=True)
class Subject:
    """The request that a token was made for. ``merchant_id`` is empty for a standing address."""

    env: Env
    merchant_id: str
    subject_id: str


def make_token(key: bytes, kind: str, subject: Subject) -> str:
    """Return the ids, and 128 bits of HMAC-SHA-256 over them and the kind."""
    ids = "-".join(_exchange(one, _TO_TOKEN) for one in (subject.merchant_id, subject.subject_id))
    return f"{subject.env[0]}-{ids}.{_mac(key, kind, subject).hex()}"


def read_token(key: bytes, kind: str, token: str) -> Subject | None:
    return _read(key, kind, token) if _TOKEN.match(token) else None


@lru_cache(maxsize=1024)
def _read(key: bytes, kind: str, token: str) -> Subject | None:
    """Cached, as each callback's token is read several times."""
    found = _TOKEN.match(token)
    if found is None:
        return None
    subject = Subject(_ENVS[found[1]], _exchange(found[2], _FROM_TOKEN), _exchange(found[3], _FROM_TOKEN))
    mac = _mac(key, kind, subject)
    # Pushes with the previous release's tokens of 22 characters may still be pending.
    known = mac.hex() if len(found[4]) == 32 else base64.urlsafe_b64encode(mac).decode().rstrip("=")
    return subject if hmac.compare_digest(known, found[4]) else None


def _exchange(identifier: str, letters: dict[int, int]) -> str:
    prefix, mark, rest = identifier.partition("_")
    return prefix + mark + rest.translate(letters)


def _mac(key: bytes, kind: str, subject: Subject) -> bytes:
    text = f"{kind}|{subject.env}|{subject.merchant_id}|{subject.subject_id}"
    return hmac.new(key, text.encode(), hashlib.sha256).digest()[:16]
