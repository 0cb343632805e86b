"""Callback kinds of c2b: confirmations, and validation requests with their answer."""

from collections.abc import Mapping
from typing import Any

from mpesa_gateway.daraja.callbacks import CallbackContent, CallbackKind, StandingAddress
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b.addresses import C2bAddresses
from mpesa_gateway_c2b.events import C2bConfirmed
from mpesa_gateway_c2b.validation import TEXTS, Validation
from mpesa_gateway_c2b.wire import read_body
from mpesa_gateway_callbacks.api import described

BODY: dict[str, Any] = {
    "type": "object",
    "description": "A payment to a registered shortcode.",
    "required": ["TransID", "TransAmount", "BusinessShortCode"],
    "properties": {
        "TransactionType": described("Pay Bill, Buy Goods, Customer Merchant Payment or another text", "Pay Bill"),
        "TransID": described("the receipt", "TKN4A1B2C3"),
        "TransTime": described("YYYYMMDDHHmmss in East Africa Time", "20261130101509"),
        "TransAmount": described("KES as text", "500.00"),
        "BusinessShortCode": described("the paybill, till or store that was paid", "600638"),
        "BillRefNumber": described("what the payer typed as account number; empty for tills", "A7"),
        "InvoiceNumber": described("mostly empty", ""),
        "OrgAccountBalance": described("the balance afterwards; empty for validation", "49197.00"),
        "ThirdPartyTransID": described("from our answer to the validation request", ""),
        "MSISDN": described("the payer's number: masked, as SHA-256, or in clear", "2547 ***** 126"),
        "FirstName": described("may be empty", "JANE"),
        "MiddleName": described("may be absent", ""),
        "LastName": described("may be absent", ""),
    },
}

EXAMPLE: dict[str, Any] = {
    "TransactionType": "Pay Bill",
    "TransID": "TKN4A1B2C3",
    "TransTime": "20261130101509",
    "TransAmount": "500.00",
    "BusinessShortCode": "600638",
    "BillRefNumber": "A7",
    "InvoiceNumber": "",
    "OrgAccountBalance": "49197.00",
    "ThirdPartyTransID": "",
    "MSISDN": "2547 ***** 126",
    "FirstName": "JANE",
}


def _read(body: bytes) -> CallbackContent:
    money = read_body(body)
    fields = {
        "result_desc": "",
        "receipt": money.receipt,
        "number": money.number,
        "amount_cents": money.amount_cents,
        "account_number": money.account_number,
        "payer": money.payer.shown,
        "payer_digest": money.payer.digest,
        "payer_name": money.payer_name,
        "paid_at": money.paid_at,
        "transaction_type": money.transaction_type,
    }
    # A repetition that shows more of the payer is evidence of its own.
    payer = money.payer.digest or money.payer.shown or ""
    same = (money.number, str(money.amount_cents), money.account_number or "", str(money.paid_at), payer)
    return CallbackContent(money.receipt, "0", same, fields)


async def _validate(gateway: Runtime, address: StandingAddress, body: bytes) -> Mapping[str, Any]:
    return await gateway.port(Validation).answer(address, body)


CALLBACKS = (
    CallbackKind(
        name="c2b",
        read=_read,
        event=C2bConfirmed,
        schema=BODY,
        examples={"c2b": EXAMPLE},
        addresses=C2bAddresses,
        personal=frozenset({"MSISDN", "FirstName", "MiddleName", "LastName"}),
        is_apart=True,
    ),
    CallbackKind(
        name="c2b-validation",
        read=_read,
        event=None,
        schema=BODY,
        examples={"c2b-validation": EXAMPLE | {"OrgAccountBalance": ""}},
        addresses=C2bAddresses,
        reply=_validate,
        answer_schema={
            "type": "object",
            "required": ["ResultCode", "ResultDesc"],
            "properties": {
                "ResultCode": {"enum": ["0", *TEXTS]},
                "ResultDesc": {"type": "string", "maxLength": 90},
            },
        },
    ),
)
