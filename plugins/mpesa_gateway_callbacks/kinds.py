"""The kinds of callbacks: how each is read, what makes two of them the same, and what is published of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mpesa_gateway.daraja.wire import (
    NotACallback,
    ResultCallback,
    read_amount,
    read_json,
    read_moments,
    read_receipt,
    read_result,
    read_stk_callback,
)
from mpesa_gateway_callbacks.api import Kind
from mpesa_gateway_callbacks.events import CallbackEvent, ReversalResulted, StatusResulted, StkResulted

_UNANSWERED = "timed_out"
"""The result code that we note for a timeout, which has none of its own."""


@dataclass(frozen=True)
class Report:
    """One callback, read. ``handle`` is Daraja's id of what it is about; ``content`` what equal callbacks agree in."""

    handle: str
    result_code: str
    content: tuple[str, ...]
    event: Callable[[Mapping[str, Any]], CallbackEvent] | None
    """Makes the event from what the inbox knows; None for a callback that nobody waits for."""


def read_report(kind: Kind, body: bytes) -> Report:
    """Read a callback of this kind. Raises NotACallback."""
    return _READERS[kind](body)


def _stk(body: bytes) -> Report:
    result = read_stk_callback(body)

    def event(known: Mapping[str, Any]) -> StkResulted:
        return StkResulted(
            **known,
            checkout_request_id=result.checkout_request_id,
            merchant_request_id=result.merchant_request_id,
            result_code=result.result_code,
            result_desc=result.result_desc,
            amount=result.amount,
            amount_text=result.amount_text,
            receipt=result.receipt,
            phone=result.phone,
            paid_at=result.paid_at,
        )

    content = (result.result_code, result.receipt or "", result.amount_text or "", result.phone or "")
    return Report(result.checkout_request_id or "", result.result_code, content, event)


def _status(body: bytes) -> Report:
    result = read_result(body)
    amount_text = result.first("Amount")
    receipt = read_receipt(result.first("ReceiptNo"))
    status = result.first("TransactionStatus")

    def event(known: Mapping[str, Any]) -> StatusResulted:
        return StatusResulted(
            **known,
            **_common(result),
            amount=read_amount(amount_text),
            amount_text=amount_text,
            transaction_status=status,
            receipt=receipt,
            payers=tuple(result.parameters.get("DebitPartyName", ())),
            finished_at=_moment(result.first("FinalisedTime")),
        )

    return _report(result, (status or "", receipt or "", amount_text or ""), event)


def _reversal(body: bytes) -> Report:
    result = read_result(body)
    amount_text = result.first("Amount")
    receipt = read_receipt(result.first("OriginalTransactionID"))

    def event(known: Mapping[str, Any]) -> ReversalResulted:
        return ReversalResulted(
            **known,
            **_common(result),
            amount=read_amount(amount_text),
            amount_text=amount_text,
            reversal_receipt=read_receipt(result.transaction_id),
            receipt=receipt,
        )

    return _report(result, (result.transaction_id or "", receipt or "", amount_text or ""), event)


def _status_timeout(body: bytes) -> Report:
    result = _timeout(body)
    return _report(
        result,
        (),
        lambda known: StatusResulted(
            **known,
            **_common(result, timed_out=True),
            amount=None,
            amount_text=None,
            transaction_status=None,
            receipt=None,
            payers=(),
            finished_at=None,
        ),
    )


def _reversal_timeout(body: bytes) -> Report:
    result = _timeout(body)
    return _report(
        result,
        (),
        lambda known: ReversalResulted(
            **known,
            **_common(result, timed_out=True),
            amount=None,
            amount_text=None,
            reversal_receipt=None,
            receipt=None,
        ),
    )


def _pull(body: bytes) -> Report:
    """What Pull posts is documented nowhere: any JSON object is kept, and nothing follows from it."""
    try:
        content = read_json(body)
    except ValueError:
        raise NotACallback("not JSON") from None
    if not isinstance(content, dict):
        raise NotACallback("not a JSON object")
    return Report("", "0", (body.decode("utf-8", "replace"),), None)


_READERS: dict[Kind, Callable[[bytes], Report]] = {
    "stk": _stk,
    "status": _status,
    "status-timeout": _status_timeout,
    "reversal": _reversal,
    "reversal-timeout": _reversal_timeout,
    "pull": _pull,
}


def _timeout(body: bytes) -> ResultCallback:
    """A timeout: the usual envelope, or any JSON at all, since its address says everything."""
    try:
        return read_result(body)
    except NotACallback:
        try:
            read_json(body)
        except ValueError:
            raise NotACallback("not JSON") from None
    return ResultCallback(
        is_final=True,
        result_code=_UNANSWERED,
        result_desc="",
        originator_conversation_id=None,
        conversation_id=None,
        transaction_id=None,
        parameters={},
    )


def _report(
    result: ResultCallback, content: tuple[str, ...], event: Callable[[Mapping[str, Any]], CallbackEvent]
) -> Report:
    handle = result.originator_conversation_id or result.conversation_id or ""
    return Report(handle, result.result_code, (str(result.is_final), result.result_code, *content), event)


def _common(result: ResultCallback, *, timed_out: bool = False) -> dict[str, Any]:
    return {
        "result_code": result.result_code,
        "result_desc": result.result_desc,
        "originator_conversation_id": result.originator_conversation_id,
        "conversation_id": result.conversation_id,
        # A timeout is the last word of its question, whatever its ResultType says.
        "is_final": timed_out or result.is_final,
        "timed_out": timed_out,
    }


def _moment(text: str | None) -> datetime | None:
    return next(iter(read_moments(text)), None)
