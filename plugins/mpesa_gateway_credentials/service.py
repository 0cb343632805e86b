"""Stores, shows, checks and retires the credentials of merchants' shortcodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from mpesa_gateway.daraja.certificates import CertificateRefused, certificate_for
from mpesa_gateway.daraja.client import NotSent, Rejected
from mpesa_gateway.db.changes import Remembered
from mpesa_gateway.db.engine import Row
from mpesa_gateway.errors import (
    Checks,
    Conflict,
    Invalid,
    NotFound,
    ProviderNotConfigured,
    ProviderUnavailable,
    checking,
)
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.readiness import Missing, missing_of
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Caller, Env, key_prefix
from mpesa_gateway_credentials import tables
from mpesa_gateway_credentials.api import MpesaCredentials, OpenWork, StatementSource
from mpesa_gateway_credentials.schemas import (
    Check,
    KeyView,
    MerchantView,
    MpesaFields,
    MpesaSummary,
    ProviderView,
    RetiredView,
    SetProvider,
    Verification,
)
from mpesa_gateway_credentials.settings import CredentialsSettings

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

SECRET_FIELDS = ("consumer_key", "consumer_secret", "passkey", "security_credential")
"""The fields that are sealed at rest and masked everywhere."""

KEPT = timedelta(hours=48)
"""How long the secrets of a retired shortcode are kept at least: as long as its last payments are asked about."""

_WIPED_AT_ONCE = 200
"""Retired shortcodes that one run of the maintenance job looks at."""

_NO_CREDENTIALS = (
    "this merchant has stored no live credentials for {}: it stores them first, with PUT /v1/merchant/providers"
)

_OPENED = tuple(name for name in MpesaCredentials.__dataclass_fields__ if name != "shortcode")


def aad(merchant_id: str, env: str, number: str, field: str) -> tuple[str, ...]:
    """What a secret field is sealed for."""
    return (merchant_id, "mpesa", env, number, field)


@dataclass(frozen=True)
class Stored:
    """The opened credentials of a shortcode that is not wiped, with its merchant's name."""

    credentials: MpesaCredentials
    merchant_name: str


@dataclass(frozen=True)
class UseView:
    """A merchant's right to a live receiver."""

    merchant_id: str
    name: str
    is_owner: bool
    may_use: bool
    retired_at: datetime | None


@dataclass(frozen=True)
class StoreResult:
    """The answer to storing: what is stored, what the env still lacks, what was retired."""

    provider: ProviderView
    missing: list[Missing]
    retired: RetiredView | None


