"""What other plugins may ask of callbacks."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
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
"""The result code that we note for a timeout, which has none of its own."""


class DifferentSubject(CallbackRejected):
    """The callback's token is for one request and its content is about another.

    Raised by whoever knows that.
    """

    status = 403
    reason = "subject"


class Callbacks(Protocol):
    """Hands out the addresses that Daraja calls back, and keeps what it sends there."""

    def url_for(self, kind: str, *, env: Env, merchant_id: str, subject_id: str) -> str:
        """The address to give Daraja for one request; only it is taken for ``subject_id``.

        Raises LookupError where no enabled plugin declares the kind.
        """
        ...

    async def mark_applied(self, callback_id: str) -> None:
        """Say, in the subscriber's transaction, that a callback has done its work."""
        ...

    @property
    def is_batch(self) -> bool:
        """True while callbacks that arrived together are published: if that fails, each is published alone."""
        ...

    async def find_waiting(self, handles: Sequence[str]) -> set[str]:
        """Those of these handles of Daraja's under which callbacks wait."""
        ...

    async def apply_waiting(self, handle: str) -> int:
        """Publish again what waits under a ``handle`` of Daraja's that has just become known.

        That is a CheckoutRequestID or an OriginatorConversationID. Runs in the open transaction; gives how many
        callbacks were published.
        """
        ...

    async def timeline_of(self, subject_ids: Collection[str], handles: Collection[str]) -> Sequence[TimelineEntry]:
        """What came about these subjects of ours, or under these handles of Daraja's, as lines of a timeline."""
        ...


def result_kinds(
    name: str,
    path: str,
    event: type[QueryResulted],
    read: Callable[[ResultCallback], tuple[tuple[str, ...], dict[str, Any]]],
) -> tuple[CallbackKind, CallbackKind]:
    """Declare the result of a request to Daraja, and Daraja's word that its queue gave up: ``{name}-timeout``.

    They are at ``{path}/result`` and ``{path}/timeout`` of the specification. ``read`` returns what equal results agree
    in, beyond code and amount, and the event's own fields; of a timeout the event has only their defaults.
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
            fits=lambda fields: "Result" in fields and "Body" not in fields,
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
    """A timeout: the usual envelope, or any bytes and none at all, since its address says everything."""
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
            # A timeout is the last word of its question, whatever its ResultType says.
            "is_final": timed_out or result.is_final,
            "timed_out": timed_out,
        },
    )
