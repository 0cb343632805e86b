"""Reads C2B requests as strictly as Daraja."""

from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from mpesa_gateway_simulator.validation import (
    PHONE_PATTERN,
    bad_field,
    read_amount,
    read_shortcode,
    read_text,
    read_url,
)

C2bKind = Literal["pay_bill", "buy_goods"]

_KINDS: dict[str, C2bKind] = {"CustomerPayBillOnline": "pay_bill", "CustomerBuyGoodsOnline": "buy_goods"}

FORBIDDEN = ("m-pesa", "mpesa", "safaricom", "exec", "exe", "cmd", "sql", "query")
"""Daraja refuses a C2B address that contains one of them, in any case and anywhere."""

_TUNNELS = ("ngrok", "localtunnel", "loca.lt", "trycloudflare", "serveo", "localhost.run", "pagekite", "tunnel")
_COLLECTORS = ("requestbin", "hookbin", "mockbin", "webhook.site")
MOST_ACCOUNT = 20
"""Characters of an account number."""


class C2bRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """A valid registration."""

    shortcode: str
    response_type: Literal["Completed", "Cancelled"]
    confirmation_url: str
    validation_url: str


class C2bSimulation(msgspec.Struct, frozen=True, kw_only=True):
    """A valid simulation. ``amount`` is in KES; a till has no ``account_number``."""

    shortcode: str
    kind: C2bKind
    amount: int
    phone: str
    account_number: str


def read_c2b_registration(body: dict[str, Any], *, is_live: bool) -> C2bRegistration:
    """Raises Fault for the first invalid field."""
    shortcode = read_shortcode(body, "ShortCode")
    response_type = body.get("ResponseType")
    if response_type not in ("Completed", "Cancelled"):
        raise bad_field("ResponseType")
    return C2bRegistration(
        shortcode=shortcode,
        response_type=response_type,
        confirmation_url=_address(body, "ConfirmationURL", is_live=is_live),
        validation_url=_address(body, "ValidationURL", is_live=is_live),
    )


def read_c2b_simulation(body: dict[str, Any]) -> C2bSimulation:
    """Raises Fault for the first invalid field."""
    shortcode = read_shortcode(body, "ShortCode")
    kind = _KINDS.get(str(body.get("CommandID")))
    if kind is None:
        raise bad_field("CommandID")
    amount, phone = read_amount(body), read_text(body, "Msisdn")
    if not PHONE_PATTERN.match(phone):
        raise bad_field("Msisdn")
    is_blank = body.get("BillRefNumber") in (None, "")
    account = "" if is_blank else read_text(body, "BillRefNumber")
    if kind == "pay_bill" and (is_blank or len(account) > MOST_ACCOUNT):
        raise bad_field("BillRefNumber")
    return C2bSimulation(
        shortcode=shortcode,
        kind=kind,
        amount=amount,
        phone=phone,
        account_number=account if kind == "pay_bill" else "",
    )


def _address(body: dict[str, Any], name: str, *, is_live: bool) -> str:
    url = read_url(body, name, https_callbacks=is_live)
    lowered = url.lower()
    if any(word in lowered for word in FORBIDDEN):
        raise bad_field(name)
    if is_live and not _is_public(urlsplit(lowered).hostname or ""):
        raise bad_field(name)
    return url


def _is_public(host: str) -> bool:
    if any(name in host for name in (*_TUNNELS, *_COLLECTORS)):
        return False
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".local", ".localhost", ".internal", ".test", ".lan"))
