"""The bodies of C2B validations and confirmations, as Daraja writes them."""

import hashlib
from datetime import datetime
from typing import Any, Literal, cast

import msgspec

from mpesa_gateway.clock import EAT
from mpesa_gateway_simulator.c2b_requests import C2bKind

Version = Literal["v1", "v2"]

C2bPayer = Literal["by_version", "clear", "masked", "masked_close", "masked_long", "hashed", "hashed_masked"]
"""A form of ``MSISDN``. By version: v1 sends the digest, v2 a mask with blanks."""

C2bNames = Literal["by_version", "all", "first", "empty", "absent"]
"""The names of the payer. By version: v1 sends all, v2 the first one only."""

_TYPES: dict[C2bKind, str] = {"pay_bill": "Pay Bill", "buy_goods": "Customer Merchant Payment"}
_NAMES = {"FirstName": "JANE", "MiddleName": "W", "LastName": "DOE"}


class C2bManner(msgspec.Struct, frozen=True, kw_only=True):
    """How Daraja reports a payment without a prompt."""

    validation: Literal["asked", "unreachable", "not_enabled"] = "asked"
    confirmation: Literal["sent", "late", "lost"] = "sent"
    payer_shown: C2bPayer = "by_version"
    names: C2bNames = "by_version"
    transaction_type: str | None = None
    forgets_registration: bool = False


class C2bMoney(msgspec.Struct, frozen=True, kw_only=True):
    """A payment to a shortcode. ``amount`` is in KES, ``at`` aware."""

    receipt: str
    phone: str
    amount: int
    shortcode: str
    account_number: str
    kind: C2bKind
    at: datetime


def c2b_body(money: C2bMoney, manner: C2bManner, version: str, *, balance: int | None, third_party: str = "") -> str:
    """Return a confirmation; without a ``balance`` the body of a validation."""
    content: dict[str, Any] = {
        "TransactionType": manner.transaction_type or _TYPES[money.kind],
        "TransID": money.receipt,
        "TransTime": f"{money.at.astimezone(EAT):%Y%m%d%H%M%S}",
        "TransAmount": str(money.amount) if version == "v1" else f"{money.amount}.00",
        "BusinessShortCode": money.shortcode,
        "BillRefNumber": money.account_number,
        "InvoiceNumber": "",
        "OrgAccountBalance": "" if balance is None else f"{balance}.00",
        "ThirdPartyTransID": third_party,
        "MSISDN": c2b_payer(money.phone, manner.payer_shown, version),
    }
    return msgspec.json.encode(content | _names(manner.names, version)).decode()


def c2b_payer(phone: str, shown: C2bPayer, version: str) -> str:
    """Return a payer's ``MSISDN``."""
    if shown == "by_version":
        shown = "hashed" if version == "v1" else "masked"
    digest = hashlib.sha256(phone.encode()).hexdigest()
    forms: dict[C2bPayer, str] = {
        "clear": phone,
        "masked": f"{phone[:4]} ***** {phone[-3:]}",
        "masked_close": f"{phone[:4]}*****{phone[-3:]}",
        "masked_long": f"{phone[:5]}****{phone[-3:]}",
        "hashed": digest,
        # Seen at a till: a mask over the digest.
        "hashed_masked": f"{digest[:4]} ***** {digest[-4:]}",
    }
    return forms[shown]


def _names(shown: C2bNames, version: str) -> dict[str, str]:
    if shown == "by_version":
        shown = "all" if version == "v1" else "first"
    if shown == "absent":
        return {}
    if shown == "first":
        return {"FirstName": _NAMES["FirstName"]}
    return dict.fromkeys(_NAMES, "") if shown == "empty" else dict(_NAMES)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A validation's outcome: ``code`` is None where the payment is accepted."""

    code: str | None = None
    third_party: str = ""


def read_verdict(status: int, answer: str) -> Verdict | None:
    """Return what an answer to a validation decides; None if it decides nothing."""
    try:
        decoded = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    content = cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}
    code = content.get("ResultCode")
    if status != 200 or isinstance(code, bool) or not isinstance(code, str | int):
        return None
    if str(code) != "0":
        return Verdict(code=str(code)[:20])
    third_party = content.get("ThirdPartyTransID")
    return Verdict(third_party=str(third_party)[:50] if isinstance(third_party, str | int) else "")
