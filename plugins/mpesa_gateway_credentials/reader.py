"""Reads the stored credentials of shortcodes."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import DarajaClient, NotSent, Rejected
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.invalidation import InvalidatedCache, InvalidationListener
from mpesa_gateway.db.keyset import Conditions, KeysetPage
from mpesa_gateway.errors import NotFound, ProviderNotConfigured, ProviderUnavailable, require_found
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway.security.scopes import Caller, Env, key_prefix
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway_credentials import tables
from mpesa_gateway_credentials.api import MpesaCredentials, StatementSource
from mpesa_gateway_credentials.schemas import (
    Check,
    KeyView,
    MerchantView,
    MpesaSummary,
    ProviderView,
    ShortcodeView,
    Verification,
)
from mpesa_gateway_credentials.tables import ReceiverRow, ShortcodeRow

SECRET_FIELDS = ("consumer_key", "consumer_secret", "passkey", "security_credential")
"""Fields that are stored sealed and shown masked."""

NO_SHORTCODE = "there is no such active shortcode: GET /v1/merchant/shortcodes lists the stored ones"

_OPENED = tuple(name for name in MpesaCredentials.__dataclass_fields__ if name != "shortcode")


def aad(merchant_id: str, env: str, number: str, field: str) -> tuple[str, ...]:
    """Return the associated data of a sealed field."""
    return (merchant_id, "mpesa", env, number, field)


@dataclass(frozen=True)
class StoredCredentials:
    """Unsealed credentials, with the merchant's name."""

    credentials: MpesaCredentials
    merchant_name: str


