"""Callbacks as operators see them, with masked phone numbers."""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec

from mpesa_gateway.control_characters import escape_control_characters
from mpesa_gateway.env import Environment
from mpesa_gateway.http.field_rules import checked_with_plugins
from mpesa_gateway.http.fields import example_id
from mpesa_gateway.http.query import Limit
from mpesa_gateway.phone import mask_phones


class Accepted(msgspec.Struct, frozen=True, rename="pascal"):
    """The acknowledgement for Safaricom: the callback is committed."""

    result_code: Literal[0]
    result_desc: Literal["Accepted"]


class CallbackView(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted callback. ``repeats`` counts its duplicates."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "id": example_id("cbk"),
        "kind": "stk",
        "source": "196.201.214.200",
        "merchant_id": example_id("mer"),
        "subject_id": example_id("pay"),
        "result_code": "0",
        "signature": "none",
        "verdict": "applied",
        "repeats": 0,
        "body": '{"Body":{"stkCallback":{"ResultCode":0}}}',
    }

    id: str
    kind: str
    env: Environment | None
    received_at: datetime
    source: str
    merchant_id: str
    subject_id: str
    result_code: str
    signature: str
    verdict: str
    applied_at: datetime | None
    repeats: int
    body: str


class Truncated(msgspec.Struct, frozen=True, kw_only=True):
    """An oversized body: ``length`` in bytes as announced or read, and the SHA-256 of the ``read`` bytes."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "length": 1048576,
        "read": 65536,
        "sha256": "9f86d081" * 8,
    }

    length: int
    read: int
    sha256: str


class RefusedView(msgspec.Struct, frozen=True, kw_only=True):
    """A refused callback, and the reason."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "id": example_id("ref"),
        "kind": "stk",
        "source": "203.0.113.7",
        "merchant_id": None,
        "subject_id": None,
        "reason": "source",
        "body": "",
        "truncated": None,
        "replayed_at": None,
        "callback_id": None,
    }

    id: str
    kind: str
    env: Environment | None
    at: datetime
    source: str
    merchant_id: str | None
    subject_id: str | None
    reason: str
    body: str
    truncated: Truncated | None
    replayed_at: datetime | None
    callback_id: str | None


class ReplayedView(msgspec.Struct, frozen=True, kw_only=True):
    """A replayed callback. ``was_done`` is true if nothing changed."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "id": example_id("ref"),
        "callback_id": example_id("cbk"),
        "verdict": "applied",
    }

    id: str
    callback_id: str
    verdict: str
    was_done: bool


class RefusedQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of refused callbacks; ``unread`` selects unreadable ones from trusted senders."""

    RULES: ClassVar[Mapping[str, Any]] = {
        "kind": checked_with_plugins(lambda gateway: {"enum": sorted(gateway.callback_kinds), "type": None})
    }

    limit: Limit = 50
    cursor: str | None = None
    kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    unread: bool = False


class CallbackQuery(RefusedQuery, frozen=True, kw_only=True):
    """Filters of accepted callbacks; ``unread`` selects unapplied ones."""

    verdict: Literal["waiting", "applied", "unmatched"] | None = None


def callback_view(row: Any) -> CallbackView:
    values = {name: row[name] for name in CallbackView.__struct_fields__ if name not in {"id", "body"}}
    values |= {name: row[name] or "" for name in ("merchant_id", "subject_id")}
    return CallbackView(id=row["callback_id"], body=visible(row["body"]), **values)


def refused_view(row: Any) -> RefusedView:
    values = {name: row[name] for name in RefusedView.__struct_fields__ if name not in {"id", "truncated"}}
    return RefusedView(id=row["refused_id"], truncated=truncated(row), **values)


def truncated(row: Any) -> Truncated | None:
    if row["cut_read"] is None:
        return None
    return Truncated(length=row["cut_length"], read=row["cut_read"], sha256=row["cut_sha256"].hex())


_DIGEST = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]{64}(?![0-9A-Za-z])")

SHOWN = 65_536
"""Characters of a body that are shown."""


def laid_out(body: str) -> str:
    """Return a body as indented JSON with unchanged numbers and masked phones."""
    if len(body) > SHOWN:
        # Cut last: half a digest would not be masked.
        return f"{visible(body)[:SHOWN]} … ({len(body)} characters)"
    with suppress(msgspec.DecodeError):
        body = msgspec.json.format(body, indent=2)
    return visible(body)


def visible(text: str) -> str:
    """Return a text with masked phones. A digest of a phone is as good as the phone."""
    return escape_control_characters(_DIGEST.sub("****", mask_phones(text)))
