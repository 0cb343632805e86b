"""Use cases of credentials."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from piccolo.columns.combination import Where

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.invalidation import InvalidationListener
from mpesa_gateway.errors import Conflict, InvalidFields, NotFound, require_found
from mpesa_gateway.ids import Ids
from mpesa_gateway.readiness import Missing
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway.security.scopes import Caller, Env
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway_credentials import tables
from mpesa_gateway_credentials.api import MpesaCredentials
from mpesa_gateway_credentials.checks import CredentialChecks
from mpesa_gateway_credentials.reader import NO_SHORTCODE, CredentialReader, aad
from mpesa_gateway_credentials.schemas import MpesaFields, RetiredView, SetProvider, ShortcodeFields
from mpesa_gateway_credentials.settings import CredentialsSettings
from mpesa_gateway_credentials.tables import ReceiverRow, ShortcodeRow

KEPT = timedelta(hours=48)
"""Minimum time before secrets are erased: last payments may need status queries."""

_WIPED_AT_ONCE = 200
"""Retired shortcodes per run of the job."""


@dataclass(frozen=True)
class StoreResult:
    """A stored shortcode with its gaps, and the retired one."""

    credentials: MpesaCredentials
    missing: list[Missing]
    retired: RetiredView | None


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A shortcode to store; UNSET keeps the stored name.

    ``check`` gets the stored shortcode of this number, and the active ones; it raises unless this one may be stored.
    """

    fields: MpesaFields
    at: str = ""
    name: str | msgspec.UnsetType | None = msgspec.UNSET
    is_default: bool
    replaces_default: bool = False
    check: Callable[[Row | None, Sequence[Row]], None] | None = None

    @property
    def number(self) -> str:
        return self.fields.till_number or self.fields.shortcode

    @property
    def store_number(self) -> str | None:
        return None if self.fields.till_number is None else self.fields.shortcode


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
        checks: CredentialChecks,
        reader: CredentialReader,
        missing_of: Callable[[str, Env, str], Awaitable[list[Missing]]],
        open_work: Mapping[str, Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]],
    ) -> None:
        """``open_work`` counts the open work of shortcodes, by its plural noun."""
        self._db = db
        self._changes = changes
        self._clock = clock
        self._ids = ids
        self._audit = audit
        self._merchants = merchants
        self._sealer = sealer
        self._settings = settings
        self._checks = checks
        self._reader = reader
        self._missing_of = missing_of
        self._open_work = open_work

    async def store(self, caller: Caller, body: SetProvider) -> StoreResult:
        """Store the default shortcode; another number retires the former. Raises InvalidFields."""
        return await self._store(
            caller, _Wanted(fields=body.mpesa, at="mpesa.", is_default=True, replaces_default=True)
        )

    async def add(self, caller: Caller, body: ShortcodeFields) -> StoreResult:
        """The first shortcode of an env is its default. Raises InvalidFields and Conflict."""

        def check(stored: Row | None, active: Sequence[Row]) -> None:
            if stored is not None and stored["retired_at"] is None:
                number = stored["number"]
                raise Conflict(
                    f"shortcode {number} is stored: replace it at {_page(caller, number)}, or with "
                    f"PUT /v1/merchant/shortcodes/{number}"
                )
            if len(active) >= self._settings.max_shortcodes:
                raise Conflict(
                    f"this merchant has {len(active)} active {caller.env} shortcodes, the most allowed: retire one "
                    "first, or ask the host to raise credentials.max_shortcodes"
                )

        body.check_kind()
        return await self._store(caller, _Wanted(fields=body, name=body.name, is_default=body.is_default, check=check))

    async def replace(self, caller: Caller, number: str, body: ShortcodeFields) -> StoreResult:
        """Raises InvalidFields and NotFound."""

        def check(stored: Row | None, _: Sequence[Row]) -> None:
            if stored is None or stored["retired_at"] is not None:
                raise NotFound(NO_SHORTCODE)

        body.check_kind()
        wanted = _Wanted(fields=body, name=body.name, is_default=body.is_default, check=check)
        if wanted.number != number:
            raise InvalidFields.field_error(
                "shortcode" if body.till_number is None else "till_number",
                f"was {wanted.number}, and must be {number}, as in the path: a shortcode keeps its number. Add another "
                f"one at /ops/credentials/{caller.merchant_id}/add?env={caller.env}, or with "
                "POST /v1/merchant/shortcodes",
            )
        return await self._store(caller, wanted)

    async def _store(self, caller: Caller, wanted: _Wanted) -> StoreResult:
        fields, merchant_id, env, now = wanted.fields, caller.merchant_id, caller.env, self._clock.now()
        nominated, secrets = self._checks.read(caller, fields, wanted.at)
        number = wanted.number
        sealed = {
            name: None if value is None else self._sealer.seal(value, aad=aad(merchant_id, env, number, name))
            for name, value in secrets.items()
        }
        async with self._db.transaction():
            await self._db.execute(tables.LOCK_MERCHANT, merchant_id)
            active = await self._db.fetch(tables.ACTIVE, merchant_id, env)
            stored = await self._db.fetchrow(tables.FIND_NUMBER, merchant_id, env, number)
            if wanted.check is not None:
                wanted.check(stored, active)
            former = next((each for each in active if each["is_default"]), None)
            is_former = former is not None and former["number"] == number
            is_default = wanted.is_default or former is None or is_former
            retires = wanted.replaces_default and not is_former
            receiver_id = await self._add_receiver(merchant_id, env, number, is_till=wanted.store_number is not None)
            demotes = is_default and not is_former
            if former is not None and demotes:
                await self._take_default(former["shortcode_id"], now, retires=retires)
            shortcode_id = await self._db.fetchval(
                *tables.STORE.bind(
                    shortcode_id=self._ids.new("shc"),
                    merchant_id=merchant_id,
                    env=env,
                    receiver_id=receiver_id,
                    store_number=wanted.store_number,
                    keeps_name=wanted.name is msgspec.UNSET,
                    name=None if wanted.name is msgspec.UNSET else wanted.name,
                    initiator=fields.initiator,
                    result_url=fields.result_url,
                    timeout_url=fields.timeout_url,
                    nominated_number=nominated,
                    account_reference=fields.account_reference,
                    is_default=is_default,
                    now=now,
                    **sealed,
                )
            )
            await self._note_envs(merchant_id)
            retired = former if retires else None
            await self._audit.record(
                "credentials.stored",
                merchant_id=merchant_id,
                actor=caller.actor,
                subject_id=merchant_id,
                detail={"provider": "mpesa", "env": env, "shortcode": number}
                | ({} if retired is None else {"retired": retired["number"]})
                | ({} if former is None or not demotes or retires else {"default_instead_of": former["number"]}),
            )
        self._evict(merchant_id, shortcode_id, None if former is None else former["shortcode_id"])
        return StoreResult(
            await self._reader.of_shortcode(shortcode_id),
            await self._missing_of(merchant_id, env, number),
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

    async def _take_default(self, shortcode_id: str, now: datetime, *, retires: bool) -> None:
        changed: dict[Any, Any] = {ShortcodeRow.is_default: False}
        if retires:
            changed |= {ShortcodeRow.retired_at: now, ShortcodeRow.updated_at: now}
        await self._db.run(ShortcodeRow.update(changed).where(ShortcodeRow.shortcode_id == shortcode_id))

    async def _note_envs(self, merchant_id: str) -> None:
        await self._merchants.set_envs(merchant_id, await self._db.fetchval(tables.ENVS, merchant_id))

    def _evict(self, merchant_id: str, *shortcode_ids: str | None) -> None:
        # For this process; triggers notify the others.
        self._changes.notify("credentials", merchant_id)
        for shortcode_id in shortcode_ids:
            if shortcode_id is not None:
                self._changes.notify("shortcode", shortcode_id)

    async def make_default(self, caller: Caller, number: str) -> MpesaCredentials:
        """Raises NotFound."""
        merchant_id, env, now = caller.merchant_id, caller.env, self._clock.now()
        async with self._db.transaction():
            await self._db.execute(tables.LOCK_MERCHANT, merchant_id)
            active = await self._db.fetch(tables.ACTIVE, merchant_id, env)
            chosen = require_found(next((each for each in active if each["number"] == number), None), NO_SHORTCODE)
            former = next((each for each in active if each["is_default"]), chosen)
            if not chosen["is_default"]:
                await self._take_default(former["shortcode_id"], now, retires=False)
                await self._db.run(
                    ShortcodeRow.update({ShortcodeRow.is_default: True}).where(
                        ShortcodeRow.shortcode_id == chosen["shortcode_id"]
                    )
                )
                await self._audit.record(
                    "credentials.default_changed",
                    merchant_id=merchant_id,
                    actor=caller.actor,
                    subject_id=merchant_id,
                    detail={"env": env, "shortcode": number, "former": former["number"]},
                )
        self._evict(merchant_id, chosen["shortcode_id"], former["shortcode_id"])
        return await self._reader.of_shortcode(chosen["shortcode_id"])

    async def retire(self, caller: Caller, number: str | None = None) -> RetiredView:
        """Retire a shortcode, by default the default one; can be repeated for a number.

        Raises NotFound, and Conflict for the default one while others are active.
        """
        merchant_id, env, now = caller.merchant_id, caller.env, self._clock.now()
        async with self._db.transaction():
            await self._db.execute(tables.LOCK_MERCHANT, merchant_id)
            active = await self._db.fetch(tables.ACTIVE, merchant_id, env)
            if number is None:
                row = next((each for each in active if each["is_default"]), None)
            else:
                row = await self._db.fetchrow(tables.FIND_NUMBER, merchant_id, env, number)
            if row is None:
                what = f"no M-Pesa credentials for {env} are stored"
                raise NotFound(what if number is None else NO_SHORTCODE)
            if row["retired_at"] is None:
                _check_not_needed(row, active)
                await self._db.run(
                    ShortcodeRow.update(
                        {ShortcodeRow.retired_at: now, ShortcodeRow.is_default: False, ShortcodeRow.updated_at: now}
                    ).where(ShortcodeRow.shortcode_id == row["shortcode_id"])
                )
                await self._audit.record(
                    "credentials.removed",
                    merchant_id=merchant_id,
                    actor=caller.actor,
                    subject_id=merchant_id,
                    detail={"provider": "mpesa", "env": env, "shortcode": row["number"]},
                )
        self._evict(merchant_id, row["shortcode_id"])
        return await self._retired_view(row)

    async def open_work_of(self, shortcode_id: str) -> dict[str, int]:
        return (await self._count_open([shortcode_id]))[shortcode_id]

    async def _retired_view(self, row: Row) -> RetiredView:
        return RetiredView(shortcode=row["number"], open=await self.open_work_of(row["shortcode_id"]))

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
        counts: dict[str, dict[str, int]] = {shortcode_id: {} for shortcode_id in shortcode_ids}
        for what, count in self._open_work.items():
            found = await count(shortcode_ids)
            for shortcode_id in shortcode_ids:
                counts[shortcode_id][what] = found.get(shortcode_id, 0)
        return counts


def _page(caller: Caller, number: str) -> str:
    return f"/ops/credentials/{caller.merchant_id}/shortcodes/{number}?env={caller.env}"


def _check_not_needed(row: Row, active: Sequence[Row]) -> None:
    others = [each["number"] for each in active if each["shortcode_id"] != row["shortcode_id"]]
    if row["is_default"] and others:
        raise Conflict(
            f"shortcode {row['number']} is the default, and {', '.join(others[:3])} "
            f"{'is' if len(others) == 1 else 'are'} active: make another one the default first, at "
            f"/ops/credentials/{row['merchant_id']}?env={row['env']}, or with "
            f"POST /v1/merchant/shortcodes/{others[0]}/default"
        )


def _to_wipe(now: datetime) -> tuple[Where, Where]:
    return ShortcodeRow.retired_at < now - KEPT, ShortcodeRow.wiped_at.is_null()
