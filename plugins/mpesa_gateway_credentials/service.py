"""Stores, shows, checks and removes merchants' keys to M-Pesa."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mpesa_gateway.daraja.certificates import CertificateRefused, certificate_for
from mpesa_gateway.daraja.client import NotSent, Rejected
from mpesa_gateway.db.changes import Remembered
from mpesa_gateway.db.engine import Row
from mpesa_gateway.errors import Checks, Invalid, NotFound, ProviderNotConfigured, ProviderUnavailable, checking
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Caller, Env, Scope
from mpesa_gateway_credentials import tables
from mpesa_gateway_credentials.api import MpesaCredentials, check_env
from mpesa_gateway_credentials.schemas import (
    Check,
    KeyView,
    MerchantView,
    MpesaFields,
    MpesaSummary,
    ProviderView,
    SetProvider,
    Verification,
)
from mpesa_gateway_credentials.settings import CredentialsSettings

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

SECRET_FIELDS = ("consumer_key", "consumer_secret", "passkey", "security_credential")
"""The fields that are sealed at rest and masked everywhere."""


def aad(merchant_id: str, field: str) -> tuple[str, ...]:
    """What a secret field is sealed for."""
    return (merchant_id, "mpesa", field)


@dataclass(frozen=True)
class Stored:
    """A merchant's credentials, opened, with the merchant's name and when they were stored."""

    credentials: MpesaCredentials
    merchant_name: str
    stored_at: datetime


class CredentialStore:
    """The use cases of credentials."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._settings = gateway.settings(CredentialsSettings)
        # As they are stored, sealed: they are opened for each call that needs them, and not kept open.
        self._sealed: Remembered[Row] = Remembered(gateway.changes)
        gateway.changes.on("credentials", self._sealed.forget)

    async def store(self, caller: Caller, body: SetProvider) -> ProviderView:
        """Store a merchant's configuration, replacing what was there. Raises Invalid with every bad field."""
        fields, merchant_id, now = body.mpesa, caller.merchant_id, self._gateway.clock.now()
        nominated = self._check(caller, body)
        secrets = {name: getattr(fields, name) for name in SECRET_FIELDS}
        if fields.initiator_password is not None:
            secrets["security_credential"] = self._encrypt(caller.env, fields.initiator_password)
        sealed = {
            name: None if value is None else self._gateway.sealer.seal(value, aad=aad(merchant_id, name))
            for name, value in secrets.items()
        }
        async with self._db.transaction():
            await self._db.execute(
                tables.STORE,
                merchant_id,
                fields.env,
                sealed["consumer_key"],
                sealed["consumer_secret"],
                sealed["passkey"],
                fields.shortcode,
                fields.till_number,
                fields.initiator,
                sealed["security_credential"],
                fields.result_url,
                fields.timeout_url,
                nominated,
                fields.account_reference,
                now,
            )
            await self._gateway.merchants.set_env(merchant_id, caller.env)
            await self._gateway.audit.record(
                "credentials.stored",
                merchant_id=merchant_id,
                actor=caller.actor,
                subject_id=merchant_id,
                detail={"provider": "mpesa", "env": fields.env, "shortcode": fields.shortcode},
            )
        self._gateway.changes.tell("credentials", merchant_id)
        return _view(await self.get(merchant_id))

    async def get(self, merchant_id: str) -> MpesaCredentials:
        """See the port."""
        row = await self._sealed.get(merchant_id, lambda: self._db.fetchrow(tables.FIND, merchant_id))
        if row is None:
            raise ProviderNotConfigured("no M-Pesa credentials are stored: PUT /v1/merchant/providers first")
        return self._opened(row)

    async def passkey_of(self, merchant_id: str) -> Secret | None:
        """What the merchant's sandbox callbacks are signed with."""
        sealed = await self._db.fetchval(tables.FIND_PASSKEY, merchant_id)
        if sealed is None:
            return None
        return Secret(self._gateway.sealer.open(sealed, aad=aad(merchant_id, "passkey")))

    async def merchants_with_statements(self) -> list[str]:
        """See the port."""
        return [row["merchant_id"] for row in await self._db.fetch(tables.WITH_STATEMENTS)]

    async def providers(self, merchant_id: str) -> list[ProviderView]:
        """What is configured, masked."""
        row = await self._db.fetchrow(tables.FIND, merchant_id)
        return [] if row is None else [_view(self._opened(row))]

    async def page(self, before: str | None, limit: int) -> list[Stored]:
        """All merchants' credentials, those of the newest first, from just before the merchant with this id."""
        rows = await self._db.fetch(tables.LIST, before, limit)
        return [Stored(self._opened(row), row["name"], row["updated_at"]) for row in rows]

    async def remove(self, caller: Caller) -> None:
        """Forget the configuration. Payments that are under way still end by their callbacks. Raises NotFound."""
        async with self._db.transaction():
            if await self._db.fetchval(tables.REMOVE, caller.merchant_id) is None:
                raise NotFound("no M-Pesa credentials are stored")
            await self._gateway.merchants.set_env(caller.merchant_id, "sandbox")
            await self._gateway.audit.record(
                "credentials.removed",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=caller.merchant_id,
                detail={"provider": "mpesa"},
            )
        self._gateway.changes.tell("credentials", caller.merchant_id)

    async def verify(self, merchant_id: str, env: Env | None = None) -> Verification:
        """Fetch a token with the stored keys and say what works. ``env`` is that of the API key that asks, if one does.

        Raises ProviderNotConfigured, and ProviderUnavailable without an answer.
        """
        self._gateway.db.refuse_transaction("verifying credentials")
        credentials = await self.get(merchant_id)
        check_env(credentials, env)
        try:
            await self._gateway.daraja.verify(credentials.daraja)
        except Rejected as fault:
            failed = Check(
                name="credentials", ok=False, message=fault.meaning, mitigation=fault.mitigation, code=fault.code
            )
            return Verification(ok=False, checks=[failed])
        except NotSent as fault:
            raise ProviderUnavailable(
                "M-Pesa could not be reached: try again", retry_after=fault.retry_after or 5, provider=fault.provider
            ) from None
        return Verification(
            ok=True, checks=[Check(name="credentials", ok=True, message="M-Pesa gave an access token for these keys")]
        )

    async def me(self, caller: Caller) -> MerchantView:
        """Who is asking."""
        merchant = await self._gateway.merchants.require(caller.merchant_id)
        return MerchantView(
            id=merchant.merchant_id,
            name=merchant.name,
            env=merchant.env,
            is_active=merchant.is_active,
            created_at=merchant.created_at,
            key=KeyView(id=caller.key_id, env=caller.env, scopes=sorted(map(Scope, caller.scopes))),
            providers=[view.provider for view in await self.providers(caller.merchant_id)],
        )

    def _check(self, caller: Caller, body: SetProvider) -> str | None:
        """Raise Invalid for what the fields cannot tell by themselves; gives the nominated number in its one form."""
        fields = body.mpesa
        with checking() as checks:
            self._check_env(checks, caller, fields)
            self._check_initiator(checks, fields)
            for name in ("result_url", "timeout_url"):
                value = getattr(fields, name)
                if value is not None:
                    self._check_url(checks, f"mpesa.{name}", value)
        return None if fields.nominated_number is None else str(Msisdn.parse(fields.nominated_number))

    def _encrypt(self, env: Env, password: str) -> str:
        """The password as Safaricom wants it; only this is kept. Raises Invalid without a usable certificate."""
        try:
            certificate = certificate_for(self._gateway.config.daraja, env)
            certificate.check_time(self._gateway.clock.now())
        except CertificateRefused as problem:
            raise Invalid.field_error(
                "mpesa.initiator_password",
                f"it cannot be encrypted here ({problem}); or send security_credential, encrypted by yourself",
            ) from None
        return certificate.encrypt(Secret(password)).reveal()

    def _check_initiator(self, checks: Checks, fields: MpesaFields) -> None:
        has_secret = fields.security_credential is not None or fields.initiator_password is not None
        if fields.security_credential is not None and fields.initiator_password is not None:
            checks.fail("mpesa.initiator_password", "send this or security_credential, not both")
        if fields.env == "live" or has_secret or fields.initiator is not None:
            if fields.initiator is None:
                checks.fail("mpesa.initiator", "is required for status checks and refunds, with initiator_password")
            if not has_secret:
                checks.fail("mpesa.initiator_password", "is required with initiator (or security_credential)")
        if fields.env == "live" and fields.nominated_number is None:
            checks.fail("mpesa.nominated_number", "is required for live: reconciliation cannot work without it")

    def _check_env(self, checks: Checks, caller: Caller, fields: MpesaFields) -> None:
        if fields.env != caller.env:
            prefix = "sk_live_" if fields.env == "live" else "sk_test_"
            checks.fail("mpesa.env", f"{fields.env} credentials are stored with a key that starts with {prefix}")
        elif fields.env == "live":
            if "simulator" in (plugin.name for plugin in self._gateway.plugins):
                checks.fail("mpesa.env", "this gateway runs the simulator, which never stands beside live merchants")
            if urlsplit(self._gateway.config.public_url).scheme != "https":
                checks.fail(
                    "mpesa.env", "live needs the gateway's public_url to be https: M-Pesa calls nothing else back"
                )

    def _check_url(self, checks: Checks, field: str, url: str) -> None:
        own = urlsplit(self._gateway.config.public_url)
        try:
            parts = urlsplit(url)
            is_ours = (parts.scheme, parts.hostname, parts.port) == (own.scheme, own.hostname, own.port)
        except ValueError:
            checks.fail(field, "must be an https address")
            return
        is_allowed = parts.scheme == "https" and parts.hostname in self._settings.allowed_callback_hosts
        if not (is_ours or is_allowed) or len(url) > 500 or not url.isascii() or not url.isprintable():
            checks.fail(
                field,
                f"its host must be this gateway's ({own.netloc}) or allowed in its configuration "
                "(credentials.allowed_callback_hosts); leave it out to use the gateway's own address",
            )

    def _opened(self, row: Row) -> MpesaCredentials:
        values: dict[str, Any] = {name: row[name] for name in MpesaCredentials.__dataclass_fields__}
        for name in SECRET_FIELDS:
            if values[name] is not None:
                values[name] = Secret(self._gateway.sealer.open(values[name], aad=aad(row["merchant_id"], name)))
        if values["nominated_number"] is not None:
            values["nominated_number"] = Msisdn(values["nominated_number"])
        return MpesaCredentials(**values)


def _view(credentials: MpesaCredentials) -> ProviderView:
    values: dict[str, Any] = {}
    for name in MpesaSummary.__struct_fields__:
        value = getattr(credentials, name)
        values[name] = value.masked if isinstance(value, Secret | Msisdn) else value
    return ProviderView(provider="mpesa", config_summary=MpesaSummary(**values))
