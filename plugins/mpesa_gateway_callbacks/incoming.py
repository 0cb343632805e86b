"""A callback on its way in: the POST as it came, and the callback that passed every check."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from mpesa_gateway.correlation import RequestContext
from mpesa_gateway.daraja.wire import ContradictoryCallback, InvalidCallback, stored_json
from mpesa_gateway.logs import trace
from mpesa_gateway_callbacks.errors import DuplicateFieldRejected, ShapeRejected
from mpesa_gateway_callbacks.parsers import CallbackParsers, ParsedCallback
from mpesa_gateway_callbacks.tokens import Subject

log = structlog.get_logger(__name__)

KEPT_OF_LARGER = 65_536
"""Bytes that are stored of a body over the size limit."""

_LARGEST = 2**63 - 1
"""The largest length that the column takes."""

_ON_EVENT_LOOP = 65_536
"""Bytes up to which a body is read on the event loop; a larger one is read in a thread."""


@dataclass(frozen=True)
class TruncatedBody:
    """A body over the size limit, of which ``Incoming.body`` is the beginning.

    ``length`` is the announced or read length in bytes; ``sha256`` covers the first ``read`` bytes.
    """

    length: int
    read: int
    sha256: bytes

    @classmethod
    def of(cls, read: bytes, length: int) -> "TruncatedBody":
        """Describe a body of ``length`` bytes of which ``read`` was received. A header can announce any number."""
        return cls(min(length, _LARGEST), len(read), hashlib.sha256(read).digest())


@dataclass(frozen=True)
class CallbackPost:
    """A POST as it came: ``source`` is the client's address, ``signature`` the header, None without one."""

    kind: str
    token: str | None
    body: bytes
    source: str
    signature: str | None = None
    cut: TruncatedBody | None = None
    was_forwarded: bool = False
    """True if ``source`` named another client in X-Forwarded-For, as a proxy does."""


@dataclass(frozen=True, kw_only=True)
class VerifiedCallback:
    """A callback that passed every check. ``subject`` is what its token was made for, None without a token."""

    callback_id: str
    incoming: CallbackPost
    subject: Subject | None
    report: ParsedCallback
    fingerprint: bytes
    is_signed: bool
    is_listed: bool
    origin: RequestContext | None
    """The request that brought it."""
    text: str
    """The body as it is shown and searched."""
    raw: bytes | None
    """The body's bytes where they cannot be restored from ``text``."""

    def columns(self) -> dict[str, Any]:
        """Return the columns of its row that do not depend on its verdict."""
        subject = self.subject
        return {
            "callback_id": self.callback_id,
            "kind": self.incoming.kind,
            "fingerprint": self.fingerprint,
            "source": self.incoming.source,
            "env": subject.env if subject else None,
            "subject_id": subject.subject_id if subject else None,
            "handle": self.report.handle,
            "result_code": self.report.result_code,
            "body": self.text,
            "merchant_id": subject.merchant_id if subject else None,
            "signature": "verified" if self.is_signed else "none",
            "body_bytes": self.raw,
        }

    def event_fields(self, received_at: datetime) -> Mapping[str, Any]:
        """Return the fields that every event of a callback has."""
        return {
            "merchant_id": self.subject.merchant_id if self.subject else "",
            "subject_id": self.subject.subject_id if self.subject else "",
            "callback_id": self.callback_id,
            "env": self.subject.env if self.subject else None,
            "received_at": received_at,
            "is_listed": self.is_listed,
        }


async def parse(
    incoming: CallbackPost, kinds: CallbackParsers, *, has_token: bool
) -> tuple[ParsedCallback, str, bytes | None]:
    """Return the report, the text and, where the text does not restore them, the bytes of a body.

    Raises DuplicateFieldRejected and ShapeRejected.
    """

    def work() -> tuple[ParsedCallback, str, bytes | None]:
        return (_read(incoming, kinds, has_token=has_token), *stored_json(incoming.body))

    return work() if len(incoming.body) <= _ON_EVENT_LOOP else await asyncio.to_thread(work)


async def storable(body: bytes) -> tuple[str, bytes | None]:
    """Return the text of a body and, where the text does not restore them, its bytes."""
    return stored_json(body) if len(body) <= _ON_EVENT_LOOP else await asyncio.to_thread(stored_json, body)


def fingerprint_of(kind: str, subject_id: str, report: ParsedCallback) -> bytes:
    """Return 16 bytes that two equal callbacks share: the same request and the same content.

    Different content about the same request is another callback: late proof of money counts. A callback at its
    request's address differs from one without a token: the first may wait for what the second knows.
    """
    parts = (kind, report.handle, subject_id, *report.content)
    return hashlib.sha256("\x1f".join(parts).encode()).digest()[:16]


def _read(incoming: CallbackPost, kinds: CallbackParsers, *, has_token: bool) -> ParsedCallback:
    try:
        return kinds.read(incoming.kind, incoming.body, has_token=has_token)
    except ContradictoryCallback as problem:
        raise DuplicateFieldRejected(f"not one statement: {problem}") from None
    except InvalidCallback as problem:
        raise ShapeRejected(f"not a callback of this kind: {problem}") from None
    except Exception as problem:  # noqa: BLE001 - a bug in a reader must not lose the body: it is stored as refused
        log.error("callback_not_read", kind=incoming.kind, exception=trace(problem))
        raise ShapeRejected("not a callback that can be read") from None
