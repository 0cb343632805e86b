"""Requests and responses of the credentials API; secrets are masked in responses."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.admin import NAME
from mpesa_gateway.http.field_rules import PHONE, matching, one_of, printable
from mpesa_gateway.http.fields import KeyId, Masked, MerchantId, Provider, Yes, named
from mpesa_gateway.readiness import Missing
from mpesa_gateway.security.scopes import Environment

_SECRET = matching(r"[!-~]{8,1024}", "must be 8 to 1024 printable ASCII characters without spaces", format="password")
_SHORTCODE = matching(r"[0-9]{5,7}", "must be 5 to 7 digits", examples=["174379"])


_NO, _TEXT = {"type": "null"}, {"type": "string"}


def _initiated_by(secret: str, other: str) -> dict[str, Any]:
    return {"required": ["initiator", secret], "properties": {"initiator": _TEXT, secret: _TEXT, other: _NO}}


_INITIATED = [
    _initiated_by("initiator_password", "security_credential"),
    _initiated_by("security_credential", "initiator_password"),
]
_WITHOUT_INITIATOR = {"properties": {"initiator": _NO, "initiator_password": _NO, "security_credential": _NO}}


class MpesaFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A merchant's M-Pesa keys, from Safaricom's developer portal."""

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
        "result_url": printable(500, format="uri", description="At this gateway, or at an allowed host."),
        "timeout_url": printable(500, format="uri", description="At this gateway, or at an allowed host."),
        "nominated_number": PHONE,
        "account_reference": printable(12),
    }

    TOGETHER: ClassVar[Mapping[str, Any]] = {
        # A condition, since client generators create three object types from a plain `anyOf`.
        "if": _WITHOUT_INITIATOR,
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


class ShortcodeFields(MpesaFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of one shortcode, as in `PUT /v1/merchant/providers`; omitted fields are removed.

    For a till, `shortcode` is the store number and `till_number` the number that payers pay. `is_default` makes it the
    default; the first shortcode of an env is the default anyway.
    """

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        **MpesaFields.RULES,
        "kind": one_of(["paybill", "till"], title="ReceiverKind"),
        "name": NAME,
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "env": "sandbox",
        "consumer_key": "from-the-developer-portal",
        "consumer_secret": "from-the-developer-portal-too",
        "passkey": "of-the-online-shortcode",
        "shortcode": "600000",
        "kind": "paybill",
        "name": "Westlands",
    }

    kind: str | None = None
    name: str | None = None
    is_default: bool = False

    def check_kind(self) -> None:
        """Raises InvalidFields."""
        if self.kind == "till" and self.till_number is None:
            raise InvalidFields.field_error("till_number", "is required for a till: the number that payers pay")
        if self.kind == "paybill" and self.till_number is not None:
            raise InvalidFields.field_error("till_number", "is only for a till: leave it out, or send kind till")


class SetProvider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of a provider; omitted fields are removed."""

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
    """A stored configuration, with secrets masked except for their last four characters."""

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
    """A configured provider."""

    provider: Provider
    config_summary: MpesaSummary


class ShortcodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A shortcode of the merchant. ``shortcode`` is the number that payers pay; ``config_summary`` is as it was sent.

    ``verified_at`` is the time of the last token that M-Pesa returned for its keys.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "shortcode": "600000",
        "name": "Westlands",
        "is_default": False,
        "retired_at": None,
    }

    env: Environment
    shortcode: str
    kind: Annotated[Literal["paybill", "till"], named("ReceiverKind")]
    name: str | None
    is_default: bool
    config_summary: MpesaSummary
    created_at: datetime
    updated_at: datetime
    verified_at: datetime | None
    retired_at: datetime | None


class ShortcodeWithWork(ShortcodeView, frozen=True, kw_only=True):
    """A shortcode with its open work, which keeps the secrets of a retired one."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {**ShortcodeView.EXAMPLE, "open": {"payments": 2}}

    open: dict[str, int]


class RetiredView(msgspec.Struct, frozen=True, kw_only=True):
    """A retired shortcode: no new payments. ``open`` counts its open work, such as ``payments``."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"shortcode": "600000", "open": {"payments": 2}}

    shortcode: str
    open: dict[str, int]


class ProviderMeta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Missing parts of the env's configuration, and the shortcode that this request retired."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"missing": []}

    missing: list[Missing]
    retired: RetiredView | None = None


class StoredProvider(msgspec.Struct, frozen=True, kw_only=True):
    """The new configuration of a provider."""

    success: Yes = True
    data: ProviderView
    meta: ProviderMeta


class StoredShortcode(msgspec.Struct, frozen=True, kw_only=True):
    """The new configuration of a shortcode."""

    success: Yes = True
    data: ShortcodeView
    meta: ProviderMeta


class ShownShortcode(msgspec.Struct, frozen=True, kw_only=True):
    """One shortcode. ``meta.missing`` lists what does not work yet in its env, and how to fix it."""

    success: Yes = True
    data: ShortcodeWithWork
    meta: ProviderMeta


class Providers(msgspec.Struct, frozen=True, kw_only=True):
    """The configured providers of the key's env."""

    success: Yes = True
    data: list[ProviderView]
    meta: ProviderMeta


class RemovedProvider(msgspec.Struct, frozen=True, kw_only=True):
    """The shortcode was retired. Its secrets are erased once it has no open work, after 48 hours at the earliest."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"shortcode": "174379", "open": {"payments": 0}}

    deleted: Yes = True
    shortcode: str
    open: dict[str, int]


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A check of the stored credentials. ``mitigation`` is the next step after a failure."""

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
    """The result of checking the stored credentials."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"ok": True}

    ok: bool
    checks: list[Check]


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """The API key of the request."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"scopes": ["payments:read", "payments:write"]}

    id: KeyId
    env: Environment
    scopes: list[str]


class MerchantView(msgspec.Struct, frozen=True, kw_only=True):
    """The calling merchant and key. ``env`` is the key's; ``providers`` are configured in it."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"name": "Duka la Amina", "is_active": True, "providers": ["mpesa"]}

    id: MerchantId
    name: str
    env: Environment
    is_active: bool
    created_at: datetime
    key: KeyView
    providers: list[str]
