"""Callbacks as operators see them: never with a whole phone number."""

import re
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal

import msgspec

from mpesa_gateway.env import Environment
from mpesa_gateway.http.query import Limit
from mpesa_gateway.phone import mask_phones


class Accepted(msgspec.Struct, frozen=True, rename="pascal"):
    """The answer that Safaricom waits for: the callback is committed, or was before."""

    result_code: Literal[0]
    result_desc: Literal["Accepted"]


class CallbackView(msgspec.Struct, frozen=True, kw_only=True):
    """A callback that was taken. ``repeats`` counts how often it came again; ``verdict`` says what became of it."""

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


class RefusedView(msgspec.Struct, frozen=True, kw_only=True):
    """A callback that was not taken, and why."""

    id: str
    kind: str
    env: Environment | None
    at: datetime
    source: str
    merchant_id: str | None
    subject_id: str | None
    reason: str
    body: str


class RefusedQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the list of refused callbacks takes."""

    limit: Limit = 50
    cursor: str | None = None


class CallbackQuery(RefusedQuery, frozen=True, kw_only=True):
    """The filters of the list of callbacks."""

    verdict: Literal["waiting", "applied", "unmatched"] | None = None


def callback_view(row: Any) -> CallbackView:
    """A row as it is shown."""
    values = {name: row[name] for name in CallbackView.__struct_fields__ if name not in {"id", "body"}}
    return CallbackView(id=row["callback_id"], body=visible(row["body"]), **values)


def refused_view(row: Any) -> RefusedView:
    """A row as it is shown."""
    values = {name: row[name] for name in RefusedView.__struct_fields__ if name != "id"}
    return RefusedView(id=row["refused_id"], **values)


def laid_out(body: str) -> str:
    """What a callback said, for people: JSON on several lines with its numbers as they came, and phones masked."""
    # What is no JSON, or only the beginning of it, stays as it came.
    with suppress(msgspec.DecodeError):
        body = msgspec.json.format(body, indent=2)
    return visible(body)


_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]")
"""Characters that a terminal or a browser obeys instead of showing them, but line breaks and tabs."""


def visible(text: str) -> str:
    """A body for people: phones masked, and each control character as its escape."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", mask_phones(text))
