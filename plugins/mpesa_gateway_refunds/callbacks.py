"""Callback kinds of refunds: results of reversals."""

from typing import Any

from mpesa_gateway.daraja.wire import ResultCallback, read_receipt
from mpesa_gateway_callbacks.api import result_kinds
from mpesa_gateway_refunds.events import ReversalResulted


def _read_reversal(result: ResultCallback) -> tuple[tuple[str, ...], dict[str, Any]]:
    receipt = read_receipt(result.first("OriginalTransactionID"))
    return (result.transaction_id or "", receipt or ""), {
        "reversal_receipt": read_receipt(result.transaction_id),
        "receipt": receipt,
    }


CALLBACKS = result_kinds("reversal", "reversal", ReversalResulted, _read_reversal)
