"""Credentials as they go over the wire: whole on the way in, masked on the way out."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.http.field_rules import PHONE, matching, one_of, printable
from mpesa_gateway.http.fields import KeyId, Masked, MerchantId, Provider, Yes
from mpesa_gateway.readiness import Missing
from mpesa_gateway.security.scopes import Environment

_SECRET = matching(r"[!-~]{8,1024}", "must be 8 to 1024 printable ASCII characters without spaces", format="password")
_SHORTCODE = matching(r"[0-9]{5,7}", "must be 5 to 7 digits", examples=["174379"])


_NO, _TEXT = {"type": "null"}, {"type": "string"}


def _initiated_by(secret: str, other: str) -> dict[str, Any]:
    """The schema of who may ask and send back: an initiator with one form of its password."""
    return {"required": ["initiator", secret], "properties": {"initiator": _TEXT, secret: _TEXT, other: _NO}}


_INITIATED = [
    _initiated_by("initiator_password", "security_credential"),
    _initiated_by("security_credential", "initiator_password"),
]
_INITIATED_BY_NOBODY = {"properties": {"initiator": _NO, "initiator_password": _NO, "security_credential": _NO}}


class MpesaFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A merchant's keys to M-Pesa, from Safaricom's developer portal."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "env": one_of(["sandbox", "live"], title="Environment"),
        "consumer_key": _SECRET,
        "consumer_secret": _SECRET,
        "passkey": _SECRET,
        "security_credential": _SECRET,
        "initiator_password": matching(
            r"[!-~]{1,100}", "must be 1 to 100 printable ASCII characters without spaces", format="password"
        ),
        "shortcode": _SHORTCODE,
        "till_number": _SHORTCODE,
        "initiator": printable(100, examples=["testapi"]),
        "result_url": printable(500, format="uri", description="At this gateway, or a host that it allows."),
        "timeout_url": printable(500, format="uri", description="At this gateway, or a host that it allows."),
        "nominated_number": PHONE,
        "account_reference": printable(12),
    }

    TOGETHER: ClassVar[Mapping[str, Any]] = {
        # As a condition: clients' generators take a plain `anyOf` for three kinds of objects.
        "if": _INITIATED_BY_NOBODY,
        "else": {"anyOf": _INITIATED},
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

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"provider": one_of(["mpesa"], title="Provider")}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "provider": "mpesa",
        "mpesa": {
            "env": "sandbox",
            "consumer_key": "from-the-developer-portal",
            "consumer_secret": "from-the-developer-portal-too",
            "passkey": "of-the-online-shortcode",
            "shortcode": "174379",
        },
    }

    provider: str
    mpesa: MpesaFields


class MpesaSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored configuration; secrets by their last four characters."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"shortcode": "174379"}

    env: Environment
    consumer_key: Masked
    consumer_secret: Masked
    passkey: Masked
    shortcode: str
    till_number: str | None = None
    initiator: str | None = None
    security_credential: Masked | None = None
    result_url: str | None = None
    timeout_url: str | None = None
    nominated_number: str | None = None
    account_reference: str | None = None


class ProviderView(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that a merchant has configured."""

    provider: Provider
    config_summary: MpesaSummary


class RetiredView(msgspec.Struct, frozen=True, kw_only=True):
    """A shortcode that takes no new payments any more. ``open`` counts what it still has, such as ``payments``."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"shortcode": "600000", "open": {"payments": 2}}

    shortcode: str
    open: dict[str, int]


class ProviderMeta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the key's env still lacks, and the former shortcode where storing another one retired it."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"missing": []}

    missing: list[Missing]
    retired: RetiredView | None = None


class StoredProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider as it is configured now."""

    success: Yes = True
    data: ProviderView
    meta: ProviderMeta


class Providers(msgspec.Struct, frozen=True, kw_only=True):
    """The providers that are configured for the key's env."""

    success: Yes = True
    data: list[ProviderView]
    meta: ProviderMeta


class RemovedProvider(msgspec.Struct, frozen=True, kw_only=True):
    """The shortcode was retired: its secrets are erased once nothing of it is open, after 48 hours at the earliest."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"shortcode": "174379", "open": {"payments": 0}}

    deleted: Yes = True
    shortcode: str
    open: dict[str, int]


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was tried with the stored credentials. ``mitigation`` says what to do where it failed."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "name": "credentials",
        "ok": True,
        "message": "M-Pesa returned an access token for these keys",
    }

    name: str
    ok: bool
    message: str
    mitigation: str | None = None
    code: str | None = None


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the stored credentials work."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"ok": True}

    ok: bool
    checks: list[Check]


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """The API key that is asking."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"scopes": ["payments:read", "payments:write"]}

    id: KeyId
    env: Environment
    scopes: list[str]


class MerchantView(msgspec.Struct, frozen=True, kw_only=True):
    """The calling merchant and key. ``env`` is the key's, and ``providers`` are configured in that env."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"name": "Duka la Amina", "is_active": True, "providers": ["mpesa"]}

    id: MerchantId
    name: str
    env: Environment
    is_active: bool
    created_at: datetime
    key: KeyView
    providers: list[str]
