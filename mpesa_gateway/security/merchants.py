"""Merchants own keys, payments and endpoints."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.db.invalidation import InvalidatedCache, InvalidationListener
from mpesa_gateway.db.keyset import Conditions, KeysetList, KeysetPage
from mpesa_gateway.errors import Conflict, require_found
from mpesa_gateway.ids import Ids
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.scopes import Env, Environment
from mpesa_gateway.security.tables import MerchantRow

_MERCHANTS = KeysetList(table="merchant", key="merchant_id", prefix="mer", of_merchants=False)


class Merchant(msgspec.Struct, frozen=True, kw_only=True):
    """``envs`` are those with credentials."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "merchant_id": "mer_01jdk3v8rc4x9m2q7ztbn5wgae",
        "name": "Duka la Amina",
        "envs": ["sandbox"],
        "is_active": True,
    }

    merchant_id: str
    name: str
    envs: tuple[Environment, ...] = ()
    is_active: bool
    created_at: datetime

    @property
    def env(self) -> Env:
        """Default env of commands and pages."""
        return "live" if "live" in self.envs else "sandbox"


class Merchants:
    """Creates, finds and deactivates merchants."""

    def __init__(self, db: Database, changes: InvalidationListener, clock: Clock, ids: Ids, audit: Audit) -> None:
        self._db = db
        self._changes = changes
        self._clock = clock
        self._ids = ids
        self._audit = audit
        self._live: InvalidatedCache[bool] = InvalidatedCache(changes)
        changes.on("merchant", self._live.clear)

    async def create(self, name: str, *, actor: str) -> Merchant:
        """``name`` has 1 to 100 characters."""
        now = self._clock.now()
        merchant = Merchant(merchant_id=self._ids.new("mer", now), name=name, is_active=True, created_at=now)
        async with self._db.transaction():
            await MerchantRow(
                merchant_id=merchant.merchant_id,
                name=name,
                is_active=True,
                created_at=now,
                updated_at=now,
            ).save()
            await self._audit.record(
                "merchant.created", merchant_id=merchant.merchant_id, actor=actor, subject_id=merchant.merchant_id
            )
        return merchant

    async def get(self, merchant_id: str) -> Merchant | None:
        row = await self._db.run(MerchantRow.select().where(MerchantRow.merchant_id == merchant_id).first())
        return None if row is None else _merchant(row)

    async def require(self, merchant_id: str) -> Merchant:
        """Raise NotFound."""
        return require_found(await self.get(merchant_id), "there is no such merchant")

    async def require_active(self, merchant_id: str) -> Merchant:
        """Raise NotFound, and Conflict for a deactivated merchant: it hears of nothing, and its keys are refused."""
        merchant = await self.require(merchant_id)
        if not merchant.is_active:
            raise Conflict("this merchant is deactivated: it takes no payments, keys or settings")
        return merchant

    async def page(self, limit: int, cursor: str | None = None, *, count: bool = False) -> KeysetPage[Merchant]:
        return (await _MERCHANTS.page(self._db, Conditions(), cursor, limit, count=count)).map(_merchant)

    async def active(self, limit: int) -> Sequence[Merchant]:
        """Return at most ``limit`` active merchants, newest first."""
        found = Conditions()
        found.equal(is_active=True)
        return (await _MERCHANTS.page(self._db, found, None, limit)).map(_merchant).rows

    def all(self) -> AsyncGenerator[list[Merchant]]:
        return _MERCHANTS.export(self._db, Conditions(), _merchant)

    async def names(self, merchant_ids: Collection[str]) -> dict[str, str]:
        # raw SQL: array - any number of ids in one statement.
        rows = await self._db.fetch(
            "SELECT merchant_id, name FROM merchant WHERE merchant_id = ANY($1::uuid[])", list(set(merchant_ids))
        )
        return {row["merchant_id"]: row["name"] for row in rows}

    async def deactivate(self, merchant_id: str, *, actor: str) -> Merchant:
        """Reject this merchant's keys from now on. Raises NotFound or Conflict."""
        async with self._db.transaction():
            changed = await self._db.run(
                MerchantRow.update({MerchantRow.is_active: False, MerchantRow.updated_at: self._clock.now()})
                .where(MerchantRow.merchant_id == merchant_id, MerchantRow.is_active.eq(value=True))
                .returning(*MerchantRow.all_columns())
            )
            if not changed:
                await self.require(merchant_id)
                raise Conflict("this merchant is not active")
            await self._audit.record(
                "merchant.deactivated", merchant_id=merchant_id, actor=actor, subject_id=merchant_id
            )
        self._changes.notify("merchant", merchant_id)
        return _merchant(changed[0])

    async def set_envs(self, merchant_id: str, envs: Collection[Env]) -> None:
        await self._db.run(
            MerchantRow.update({MerchantRow.envs: sorted(envs), MerchantRow.updated_at: self._clock.now()}).where(
                MerchantRow.merchant_id == merchant_id, MerchantRow.envs != sorted(envs)
            )
        )
        await self._db.after_commit(partial(self._notify, merchant_id))

    async def _notify(self, merchant_id: str) -> None:
        self._changes.notify("merchant", merchant_id)

    async def is_sandbox_only(self) -> bool:
        """Cached for at most a second."""
        return not await self._live.get("any", self.any_live)

    async def any_live(self) -> bool:
        # raw SQL: array - a partial index serves this constant, and no parameter.
        return bool(await self._db.fetchval("SELECT EXISTS (SELECT 1 FROM merchant WHERE 'live' = ANY(envs))"))


def _merchant(row: Found) -> Merchant:
    return msgspec.convert(
        {name: row[name] for name in ("merchant_id", "name", "envs", "is_active", "created_at")}, Merchant
    )
