"""The interface of callbacks for other plugins."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

from mpesa_gateway.daraja.callbacks import CallbackContent, CallbackKind
from mpesa_gateway.daraja.wire import InvalidCallback, ResultCallback, read_amount, read_result
from mpesa_gateway.ops_contract import TimelineEntry
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_callbacks.errors import CallbackRejected
from mpesa_gateway_callbacks.events import QueryResulted
from mpesa_gateway_callbacks.openapi_bodies import RESULT, RESULT_CODE, RESULT_EXAMPLE, described

__all__ = ["RESULT_CODE", "Callbacks", "DifferentSubject", "described", "result_kinds"]

_UNANSWERED = "timed_out"
"""The stored result code of a timeout, which has none."""


class DifferentSubject(CallbackRejected):
    """The content is about another request than the token."""

    status = 403
    reason = "subject"


class Callbacks(Protocol):
    """Callback addresses, and the callbacks that arrive there."""

    def url_for(self, kind: str, *, env: Env, merchant_id: str, subject_id: str) -> str:
        """Return the callback address for one request; its token is valid for ``subject_id`` only.

        Raises LookupError if no enabled plugin declares the kind.
        """
        ...

    async def mark_applied(self, callback_id: str) -> None:
        """Runs in the subscriber's transaction."""
        ...

    @property
    def is_batch(self) -> bool:
        """True while a batch is published; if it fails, each callback is published alone."""
        ...

    async def find_waiting(self, handles: Sequence[str]) -> set[str]:
        """Return the Daraja ids that unapplied callbacks have."""
        ...

    async def apply_waiting(self, handle: str) -> int:
        """Publish the callbacks that wait for a Daraja id, in the open transaction; returns their number."""
        ...

    async def last_received(self, kind: str, subject_id: str) -> datetime | None:
        """Return the time of the last accepted callback of a kind about a subject."""
        ...

    async def timeline_of(self, subject_ids: Collection[str], handles: Collection[str]) -> Sequence[TimelineEntry]: ...


def result_kinds(
    name: str,
    path: str,
    event: type[QueryResulted],
    read: Callable[[ResultCallback], tuple[tuple[str, ...], dict[str, Any]]],
) -> tuple[CallbackKind, CallbackKind]:
    """Return the kinds ``{name}`` and ``{name}-timeout``.

    ``read`` returns what identical results share, apart from code and amount, and the event's own fields. A timeout
    event has their defaults.
    """

    def read_answer(body: bytes) -> CallbackContent:
        result = read_result(body)
        same, fields = read(result)
        text = result.first("Amount")
        return _content(result, (*same, text or ""), fields | {"amount": read_amount(text), "amount_text": text})

    return (
        CallbackKind(
            name=name,
            path=f"{path}/result",
            read=read_answer,
            event=event,
            schema=RESULT,
            examples={"result": RESULT_EXAMPLE},
            matches=lambda fields: "Result" in fields and "Body" not in fields,
            family="result",
        ),
        CallbackKind(
            name=f"{name}-timeout",
            path=f"{path}/timeout",
            read=lambda body: _content(_read_timeout(body), (), {}, timed_out=True),
            event=event,
            schema=RESULT,
            examples={"result": RESULT_EXAMPLE},
            family="result",
            timeout_of=name,
        ),
    )


def _read_timeout(body: bytes) -> ResultCallback:
    # A timeout may have any body, or none.
    with suppress(InvalidCallback):
        return read_result(body)
    return ResultCallback(
        is_final=True,
        result_code=_UNANSWERED,
        result_desc="",
        originator_conversation_id=None,
        conversation_id=None,
        transaction_id=None,
        parameters={},
    )


def _content(
    result: ResultCallback, same: tuple[str, ...], fields: dict[str, Any], *, timed_out: bool = False
) -> CallbackContent:
    return CallbackContent(
        result.originator_conversation_id or result.conversation_id or "",
        result.result_code,
        (str(result.is_final), result.result_code, *same),
        fields
        | {
            "result_desc": result.result_desc,
            "originator_conversation_id": result.originator_conversation_id,
            "conversation_id": result.conversation_id,
            # A timeout is final, even if its ResultType is not 0.
            "is_final": timed_out or result.is_final,
            "timed_out": timed_out,
        },
    )
