"""Credentials as they go over the wire: whole on the way in, masked on the way out."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.phone import Msisdn


def _matching(pattern: str, message: str) -> Callable[[str], str]:
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(message)
        return text

    return check


_secret = _matching(r"[!-~]{8,1024}", "must be 8 to 1024 printable ASCII characters without spaces")
_shortcode = _matching(r"[0-9]{5,7}", "must be 5 to 7 digits")


class MpesaFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A merchant's keys to M-Pesa, from Safaricom's developer portal."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "env": _matching("sandbox|live", "must be sandbox or live"),
        "consumer_key": _secret,
        "consumer_secret": _secret,
        "passkey": _secret,
        "security_credential": _secret,
        "initiator_password": _matching(r"[!-~]{1,100}", "must be 1 to 100 printable ASCII characters without spaces"),
        "shortcode": _shortcode,
        "till_number": _shortcode,
        "initiator": _matching(r"[ -~]{1,100}", "must be 1 to 100 printable ASCII characters"),
        "nominated_number": Msisdn.parse,
        "account_reference": _matching(r"[ -~]{1,12}", "must be 1 to 12 printable ASCII characters"),
    }

    env: str
    consumer_key: str
    consumer_secret: str
    passkey: str
    shortcode: str
    till_number: str | None = None
    initiator: str | None = None
    security_credential: str | None = None
    initiator_password: str | None = None
    result_url: str | None = None
    timeout_url: str | None = None
    nominated_number: str | None = None
    account_reference: str | None = None


class SetProvider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of a provider: what is left out is not kept."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"provider": _matching("mpesa", "must be mpesa")}

    provider: str
    mpesa: MpesaFields


class MpesaSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored configuration; secrets by their last four characters."""

    env: str
    consumer_key: str
    consumer_secret: str
    passkey: str
    shortcode: str
    till_number: str | None = None
    initiator: str | None = None
    security_credential: str | None = None
    result_url: str | None = None
    timeout_url: str | None = None
    nominated_number: str | None = None
    account_reference: str | None = None


class ProviderView(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that a merchant has configured."""

    provider: str
    config_summary: MpesaSummary


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was tried with the stored credentials. ``mitigation`` says what to do where it failed."""

    name: str
    ok: bool
    message: str
    mitigation: str | None = None
    code: str | None = None


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the stored credentials work."""

    ok: bool
    checks: list[Check]


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """The API key that is asking."""

    id: str
    env: str
    scopes: list[str]


class MerchantView(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking: the merchant, the key, and what is configured."""

    id: str
    name: str
    env: str
    is_active: bool
    created_at: datetime
    key: KeyView
    providers: list[str]