class CredentialStore:
    """The use cases of credentials."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._settings = gateway.settings(CredentialsSettings)
        # Rows as they are stored, sealed: they are opened for each call that needs them, and not kept open.
        self._usable: Remembered[list[Row]] = Remembered(gateway.changes)
        self._by_id: Remembered[Row] = Remembered(gateway.changes)
        gateway.changes.on("credentials", self._usable.forget)
        gateway.changes.on("shortcode", self._by_id.forget)
        gateway.changes.on("receiver", self._usable.forget_all)
        gateway.changes.on("receiver", self._by_id.forget_all)

    # -- storing and retiring -------------------------------------------------------------------------------------

    async def store(self, caller: Caller, body: SetProvider) -> StoreResult:
        """Store the default shortcode of the caller's env, and retire the former one. Raises Invalid for bad fields."""
        fields, merchant_id, env, now = body.mpesa, caller.merchant_id, caller.env, self._gateway.clock.now()
        nominated = self._check(caller, body)
        number = fields.till_number or fields.shortcode
        store_number = None if fields.till_number is None else fields.shortcode
        secrets = {name: getattr(fields, name) for name in SECRET_FIELDS}
        if fields.initiator_password is not None:
            secrets["security_credential"] = self._encrypt(env, fields.initiator_password)
        sealed = {
            name: None if value is None else self._gateway.sealer.seal(value, aad=aad(merchant_id, env, number, name))
            for name, value in secrets.items()
        }
        async with self._db.transaction():
            await self._db.execute(tables.LOCK_MERCHANT, merchant_id)
            receiver_id = await self._add_receiver(merchant_id, env, number, is_till=store_number is not None)
            retired = await self._retire(merchant_id, env, receiver_id, now)
            shortcode_id = await self._db.fetchval(
                tables.STORE,
                self._gateway.ids.new("shc"),
                merchant_id,
                env,
                receiver_id,
                store_number,
                sealed["consumer_key"],
                sealed["consumer_secret"],
                sealed["passkey"],
                fields.initiator,
                sealed["security_credential"],
                fields.result_url,
                fields.timeout_url,
                nominated,
                fields.account_reference,
                now,
            )
            await self._note_envs(merchant_id)
            await self._gateway.audit.record(
                "credentials.stored",
                merchant_id=merchant_id,
                actor=caller.actor,
                subject_id=merchant_id,
                detail={"provider": "mpesa", "env": env, "shortcode": number}
                | ({} if retired is None else {"retired": retired["number"]}),
            )
        self._tell(merchant_id, shortcode_id, None if retired is None else retired["shortcode_id"])
        return StoreResult(
            _view(await self.get(merchant_id, env)),
            await missing_of(self._gateway, merchant_id, env),
            None if retired is None else await self._retired_view(retired),
        )

    async def _add_receiver(self, merchant_id: str, env: Env, number: str, *, is_till: bool) -> str:
        kind, now = "till" if is_till else "paybill", self._gateway.clock.now()
        await self._db.execute(tables.ADD_RECEIVER, self._gateway.ids.new("rcv"), env, number, kind, now, merchant_id)
        row = await self._db.fetchrow(tables.RECEIVER, env, number)
        if row is None:
            raise RuntimeError("the receiver was not written")
        return str(row["receiver_id"])

    async def _retire(self, merchant_id: str, env: Env, receiver_id: str | None, now: datetime) -> Row | None:
        """Retire the default shortcode unless it is of this receiver; returns it. Needs an open transaction."""
        shortcode_id = await self._db.fetchval(tables.RETIRE_DEFAULT, merchant_id, env, receiver_id, now)
        return None if shortcode_id is None else await self._db.fetchrow(tables.FIND, shortcode_id)

    async def _note_envs(self, merchant_id: str) -> None:
        await self._gateway.merchants.set_envs(merchant_id, await self._db.fetchval(tables.ENVS, merchant_id))

    def _tell(self, merchant_id: str, *shortcode_ids: str | None) -> None:
        """Forget here what was remembered; the triggers tell the other processes."""
        self._gateway.changes.tell("credentials", merchant_id)
        for shortcode_id in shortcode_ids:
            if shortcode_id is not None:
                self._gateway.changes.tell("shortcode", shortcode_id)

    async def retire(self, caller: Caller) -> RetiredView:
        """Retire the default shortcode of the caller's env: no new payments. Raises NotFound."""
        async with self._db.transaction():
            await self._db.execute(tables.LOCK_MERCHANT, caller.merchant_id)
            retired = await self._retire(caller.merchant_id, caller.env, None, self._gateway.clock.now())
            if retired is None:
                raise NotFound(f"no M-Pesa credentials for {caller.env} are stored")
            await self._gateway.audit.record(
                "credentials.removed",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=caller.merchant_id,
                detail={"provider": "mpesa", "env": caller.env, "shortcode": retired["number"]},
            )
        self._tell(caller.merchant_id, retired["shortcode_id"])
        return await self._retired_view(retired)

    async def _retired_view(self, row: Row) -> RetiredView:
        return RetiredView(shortcode=row["number"], open=(await self._open([row["shortcode_id"]]))[row["shortcode_id"]])

    async def _open(self, shortcode_ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """What is open of each shortcode, by the plural of what it is; every kind is counted, 0 too."""
        counts: dict[str, dict[str, int]] = {shortcode_id: {} for shortcode_id in shortcode_ids}
        for work in self._gateway.contributed(OpenWork):
            found = await work.count(self._gateway, shortcode_ids)
            for shortcode_id in shortcode_ids:
                counts[shortcode_id][work.what] = found.get(shortcode_id, 0)
        return counts

    async def wipe_retired(self) -> int:
        """Erase the secrets of shortcodes that were retired 48 h ago and have nothing open; returns their number."""
        now, wiped = self._gateway.clock.now(), 0
        rows = await self._db.fetch(tables.TO_WIPE, now - KEPT, _WIPED_AT_ONCE)
        still_open = await self._open([row["shortcode_id"] for row in rows])
        for row in rows:
            if any(still_open[row["shortcode_id"]].values()):
                continue
            async with self._db.transaction():
                await self._db.execute(tables.LOCK_MERCHANT, row["merchant_id"])
                if await self._db.fetchval(tables.WIPE, row["shortcode_id"], now - KEPT, now) is None:
                    continue
                await self._note_envs(row["merchant_id"])
                await self._gateway.audit.record(
                    "credentials.wiped",
                    merchant_id=row["merchant_id"],
                    actor="system",
                    subject_id=row["shortcode_id"],
                )
            self._tell(row["merchant_id"], row["shortcode_id"])
            wiped += 1
        return wiped

    # -- the port -------------------------------------------------------------------------------------------------

    async def get(self, merchant_id: str, env: Env, shortcode: str | None = None) -> MpesaCredentials:
        """See the port."""
        rows = await self._usable.get(merchant_id, lambda: self._db.fetch(tables.USABLE, merchant_id))
        for row in rows or ():
            is_meant = row["is_default"] if shortcode is None else row["number"] == shortcode
            if row["env"] == env and is_meant:
                return self._opened(row)
        whose = "" if shortcode is None else f" of shortcode {shortcode}"
        raise ProviderNotConfigured(
            f"no M-Pesa credentials{whose} for {env} are stored: PUT /v1/merchant/providers with a key that starts "
            f"with {key_prefix(env)}"
        )

    async def of_shortcode(self, shortcode_id: str) -> MpesaCredentials:
        """See the port."""
        row = await self._by_id.get(shortcode_id, lambda: self._db.fetchrow(tables.FIND, shortcode_id))
        if row is None:
            raise ProviderNotConfigured("there is no such shortcode")
        if row["wiped_at"] is not None:
            raise ProviderNotConfigured(
                f"the credentials of {row['env']} shortcode {row['number']} were retired and erased: store them again "
                f"with PUT /v1/merchant/providers and a key that starts with {key_prefix(row['env'])}"
            )
        return self._opened(row)

    async def accepted(self, credentials: MpesaCredentials) -> bool:
        """See the port."""
        if not credentials.wants_owner:
            return credentials.is_owner
        if await self._db.fetchval(tables.OWN, credentials.receiver_id, credentials.merchant_id) is None:
            return bool(await self._db.fetchval(tables.OWNER, credentials.receiver_id) == credentials.merchant_id)
        await self._gateway.audit.record(
            "receiver.owned",
            merchant_id=credentials.merchant_id,
            actor="system",
            subject_id=credentials.receiver_id,
            detail={"env": credentials.env, "shortcode": credentials.shortcode},
        )
        return True

    async def statement_sources(self) -> list[StatementSource]:
        """See the port."""
        rows = await self._db.fetch(tables.WITH_STATEMENTS)
        return [
            StatementSource(row["shortcode_id"], row["merchant_id"], row["env"], row["retired_at"] is not None)
            for row in rows
        ]

    async def passkeys_of(self, merchant_id: str, env: Env) -> list[Secret]:
        """The passkeys of the merchant's shortcodes in an env, retired ones too, the usable ones first."""
        return [self._secret(row, "passkey") for row in await self._db.fetch(tables.PASSKEYS, merchant_id, env)]

    # -- reading and trying ---------------------------------------------------------------------------------------

    async def providers(self, merchant_id: str, env: Env) -> list[ProviderView]:
        """What is configured in an env, masked."""
        try:
            return [_view(await self.get(merchant_id, env))]
        except ProviderNotConfigured:
            return []

    async def shortcodes(self, merchant_id: str, env: Env) -> list[MpesaCredentials]:
        """The merchant's shortcodes in an env that have their secrets, the usable ones first."""
        return [self._opened(row) for row in await self._db.fetch(tables.OF_ENV, merchant_id, env)]

    async def page(self, before: str | None, limit: int) -> list[Stored]:
        """All merchants' shortcodes that have their secrets, the newest first, from just before the one given."""
        rows = await self._db.fetch(tables.LIST, before, limit)
        return [Stored(self._opened(row), row["merchant_name"]) for row in rows]

    async def verify(self, merchant_id: str, env: Env) -> Verification:
        """Fetch a token with the default shortcode's keys and report what works.

        Raises ProviderNotConfigured, and ProviderUnavailable without an answer.
        """
        self._gateway.db.refuse_transaction("verifying credentials")
        credentials = await self.get(merchant_id, env)
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
        """The merchant and its configuration in the env of the calling key."""
        merchant = await self._gateway.merchants.require(caller.merchant_id)
        return MerchantView(
            id=merchant.merchant_id,
            name=merchant.name,
            env=caller.env,
            is_active=merchant.is_active,
            created_at=merchant.created_at,
            key=KeyView(id=caller.key_id, env=caller.env, scopes=sorted(caller.scopes)),
            providers=[view.provider for view in await self.providers(caller.merchant_id, caller.env)],
        )

    # -- ownership ------------------------------------------------------------------------------------------------

    async def move_receiver(self, number: str, merchant_id: str, *, actor: str) -> None:
        """Make a merchant the owner of a live receiver. Raises NotFound."""
        await self._gateway.merchants.require(merchant_id)
        async with self._db.transaction():
            receiver = await self._live_receiver(number)
            if not await self._db.fetchval(tables.HAS_SHORTCODE, merchant_id, receiver["receiver_id"]):
                raise Conflict(_NO_CREDENTIALS.format(number))
            await self._db.execute(tables.MOVE_OWNER, receiver["receiver_id"], merchant_id)
            await self._gateway.audit.record(
                "receiver.moved",
                merchant_id=merchant_id,
                actor=actor,
                subject_id=receiver["receiver_id"],
                detail={"shortcode": number, "from": receiver["owner_id"]},
            )
        self._gateway.changes.tell("receiver", receiver["receiver_id"])

    async def allow_use(self, number: str, merchant_id: str, *, is_allowed: bool, actor: str) -> None:
        """Let a merchant push at a live receiver that another one owns, or end that. Raises NotFound and Conflict."""
        await self._gateway.merchants.require(merchant_id)
        now = self._gateway.clock.now()
        async with self._db.transaction():
            receiver = await self._live_receiver(number)
            found = await self._db.fetchval(tables.ALLOW, merchant_id, receiver["receiver_id"], is_allowed, now)
            if found is None:
                raise Conflict(_NO_CREDENTIALS.format(number))
            await self._gateway.audit.record(
                "receiver.use_allowed" if is_allowed else "receiver.use_ended",
                merchant_id=merchant_id,
                actor=actor,
                subject_id=receiver["receiver_id"],
                detail={"shortcode": number},
            )
        self._tell(merchant_id, found)

    async def users(self, number: str) -> list[UseView]:
        """The merchants that have, or had, live credentials for a receiver. Raises NotFound."""
        rows = await self._db.fetch(tables.USERS, number)
        if not rows:
            raise NotFound(f"no merchant has stored live credentials for {number}")
        return [
            UseView(
                row["merchant_id"],
                row["name"],
                is_owner=bool(row["is_owner"]),
                may_use=row["is_owner"] is not False or row["is_allowed"],
                retired_at=row["retired_at"],
            )
            for row in rows
        ]

    async def _live_receiver(self, number: str) -> Row:
        row = await self._db.fetchrow(f"{tables.RECEIVER} FOR UPDATE", "live", number)
        if row is None:
            raise NotFound(f"no merchant has stored live credentials for {number}")
        return row

    # -- what is checked ------------------------------------------------------------------------------------------

    def _check(self, caller: Caller, body: SetProvider) -> str | None:
        """Raise Invalid for what the fields cannot tell by themselves; returns the nominated number normalised."""
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
        except CertificateRefused as problem:
            raise Invalid.field_error(
                "mpesa.initiator_password",
                f"it cannot be encrypted here ({problem}); or send security_credential, encrypted by yourself",
            ) from None
        outside = certificate.time_problem(self._gateway.clock.now())
        if outside is not None:
            log.warning("certificate_outside_its_time", env=env, problem=outside)
        return certificate.encrypt(Secret(password)).reveal()

    def _check_initiator(self, checks: Checks, fields: MpesaFields) -> None:
        has_secret = fields.security_credential is not None or fields.initiator_password is not None
        if fields.security_credential is not None and fields.initiator_password is not None:
            checks.fail("mpesa.initiator_password", "send this or security_credential, not both")
        if has_secret and fields.initiator is None:
            checks.fail("mpesa.initiator", "is required with initiator_password and security_credential")
        if fields.initiator is not None and not has_secret:
            checks.fail("mpesa.initiator_password", "is required with initiator (or security_credential)")

    def _check_env(self, checks: Checks, caller: Caller, fields: MpesaFields) -> None:
        if fields.env != caller.env:
            checks.fail(
                "mpesa.env",
                f"{fields.env} credentials are stored with a key that starts with "
                f"{key_prefix('live' if fields.env == 'live' else 'sandbox')}; this key starts with "
                f"{key_prefix(caller.env)} and stores {caller.env} credentials only. Nothing was changed",
            )
        elif fields.env == "live" and urlsplit(self._gateway.config.public_url).scheme != "https":
            checks.fail("mpesa.env", "live needs the gateway's public_url to be https: M-Pesa calls nothing else back")

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
        values: dict[str, Any] = {name: row[name] for name in _OPENED}
        for name in SECRET_FIELDS:
            if values[name] is not None:
                values[name] = self._secret(row, name)
        if values["nominated_number"] is not None:
            values["nominated_number"] = Msisdn(values["nominated_number"])
        return MpesaCredentials(shortcode=row["number"], **values)

    def _secret(self, row: Row, name: str) -> Secret:
        bound = aad(row["merchant_id"], row["env"], row["number"], name)
        return Secret(self._gateway.sealer.open(row[name], aad=bound))


def _view(credentials: MpesaCredentials) -> ProviderView:
    """As [spec] has it: with a till, ``shortcode`` is the store number."""
    wire = {"shortcode": credentials.daraja.shortcode, "till_number": credentials.daraja.till_number}
    values: dict[str, Any] = {}
    for name in MpesaSummary.__struct_fields__:
        value = wire[name] if name in wire else getattr(credentials, name)
        values[name] = value.masked if isinstance(value, Secret | Msisdn) else value
    return ProviderView(provider="mpesa", config_summary=MpesaSummary(**values))
