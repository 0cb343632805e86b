"""Use cases of credentials."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import structlog
from piccolo.columns.combination import Where

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.certificates import Certificate, CertificateError
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.invalidation import InvalidationListener
from mpesa_gateway.errors import FieldChecks, InvalidFields, NotFound, check_fields
from mpesa_gateway.ids import Ids
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.readiness import Missing
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway.security.scopes import Caller, Env, key_prefix
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway_credentials import tables
from mpesa_gateway_credentials.reader import SECRET_FIELDS, CredentialReader, aad, provider_view
from mpesa_gateway_credentials.schemas import MpesaFields, ProviderView, RetiredView, SetProvider
from mpesa_gateway_credentials.settings import CredentialsSettings
from mpesa_gateway_credentials.tables import ReceiverRow, ShortcodeRow

log = structlog.get_logger(__name__)

KEPT = timedelta(hours=48)
"""Minimum time before secrets are erased: last payments may need status queries."""

_WIPED_AT_ONCE = 200
"""Retired shortcodes per run of the job."""


@dataclass(frozen=True)
class StoreResult:
    """The stored configuration, its gaps, and the retired shortcode."""

    provider: ProviderView
    missing: list[Missing]
    retired: RetiredView | None


class CredentialStore:
    """Stores, retires and erases credentials."""

    def __init__(
        self,
        *,
        db: Database,
        changes: InvalidationListener,
        clock: Clock,
        ids: Ids,
        audit: Audit,
        merchants: Merchants,
        sealer: Sealer,
        settings: CredentialsSettings,
        certificate_of: Callable[[Env], Certificate],
        public_url: str,
        reader: CredentialReader,
        missing_of: Callable[[str, Env], Awaitable[list[Missing]]],
        open_work: Mapping[str, Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]],
    ) -> None:
        """``certificate_of`` returns the certificate for an env's passwords, or raises CertificateError.

        ``open_work`` counts the open work of shortcodes, by its plural noun.
        """
        self._db = db
        self._changes = changes
        self._clock = clock
        self._ids = ids
        self._audit = audit
        self._merchants = merchants
        self._sealer = sealer
        self._settings = settings
        self._certificate_of = certificate_of
        self._public_url = public_url
        self._reader = reader
        self._missing_of = missing_of
        self._open_work = open_work

    async def store(self, caller: Caller, body: SetProvider) -> StoreResult:
        """Store the default shortcode of the caller's env and retire the former one. Raises InvalidFields."""
        fields, merchant_id, env, now = body.mpesa, caller.merchant_id, caller.env, self._clock.now()
        nominated = self._check(caller, body)
        number = fields.till_number or fields.shortcode
        store_number = None if fields.till_number is None else fields.shortcode
        secrets = {name: getattr(fields, name) for name in SECRET_FIELDS}
        if fields.initiator_password is not None:
            secrets["security_credential"] = self._encrypt(env, fields.initiator_password)
        sealed = {
            name: None if value is None else self._sealer.seal(value, aad=aad(merchant_id, env, number, name))
            for name, value in secrets.items()
        }
        async with self._db.transaction():
            await self._db.execute(tables.LOCK_MERCHANT, merchant_id)
            receiver_id = await self._add_receiver(merchant_id, env, number, is_till=store_number is not None)
            retired = await self._retire(merchant_id, env, receiver_id, now)
            shortcode_id = await self._db.fetchval(
                *tables.STORE.bind(
                    shortcode_id=self._ids.new("shc"),
                    merchant_id=merchant_id,
                    env=env,
                    receiver_id=receiver_id,
                    store_number=store_number,
                    initiator=fields.initiator,
                    result_url=fields.result_url,
                    timeout_url=fields.timeout_url,
                    nominated_number=nominated,
                    account_reference=fields.account_reference,
                    now=now,
                    **sealed,
                )
            )
            await self._note_envs(merchant_id)
            await self._audit.record(
                "credentials.stored",
                merchant_id=merchant_id,
                actor=caller.actor,
                subject_id=merchant_id,
                detail={"provider": "mpesa", "env": env, "shortcode": number}
                | ({} if retired is None else {"retired": retired["number"]}),
            )
        self._evict(merchant_id, shortcode_id, None if retired is None else retired["shortcode_id"])
        return StoreResult(
            provider_view(await self._reader.get(merchant_id, env)),
            await self._missing_of(merchant_id, env),
            None if retired is None else await self._retired_view(retired),
        )

    async def _add_receiver(self, merchant_id: str, env: Env, number: str, *, is_till: bool) -> str:
        kind, now = "till" if is_till else "paybill", self._clock.now()
        await self._db.execute(tables.ADD_RECEIVER, self._ids.new("rcv"), env, number, kind, now, merchant_id)
        row = await self._db.run(
            ReceiverRow.select(ReceiverRow.receiver_id)
            .where(ReceiverRow.env == env, ReceiverRow.number == number)
            .first()
        )
        if row is None:
            raise RuntimeError("the receiver was not written")
        return str(row["receiver_id"])

    async def _retire(self, merchant_id: str, env: Env, receiver_id: str | None, now: datetime) -> Row | None:
        """Retire the default shortcode unless it has this receiver; returns it. Needs an open transaction."""
        retired = await self._db.run(
            ShortcodeRow.update(
                {ShortcodeRow.retired_at: now, ShortcodeRow.is_default: False, ShortcodeRow.updated_at: now}
            )
            .where(
                ShortcodeRow.merchant_id == merchant_id,
                ShortcodeRow.env == env,
                ShortcodeRow.is_default.eq(value=True),
                ShortcodeRow.retired_at.is_null(),
                *(() if receiver_id is None else (ShortcodeRow.receiver_id != receiver_id,)),
            )
            .returning(ShortcodeRow.shortcode_id)
        )
        return await self._db.fetchrow(tables.FIND, retired[0]["shortcode_id"]) if retired else None

    async def _note_envs(self, merchant_id: str) -> None:
        await self._merchants.set_envs(merchant_id, await self._db.fetchval(tables.ENVS, merchant_id))

    def _evict(self, merchant_id: str, *shortcode_ids: str | None) -> None:
        # For this process; triggers notify the others.
        self._changes.notify("credentials", merchant_id)
        for shortcode_id in shortcode_ids:
            if shortcode_id is not None:
                self._changes.notify("shortcode", shortcode_id)

    async def retire(self, caller: Caller) -> RetiredView:
        """Retire the default shortcode of the caller's env. Raises NotFound."""
        async with self._db.transaction():
            await self._db.execute(tables.LOCK_MERCHANT, caller.merchant_id)
            retired = await self._retire(caller.merchant_id, caller.env, None, self._clock.now())
            if retired is None:
                raise NotFound(f"no M-Pesa credentials for {caller.env} are stored")
            await self._audit.record(
                "credentials.removed",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=caller.merchant_id,
                detail={"provider": "mpesa", "env": caller.env, "shortcode": retired["number"]},
            )
        self._evict(caller.merchant_id, retired["shortcode_id"])
        return await self._retired_view(retired)

    async def _retired_view(self, row: Row) -> RetiredView:
        return RetiredView(
            shortcode=row["number"], open=(await self._count_open([row["shortcode_id"]]))[row["shortcode_id"]]
        )

    async def wipe_retired(self) -> int:
        """Erase secrets of shortcodes retired 48 h ago without open work; returns their number."""
        now, wiped = self._clock.now(), 0
        rows = await self._db.run(
            ShortcodeRow.select(ShortcodeRow.shortcode_id, ShortcodeRow.merchant_id)
            .where(*_to_wipe(now))
            .order_by(ShortcodeRow.retired_at)
            .limit(_WIPED_AT_ONCE)
        )
        still_open = await self._count_open([row["shortcode_id"] for row in rows])
        for row in rows:
            if any(still_open[row["shortcode_id"]].values()):
                continue
            async with self._db.transaction():
                await self._db.execute(tables.LOCK_MERCHANT, row["merchant_id"])
                if not await self._wipe(row["shortcode_id"], now):
                    continue
                await self._note_envs(row["merchant_id"])
                await self._audit.record(
                    "credentials.wiped",
                    merchant_id=row["merchant_id"],
                    actor="system",
                    subject_id=row["shortcode_id"],
                )
            self._evict(row["merchant_id"], row["shortcode_id"])
            wiped += 1
        return wiped

    async def _wipe(self, shortcode_id: str, now: datetime) -> bool:
        wiped = await self._db.run(
            ShortcodeRow.update(
                {
                    ShortcodeRow.consumer_key: None,
                    ShortcodeRow.consumer_secret: None,
                    ShortcodeRow.passkey: None,
                    ShortcodeRow.initiator: None,
                    ShortcodeRow.security_credential: None,
                    ShortcodeRow.wiped_at: now,
                    ShortcodeRow.updated_at: now,
                }
            )
            .where(ShortcodeRow.shortcode_id == shortcode_id, *_to_wipe(now))
            .returning(ShortcodeRow.shortcode_id)
        )
        return bool(wiped)

    async def _count_open(self, shortcode_ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return each shortcode's open work, zeros included."""
        counts: dict[str, dict[str, int]] = {shortcode_id: {} for shortcode_id in shortcode_ids}
        for what, count in self._open_work.items():
            found = await count(shortcode_ids)
            for shortcode_id in shortcode_ids:
                counts[shortcode_id][what] = found.get(shortcode_id, 0)
        return counts

    # -- checks ---------------------------------------------------------------------------------------------------

    def _check(self, caller: Caller, body: SetProvider) -> str | None:
        """Check fields against each other, the key and the settings; returns the nominated number normalised.

        Raises InvalidFields.
        """
        fields = body.mpesa
        with check_fields() as checks:
            self._check_env(checks, caller, fields)
            self._check_initiator(checks, fields)
            for name in ("result_url", "timeout_url"):
                value = getattr(fields, name)
                if value is not None:
                    self._check_url(checks, f"mpesa.{name}", value)
        return None if fields.nominated_number is None else str(Msisdn.parse(fields.nominated_number))

    def _encrypt(self, env: Env, password: str) -> str:
        """Return the password encrypted for Safaricom. Raises InvalidFields without a usable certificate."""
        try:
            certificate = self._certificate_of(env)
        except CertificateError as problem:
            raise InvalidFields.field_error(
                "mpesa.initiator_password",
                f"it cannot be encrypted here ({problem}); or send security_credential, encrypted by yourself",
            ) from None
        outside = certificate.time_problem(self._clock.now())
        if outside is not None:
            log.warning("certificate_not_valid_now", env=env, problem=outside)
        return certificate.encrypt(Secret(password)).reveal()

    def _check_initiator(self, checks: FieldChecks, fields: MpesaFields) -> None:
        has_secret = fields.security_credential is not None or fields.initiator_password is not None
        if fields.security_credential is not None and fields.initiator_password is not None:
            checks.fail("mpesa.initiator_password", "send this or security_credential, not both")
        if has_secret and fields.initiator is None:
            checks.fail("mpesa.initiator", "is required with initiator_password and security_credential")
        if fields.initiator is not None and not has_secret:
            checks.fail("mpesa.initiator_password", "is required with initiator (or security_credential)")

    def _check_env(self, checks: FieldChecks, caller: Caller, fields: MpesaFields) -> None:
        if fields.env != caller.env:
            checks.fail(
                "mpesa.env",
                f"{fields.env} credentials are stored with a key that starts with "
                f"{key_prefix('live' if fields.env == 'live' else 'sandbox')}; this key starts with "
                f"{key_prefix(caller.env)} and stores {caller.env} credentials only. Nothing was changed",
            )
        elif fields.env == "live" and urlsplit(self._public_url).scheme != "https":
            checks.fail("mpesa.env", "live needs the gateway's public_url to be https: M-Pesa calls nothing else back")

    def _check_url(self, checks: FieldChecks, field: str, url: str) -> None:
        own = urlsplit(self._public_url)
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


def _to_wipe(now: datetime) -> tuple[Where, Where]:
    return ShortcodeRow.retired_at < now - KEPT, ShortcodeRow.wiped_at.is_null()