class CredentialReader:
    """Implements the ports ``Credentials`` and ``CallbackSecrets``. Caches sealed rows; each call unseals them.

    Over 20 methods: all read the same cached rows.
    """

    def __init__(
        self,
        *,
        db: Database,
        changes: InvalidationListener,
        audit: Audit,
        merchants: Merchants,
        sealer: Sealer,
        daraja: DarajaClient,
        clock: Clock,
    ) -> None:
        self._db = db
        self._changes = changes
        self._clock = clock
        self._audit = audit
        self._merchants = merchants
        self._sealer = sealer
        self._daraja = daraja
        self._usable: InvalidatedCache[list[Row]] = InvalidatedCache(changes)
        self._by_id: InvalidatedCache[Row] = InvalidatedCache(changes)
        changes.on("credentials", self._usable.evict)
        changes.on("shortcode", self._by_id.evict)
        changes.on("receiver", self._usable.clear)
        changes.on("receiver", self._by_id.clear)

    async def get(self, merchant_id: str, env: Env, shortcode: str | None = None) -> MpesaCredentials:
        for row in await self._active(merchant_id, env):
            if row["is_default"] if shortcode is None else row["number"] == shortcode:
                return self._opened(row)
        if shortcode is not None:
            raise ProviderNotConfigured(
                f"no M-Pesa credentials for {env} shortcode {shortcode} are stored, or it is retired: "
                "GET /v1/merchant/shortcodes lists the stored ones",
                field="shortcode",
            )
        raise ProviderNotConfigured(
            f"no M-Pesa credentials for {env} are stored: PUT /v1/merchant/providers with a key that starts "
            f"with {key_prefix(env)}"
        )

    async def active(self, merchant_id: str, env: Env, number: str) -> MpesaCredentials:
        for row in await self._active(merchant_id, env):
            if row["number"] == number:
                return self._opened(row)
        raise NotFound(NO_SHORTCODE)

    async def all_active(self, merchant_id: str, env: Env) -> list[MpesaCredentials]:
        return [self._opened(row) for row in await self._active(merchant_id, env)]

    async def _active(self, merchant_id: str, env: Env) -> list[Row]:
        rows = await self._usable.get(merchant_id, lambda: self._db.fetch(tables.USABLE, merchant_id))
        return [row for row in rows or () if row["env"] == env]

    async def of_shortcode(self, shortcode_id: str) -> MpesaCredentials:
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
        if not credentials.wants_owner:
            return credentials.is_owner
        receiver = ReceiverRow.receiver_id == credentials.receiver_id
        # A second merchant's update waits for the first one and then changes nothing.
        owned = await self._db.run(
            ReceiverRow.update({ReceiverRow.owner_id: credentials.merchant_id, ReceiverRow.kind: credentials.kind})
            .where(receiver, ReceiverRow.owner_id.is_null(), ReceiverRow.env == "live")
            .returning(ReceiverRow.receiver_id)
        )
        if not owned:
            is_own = ReceiverRow.owner_id == credentials.merchant_id
            return bool(await self._db.run(ReceiverRow.exists().where(receiver, is_own)))
        await self._audit.record(
            "receiver.owned",
            merchant_id=credentials.merchant_id,
            actor="system",
            subject_id=credentials.receiver_id,
            detail={"env": credentials.env, "shortcode": credentials.shortcode},
        )
        return True

    async def receivers_named(self, env: Env, number: str) -> frozenset[str]:
        rows = await self._db.fetch(tables.NAMED, env, number)
        return frozenset(row["number"] for row in rows)

    async def has_stated(self, merchant_id: str, env: Env, receiver_id: str, store_number: str) -> bool:
        return bool(await self._db.fetchval(tables.STATED, env, store_number, receiver_id, merchant_id))

    async def stores_of(self, env: Env, number: str) -> frozenset[str]:
        rows = await self._db.fetch(tables.STORES_OF, env, number)
        return frozenset(row["number"] for row in rows)

    async def statement_sources(self) -> list[StatementSource]:
        rows = await self._db.fetch(tables.WITH_STATEMENTS)
        return [
            StatementSource(row["shortcode_id"], row["merchant_id"], row["env"], row["retired_at"] is not None)
            for row in rows
        ]

    async def passkeys_of(self, merchant_id: str, env: Env) -> list[Secret]:
        """Return passkeys, also of retired shortcodes; the usable ones first."""
        return [
            _unsealed(self._sealer, row, "passkey") for row in await self._db.fetch(tables.PASSKEYS, merchant_id, env)
        ]

    async def providers(self, merchant_id: str, env: Env) -> list[ProviderView]:
        try:
            return [provider_view(await self.get(merchant_id, env))]
        except ProviderNotConfigured:
            return []

    async def shortcodes(self, merchant_id: str, env: Env) -> list[MpesaCredentials]:
        """Return shortcodes with their secrets, the usable ones first."""
        return [self._opened(row) for row in await self._db.fetch(tables.OF_ENV, merchant_id, env)]

    async def find(self, merchant_id: str, env: Env, number: str) -> MpesaCredentials:
        """Also a retired one. Raises NotFound."""
        row = require_found(await self._db.fetchrow(tables.FIND_NUMBER, merchant_id, env, number), NO_SHORTCODE)
        return self._opened(row)

    async def page_of(
        self, merchant_id: str, env: Env, cursor: str | None, limit: int, *, count: bool = False
    ) -> KeysetPage[MpesaCredentials]:
        """Raises InvalidFields."""
        found = Conditions(env, merchant_id)
        found.add("wiped_at IS NULL")
        return (await tables.OF_MERCHANT.page(self._db, found, cursor, limit, count=count)).map(self._opened)

    async def page(self, cursor: str | None, limit: int) -> KeysetPage[StoredCredentials]:
        """Return all shortcodes with their secrets, newest first. Raises InvalidFields."""
        found = Conditions()
        found.add("wiped_at IS NULL")
        page = await tables.SHORTCODES.page(self._db, found, cursor, limit)
        return page.map(lambda row: StoredCredentials(self._opened(row), row["merchant_name"]))

    async def verify(self, merchant_id: str, env: Env, number: str | None = None) -> Verification:
        """Fetch a token with a shortcode's keys, and return the outcome.

        Raises ProviderNotConfigured, or NotFound for a number, and ProviderUnavailable if M-Pesa does not respond.
        """
        self._db.refuse_transaction("verifying credentials")
        credentials = await (self.get(merchant_id, env) if number is None else self.active(merchant_id, env, number))
        try:
            await self._daraja.verify(credentials.daraja)
        except Rejected as fault:
            await self._note_verified(credentials, None)
            failed = Check(
                name="credentials", ok=False, message=fault.meaning, mitigation=fault.mitigation, code=fault.code
            )
            return Verification(ok=False, checks=[failed])
        except NotSent as fault:
            raise ProviderUnavailable(
                "M-Pesa could not be reached: try again", retry_after=fault.retry_after or 5, provider=fault.provider
            ) from None
        await self._note_verified(credentials, self._clock.now())
        check = Check(name="credentials", ok=True, message="M-Pesa returned an access token for these keys")
        return Verification(ok=True, checks=[check])

    async def _note_verified(self, credentials: MpesaCredentials, at: datetime | None) -> None:
        # Only for keys that are still stored.
        await self._db.run(
            ShortcodeRow.update({ShortcodeRow.verified_at: at}).where(
                ShortcodeRow.shortcode_id == credentials.shortcode_id,
                ShortcodeRow.updated_at == credentials.updated_at,
            )
        )
        self._changes.notify("credentials", credentials.merchant_id)

    async def me(self, caller: Caller) -> MerchantView:
        merchant = await self._merchants.require(caller.merchant_id)
        return MerchantView(
            id=merchant.merchant_id,
            name=merchant.name,
            env=caller.env,
            is_active=merchant.is_active,
            created_at=merchant.created_at,
            key=KeyView(id=caller.key_id, env=caller.env, scopes=sorted(caller.scopes)),
            providers=[view.provider for view in await self.providers(caller.merchant_id, caller.env)],
        )

    def _opened(self, row: Row) -> MpesaCredentials:
        values: dict[str, Any] = {name: row[name] for name in _OPENED}
        for name in SECRET_FIELDS:
            if values[name] is not None:
                values[name] = _unsealed(self._sealer, row, name)
        if values["nominated_number"] is not None:
            values["nominated_number"] = Msisdn(values["nominated_number"])
        return MpesaCredentials(shortcode=row["number"], **values)


def provider_view(credentials: MpesaCredentials) -> ProviderView:
    return ProviderView(provider="mpesa", config_summary=summary_of(credentials))


def shortcode_view(credentials: MpesaCredentials) -> ShortcodeView:
    return ShortcodeView(
        config_summary=summary_of(credentials),
        **{name: getattr(credentials, name) for name in ShortcodeView.__struct_fields__ if name != "config_summary"},
    )


def summary_of(credentials: MpesaCredentials) -> MpesaSummary:
    # In the specification ``shortcode`` is the store number of a till.
    wire = {"shortcode": credentials.daraja.shortcode, "till_number": credentials.daraja.till_number}
    values: dict[str, Any] = {}
    for name in MpesaSummary.__struct_fields__:
        value = wire[name] if name in wire else getattr(credentials, name)
        values[name] = value.masked if isinstance(value, Secret | Msisdn) else value
    return MpesaSummary(**values)


def _unsealed(sealer: Sealer, row: Row, name: str) -> Secret:
    return Secret(sealer.open(row[name], aad=aad(row["merchant_id"], row["env"], row["number"], name)))
