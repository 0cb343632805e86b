"""Posted and verified callbacks."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from mpesa_gateway.correlation import RequestContext
from mpesa_gateway.daraja.wire import ContradictoryCallback, InvalidCallback, to_stored_text
from mpesa_gateway.db.forms import Body
from mpesa_gateway.logs import trace
from mpesa_gateway_callbacks.callback_kinds import CallbackKinds, ParsedCallback
from mpesa_gateway_callbacks.errors import DuplicateFieldRejected, ShapeRejected
from mpesa_gateway_callbacks.tokens import Subject

log = structlog.get_logger(__name__)

KEPT_OF_LARGER = 65_536
"""Bytes of an oversized body that are stored."""

_LARGEST = 2**63 - 1
"""The largest length that fits the column."""

_ON_EVENT_LOOP = 65_536
"""Bytes above which a body is parsed in a thread."""


@dataclass(frozen=True)
class TruncatedBody:
    """An oversized body. ``length`` in bytes as announced or read; ``sha256`` covers the first ``read`` bytes."""

    length: int
    read: int
    sha256: bytes

    @classmethod
    def of(cls, read: bytes, length: int) -> "TruncatedBody":
        # A header can announce any length.
        return cls(min(length, _LARGEST), len(read), hashlib.sha256(read).digest())


@dataclass(frozen=True)
class CallbackPost:
    """A POST as received; ``source`` is the client's address."""

    kind: str
    token: str | None
    body: bytes
    source: str
    signature: str | None = None
    cut: TruncatedBody | None = None
    was_forwarded: bool = False
    """True if ``source`` named another client in X-Forwarded-For."""


@dataclass(frozen=True, kw_only=True)
class VerifiedCallback:
    """A callback that passed every check; ``subject`` comes from its token."""

    callback_id: str
    incoming: CallbackPost
    subject: Subject | None
    parsed: ParsedCallback
    fingerprint: bytes
    is_signed: bool
    is_listed: bool
    origin: RequestContext | None
    text: str
    raw: bytes | None
    """The body's bytes if ``text`` cannot restore them."""

    def columns(self) -> dict[str, Any]:
        """Return the row's columns that do not depend on the verdict."""
        subject = self.subject
        return {
            "callback_id": self.callback_id,
            "kind": self.incoming.kind,
            "fingerprint": self.fingerprint,
            "source": self.incoming.source,
            "env": subject.env if subject else None,
            "subject_id": subject.subject_id if subject else None,
            "handle": self.parsed.handle,
            "result_code": self.parsed.result_code,
            "merchant_id": (subject.merchant_id or None) if subject else None,
            "signature": "verified" if self.is_signed else "none",
            "body_bytes": self.raw,
        }

    def body(self, kinds: CallbackKinds) -> Body:
        kind = kinds.get(self.incoming.kind)
        return Body(self.text, frozenset() if kind is None else kind.constants, (self.parsed.handle,))

    def event_fields(self, received_at: datetime) -> Mapping[str, Any]:
        return {
            "merchant_id": self.subject.merchant_id if self.subject else "",
            "subject_id": self.subject.subject_id if self.subject else "",
            "callback_id": self.callback_id,
            "env": self.subject.env if self.subject else None,
            "received_at": received_at,
            "is_listed": self.is_listed,
        }


async def parse(
    incoming: CallbackPost, kinds: CallbackKinds, *, has_token: bool
) -> tuple[ParsedCallback, str, bytes | None]:
    """Return the callback, its text, and its bytes if the text cannot restore them.

    Raises DuplicateFieldRejected and ShapeRejected.
    """

    def work() -> tuple[ParsedCallback, str, bytes | None]:
        return (_read(incoming, kinds, has_token=has_token), *to_stored_text(incoming.body))

    return work() if len(incoming.body) <= _ON_EVENT_LOOP else await asyncio.to_thread(work)


async def storable(body: bytes) -> tuple[str, bytes | None]:
    return to_stored_text(body) if len(body) <= _ON_EVENT_LOOP else await asyncio.to_thread(to_stored_text, body)


def fingerprint_of(kind: str, subject_id: str, parsed: ParsedCallback) -> bytes:
    """Return 16 bytes that duplicates share.

    Different content about a request is a new callback, since late proof of payment counts.
    """
    parts = (kind, parsed.handle, subject_id, *parsed.content)
    return hashlib.sha256("\x1f".join(parts).encode()).digest()[:16]


def _read(incoming: CallbackPost, kinds: CallbackKinds, *, has_token: bool) -> ParsedCallback:
    try:
        return kinds.read(incoming.kind, incoming.body, has_token=has_token)
    except ContradictoryCallback as problem:
        raise DuplicateFieldRejected(f"not one statement: {problem}") from None
    except InvalidCallback as problem:
        raise ShapeRejected(f"not a callback of this kind: {problem}") from None
    except Exception as problem:  # noqa: BLE001 - a parser's bug must not lose the body: it is stored as refused
        log.error("callback_not_read", kind=incoming.kind, exception=trace(problem))
        raise ShapeRejected("not a callback that can be read") from None
