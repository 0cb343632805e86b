"""Daraja operations of payments: STK push, STK query and transaction status."""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from mpesa_gateway.clock import daraja_timestamp
from mpesa_gateway.daraja.exceptions import OutcomeUnknown, StillPending
from mpesa_gateway.daraja.operations import (
    ACCEPTED,
    DarajaCredentials,
    Initiator,
    Operation,
    accepts_conversation,
    is_accepted,
    read_ack,
    response_code,
)
from mpesa_gateway.daraja.wire import read_code, read_message, read_text
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments.result_codes import Outcome, stk_query_outcome


class StkAck(msgspec.Struct, frozen=True, kw_only=True):
    """Acknowledgement of a push: the prompt is on its way. ``merchant_request_id`` is sometimes missing."""

    merchant_request_id: str | None
    checkout_request_id: str


@dataclass(frozen=True)
class StkQueryAnswer:
    """Answer about a push, without the receipt."""

    outcome: Outcome
    result_desc: str
    checkout_request_id: str | None = None
    merchant_request_id: str | None = None
    """Daraja's ids of the push that the answer names."""


@dataclass(frozen=True, kw_only=True)
class StkPush:
    """A prompt to one phone.

    Daraja's push is not idempotent and takes no id of ours: it must not be repeated after OutcomeUnknown.
    """

    amount: Kes
    phone: Msisdn
    callback_url: str
    account_reference: str
    description: str

    def body(self, credentials: DarajaCredentials, now: datetime) -> dict[str, Any]:
        is_till = credentials.till_number is not None
        return _signed(credentials, now) | {
            "TransactionType": "CustomerBuyGoodsOnline" if is_till else "CustomerPayBillOnline",
            "Amount": int(self.amount),
            "PartyA": str(self.phone),
            "PartyB": credentials.receiver,
            "PhoneNumber": str(self.phone),
            "CallBackURL": self.callback_url,
            "AccountReference": self.account_reference,
            "TransactionDesc": self.description,
        }


@dataclass(frozen=True)
class StkQuery:
    """A query about a push; can be repeated."""

    checkout_request_id: str

    def body(self, credentials: DarajaCredentials, now: datetime) -> dict[str, Any]:
        return _signed(credentials, now) | {"CheckoutRequestID": self.checkout_request_id}


@dataclass(frozen=True, kw_only=True)
class TransactionStatus:
    """A query about a transaction, by receipt or conversation; can be repeated. The answer goes to ``result_url``."""

    initiator: Initiator
    receipt: str | None
    conversation_id: str | None
    result_url: str
    timeout_url: str
    remarks: str

    def body(self, credentials: DarajaCredentials, _: datetime) -> dict[str, Any]:
        body = {
            "Initiator": self.initiator.name,
            "SecurityCredential": self.initiator.security_credential.reveal(),
            "CommandID": "TransactionStatusQuery",
            "PartyA": credentials.receiver,
            "IdentifierType": "4",
            "ResultURL": self.result_url,
            "QueueTimeOutURL": self.timeout_url,
            "Remarks": self.remarks,
            "Occasion": "",
        }
        if self.receipt is not None:
            body["TransactionID"] = self.receipt
        if self.conversation_id is not None:
            body["OriginalConversationID"] = self.conversation_id
        return body


def _signed(credentials: DarajaCredentials, now: datetime) -> dict[str, Any]:
    """The password is base64 of shortcode, passkey and timestamp (Daraja)."""
    timestamp = daraja_timestamp(now)
    text = credentials.shortcode + credentials.passkey.reveal() + timestamp
    return {
        "BusinessShortCode": credentials.shortcode,
        "Password": base64.b64encode(text.encode()).decode(),
        "Timestamp": timestamp,
    }


def _read_push(answer: Any) -> StkAck:
    checkout_request_id = read_text(answer, "CheckoutRequestID")
    if checkout_request_id is None:
        raise OutcomeUnknown("M-Pesa's answer is no acknowledgement")
    return StkAck(
        merchant_request_id=read_text(answer, "MerchantRequestID"),
        checkout_request_id=checkout_request_id,
    )


def _names_a_push(answer: Any) -> bool:
    return read_text(answer, "CheckoutRequestID") is not None and is_accepted(answer, {None, *ACCEPTED})


def _read_query(answer: Any) -> StkQueryAnswer:
    code = read_code(answer, "ResultCode")
    if code is None:
        raise OutcomeUnknown("M-Pesa's answer has no result")
    if (accepted := response_code(answer)) is not None and accepted not in ACCEPTED:
        raise OutcomeUnknown("M-Pesa's answer has a result, but its response code rejects the query")
    description = read_message(answer, "ResultDesc") or ""
    outcome = stk_query_outcome(code, description)
    if outcome.is_paid and read_code(answer, "ResponseCode") not in {None, "0"}:
        raise OutcomeUnknown("M-Pesa's answer contradicts itself")
    ids = (read_text(answer, "CheckoutRequestID"), read_text(answer, "MerchantRequestID"))
    return StkQueryAnswer(outcome, description, *ids)


def _still_open(fault: StillPending) -> StkQueryAnswer:
    return StkQueryAnswer(Outcome(fault.code or "", fault.meaning, "other", "wait", is_pending=True), "")


STK_PUSH = Operation(
    name="stk_push",
    path="/mpesa/stkpush/v1/processrequest",
    request=StkPush,
    read=_read_push,
    recognises=_names_a_push,
)
STK_QUERY = Operation(
    name="stk_query",
    path="/mpesa/stkpushquery/v1/query",
    request=StkQuery,
    read=_read_query,
    accepts=None,
    pending=_still_open,
)
TRANSACTION_STATUS = Operation(
    name="transaction_status",
    path="/mpesa/transactionstatus/v1/query",
    request=TransactionStatus,
    read=read_ack,
    recognises=accepts_conversation,
)
OPERATIONS = (STK_PUSH, STK_QUERY, TRANSACTION_STATUS)
