"""The kinds of callbacks: how each is read, what makes two of them the same, and what is published of it."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from mpesa_gateway.daraja.provider_text import provider_text
from mpesa_gateway.daraja.wire import (
    NotACallback,
    ResultCallback,
    decoded,
    read_amount,
    read_json_leniently,
    read_moments,
    read_receipt,
    read_result,
    read_stk_callback,
)
from mpesa_gateway_callbacks.api import Kind
from mpesa_gateway_callbacks.events import CallbackEvent, ReversalResulted, StatusResulted, StkResulted

_UNANSWERED = "timed_out"
"""The result code that we note for a timeout, which has none of its own."""

RESULTS: tuple[Kind, ...] = ("status", "status-timeout", "reversal", "reversal-timeout")
"""The kinds of results, whose addresses a merchant can set as one ``result_url`` and one ``timeout_url``."""

_FAMILIES: dict[Kind, tuple[Kind, ...]] = {
    "status": ("status", "reversal"),
    "reversal": ("reversal", "status"),
    "status-timeout": ("status-timeout", "reversal-timeout"),
    "reversal-timeout": ("reversal-timeout", "status-timeout"),
}
"""As which kinds a result is offered that only its conversation ids can name, the kind of its address first."""

Make = Callable[[Mapping[str, Any]], CallbackEvent]


@dataclass(frozen=True)
class Report:
    """One callback, read. ``handle`` is Daraja's id of what it is about; ``content`` what equal callbacks agree in."""

    handle: str
    result_code: str
    content: tuple[str, ...]
    event: Make | None
    """Makes the event from what the inbox knows; None for a callback that nobody waits for."""
    otherwise: Make | None = None
    """The event to publish where no subscriber used the first one."""


def read_report(kind: Kind, body: bytes, *, has_token: bool) -> Report:
    """Read a callback of this kind. Raises NotACallback.

    A result without a token may be of either family, whichever result address it came to.
    """
    if has_token or kind not in _FAMILIES:
        return _READERS[kind](body)
    own, other = (_READERS[each](body) for each in _FAMILIES[kind])
    return replace(own, otherwise=other.event)


def kind_of(kind: Kind, body: bytes) -> Kind:
    """The kind of a callback without a token: that of its address, unless its body is plainly of another kind."""
    if kind.endswith("-timeout") or kind == "pull":
        return kind
    try:
        content = read_json_leniently(body)
    except ValueError:
        return kind
    if not isinstance(content, dict):
        return kind
    fields = cast("dict[str, Any]", content)
    if kind == "stk":
        return "status" if "Result" in fields and "Body" not in fields else kind
    inner = fields.get("Body")
    return "stk" if "Result" not in fields and isinstance(inner, dict) and "stkCallback" in inner else kind


def merged(address: Kind, token: Kind) -> Kind:
    """The kind of a result whose token was made for another result address: the token's, and a timeout if either is."""
    if token in _FAMILIES and (address.endswith("-timeout") or token.endswith("-timeout")):
        return "reversal-timeout" if token.startswith("reversal") else "status-timeout"
    return token


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
            is_receipt_unread=result.is_receipt_unread,
        )

    content = (result.result_code, result.receipt or "", result.amount_text or "", result.phone or "")
    return Report(result.checkout_request_id or "", result.result_code, content, event)


def _status(body: bytes) -> Report:
    result = read_result(body)
    amount_text = result.first("Amount")
    receipt = read_receipt(result.first("ReceiptNo"))
    stated = result.first("TransactionStatus")
    status = None if stated is None else provider_text(stated, 64)

    def event(known: Mapping[str, Any]) -> StatusResulted:
        return StatusResulted(
            **known,
            **_common(result),
            amount=read_amount(amount_text),
            amount_text=amount_text,
            transaction_status=status,
            receipt=receipt,
            payers=tuple(result.parameters.get("DebitPartyName", ())),
            payees=tuple(result.parameters.get("CreditPartyName", ())),
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
        content = read_json_leniently(body)
    except ValueError:
        raise NotACallback("not JSON") from None
    if not isinstance(content, dict):
        raise NotACallback("not a JSON object")
    return Report("", "0", (decoded(body),), None)


_READERS: dict[Kind, Callable[[bytes], Report]] = {
    "stk": _stk,
    "status": _status,
    "status-timeout": _status_timeout,
    "reversal": _reversal,
    "reversal-timeout": _reversal_timeout,
    "pull": _pull,
}


def _timeout(body: bytes) -> ResultCallback:
    """A timeout: the usual envelope, or any bytes and none at all, since its address says everything."""
    with suppress(NotACallback):
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


def _report(result: ResultCallback, content: tuple[str, ...], event: Make) -> Report:
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
