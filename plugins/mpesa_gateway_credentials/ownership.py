"""Ownership of live receivers, and their use by other merchants."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from piccolo.columns.combination import Where

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.invalidation import InvalidationListener
from mpesa_gateway.errors import Conflict, NotFound, require_found
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway_credentials import tables
from mpesa_gateway_credentials.tables import ReceiverRow, ShortcodeRow

_NO_CREDENTIALS = (
    "this merchant has no live credentials for {}: store them first, at /ops/credentials or with "
    "PUT /v1/merchant/providers"
)


@dataclass(frozen=True)
class ReceiverUse:
    """A merchant's right to a live receiver."""

    merchant_id: str
    name: str
    is_owner: bool
    may_use: bool
    retired_at: datetime | None


class ReceiverOwnership:
    """Owners and users of live receivers."""

    def __init__(
        self,
        *,
        db: Database,
        changes: InvalidationListener,
        clock: Clock,
        audit: Audit,
        merchants: Merchants,
    ) -> None:
        self._db = db
        self._changes = changes
        self._clock = clock
        self._audit = audit
        self._merchants = merchants

    async def move_receiver(self, number: str, merchant_id: str, *, actor: str) -> None:
        """Raises NotFound and Conflict."""
        await self._merchants.require(merchant_id)
        async with self._db.transaction():
            receiver = await self._live_receiver(number)
            receiver_id = receiver["receiver_id"]
            right = await self._db.run(
                ShortcodeRow.select(ShortcodeRow.store_number).where(*_right(merchant_id, receiver_id)).first()
            )
            if right is None:
                raise Conflict(_NO_CREDENTIALS.format(number))
            kind = "paybill" if right["store_number"] is None else "till"
            values: dict[Any, Any] = {ReceiverRow.owner_id: merchant_id, ReceiverRow.kind: kind}
            await self._db.run(ReceiverRow.update(values).where(ReceiverRow.receiver_id == receiver_id))
            await self._audit.record(
                "receiver.moved",
                merchant_id=merchant_id,
                actor=actor,
                subject_id=receiver_id,
                detail={"shortcode": number, "from": receiver["owner_id"]},
            )
        self._changes.notify("receiver", receiver_id)

    async def allow_use(self, number: str, merchant_id: str, *, is_allowed: bool, actor: str) -> None:
        """Allow or revoke payments at a live receiver of another merchant. Raises NotFound and Conflict."""
        await self._merchants.require(merchant_id)
        now = self._clock.now()
        async with self._db.transaction():
            receiver = await self._live_receiver(number)
            found = await self._db.run(
                ShortcodeRow.update({ShortcodeRow.is_allowed: is_allowed, ShortcodeRow.updated_at: now})
                .where(*_right(merchant_id, receiver["receiver_id"]))
                .returning(ShortcodeRow.shortcode_id)
            )
            if not found:
                raise Conflict(_NO_CREDENTIALS.format(number))
            await self._audit.record(
                "receiver.use_allowed" if is_allowed else "receiver.use_ended",
                merchant_id=merchant_id,
                actor=actor,
                subject_id=receiver["receiver_id"],
                detail={"shortcode": number},
            )
        self._changes.notify("credentials", merchant_id)
        self._changes.notify("shortcode", found[0]["shortcode_id"])

    async def users(self, number: str) -> list[ReceiverUse]:
        """Return the merchants that have, or had, live credentials for a receiver. Raises NotFound."""
        rows = await self._db.fetch(tables.USERS, number)
        if not rows:
            raise NotFound(f"no merchant has stored live credentials for {number}")
        return [
            ReceiverUse(
                row["merchant_id"],
                row["name"],
                is_owner=bool(row["is_owner"]),
                may_use=row["is_owner"] is not False or row["is_allowed"],
                retired_at=row["retired_at"],
            )
            for row in rows
        ]

    async def _live_receiver(self, number: str) -> Row:
        return require_found(
            await self._db.fetchrow(tables.LOCK_RECEIVER, number),
            f"no merchant has stored live credentials for {number}",
        )


def _right(merchant_id: str, receiver_id: str) -> tuple[Where, Where]:
    return ShortcodeRow.merchant_id == merchant_id, ShortcodeRow.receiver_id == receiver_id
