"""Callbacks of payments: STK results and status query results."""

from collections.abc import Mapping
from typing import Any

from mpesa_gateway.daraja.callbacks import CallbackContent, CallbackKind
from mpesa_gateway.daraja.provider_text import provider_text
from mpesa_gateway.daraja.wire import ResultCallback, read_moments, read_receipt, read_stk_callback
from mpesa_gateway_callbacks.api import RESULT_CODE, described, result_kinds
from mpesa_gateway_payments.events import StatusResulted, StkResulted
from mpesa_gateway_payments.result_codes import SUCCESS_TEXT

STK_BODY: dict[str, Any] = {
    "type": "object",
    "description": "The outcome of a push.",
    "required": ["Body"],
    "properties": {
        "Body": {
            "type": "object",
            "required": ["stkCallback"],
            "properties": {
                "stkCallback": {
                    "type": "object",
                    "required": ["ResultCode"],
                    "properties": {
                        "MerchantRequestID": described("Daraja's id of our request", "29115-34620561-1"),
                        "CheckoutRequestID": described("Daraja's id of the push", "ws_CO_191220191020363925"),
                        "ResultCode": RESULT_CODE,
                        "ResultDesc": described("the text of the result", "Request cancelled by user"),
                        "CallbackMetadata": described(
                            "only for a paid push",
                            properties={
                                "Item": described(
                                    "names and values, in any order: Amount in KES, MpesaReceiptNumber, Balance "
                                    "(mostly without a value), TransactionDate (YYYYMMDDHHmmss in East Africa Time), "
                                    "PhoneNumber",
                                    items={
                                        "properties": {
                                            "Name": described("its name", "MpesaReceiptNumber"),
                                            "Value": described("its value; may be absent", "NLJ7RT61SV"),
                                        }
                                    },
                                )
                            },
                        ),
                    },
                }
            },
        }
    },
}

_STK_EXAMPLE: dict[str, Any] = {
    "Body": {
        "stkCallback": {
            "MerchantRequestID": "29115-34620561-1",
            "CheckoutRequestID": "ws_CO_191220191020363925",
            "ResultCode": 1032,
            "ResultDesc": "Request cancelled by user",
        }
    }
}


def _read_stk(body: bytes) -> CallbackContent:
    result = read_stk_callback(body)
    fields = {
        "checkout_request_id": result.checkout_request_id,
        "merchant_request_id": result.merchant_request_id,
        "result_desc": result.result_desc,
        "amount": result.amount,
        "amount_text": result.amount_text,
        "receipt": result.receipt,
        "phone": result.phone,
        "paid_at": result.paid_at,
        "is_receipt_unread": result.is_receipt_unread,
    }
    same = (result.result_code, result.receipt or "", result.amount_text or "", result.phone or "")
    return CallbackContent(result.checkout_request_id or "", result.result_code, same, fields)


def _is_stk(fields: Mapping[str, Any]) -> bool:
    inner = fields.get("Body")
    return "Result" not in fields and isinstance(inner, dict) and "stkCallback" in inner


def _read_status(result: ResultCallback) -> tuple[tuple[str, ...], dict[str, Any]]:
    receipt = read_receipt(result.first("ReceiptNo"))
    stated = result.first("TransactionStatus")
    status = None if stated is None else provider_text(stated, 64)
    return (status or "", receipt or ""), {
        "transaction_status": status,
        "receipt": receipt,
        "payers": tuple(result.parameters.get("DebitPartyName", ())),
        "payees": tuple(result.parameters.get("CreditPartyName", ())),
        "money_conversation_id": result.first("OriginatorConversationID"),
        "finished_at": next(iter(read_moments(result.first("FinalisedTime"))), None),
    }


CALLBACKS = (
    CallbackKind(
        name="stk",
        path="",
        read=_read_stk,
        event=StkResulted,
        schema=STK_BODY,
        examples={"stk": _STK_EXAMPLE},
        matches=_is_stk,
        can_be_queried=True,
        constants=frozenset(
            {"0", SUCCESS_TEXT, "Amount", "MpesaReceiptNumber", "Balance", "TransactionDate", "PhoneNumber"}
        ),
    ),
    *result_kinds("status", "transactionstatus", StatusResulted, _read_status),
)
