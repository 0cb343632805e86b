"""The audit log: entries chained by digests."""

import hashlib
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self, cast

import msgspec
import structlog
from piccolo.columns.combination import Where

from mpesa_gateway.client_ip import client_network
from mpesa_gateway.clock import Clock, rfc3339
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions, KeysetList, KeysetPage
from mpesa_gateway.env import Env
from mpesa_gateway.ids import Ids
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.sampling import Sampler
from mpesa_gateway.security.tables import APPEND_ENTRY, AuditCheckpointRow, AuditPolicyRow, AuditRow

_FIRST = bytes(32)

CUT_ACTION = "audit.cut"
"""Announces a cut. Written by Postgres before it deletes (ADR 51)."""

RETENTION_ACTION = "audit.keeping"
"""Announces a new retention. Written by the tables' owner."""

_OBSERVED_A_SECOND = 5
"""Limits each kind: a flood must not fill the log or hide other kinds."""


log = structlog.get_logger(__name__)

acting_from: ContextVar[str | None] = ContextVar("mpesa_gateway_acting_from", default=None)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An audit entry in the API."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "id": "aud_01jdk3v8rc4x9m2q7ztbn5wgae",
        "at": "2026-11-23T10:15:12Z",
        "merchant_id": "mer_01jdk3v8rc4x9m2q7ztbn5wgae",
        "actor": "operator:amina",
        "action": "api_key.created",
        "subject_id": "key_01jdk3v8rc4x9m2q7ztbn5wgae",
        "detail": {"name": "shop"},
    }

    id: str
    number: int
    at: str
    merchant_id: str | None
    actor: str
    action: str
    subject_id: str | None
    detail: dict[str, Any]


ENTRIES = KeysetList(
    table="audit_entry", key="number", of_env=("COALESCE(detail::jsonb ->> 'env' = {}, true)",), of_merchants=False
)


class BrokenChain(Exception):
    """The text names the number of the changed or missing entry."""


class _Observed:
    def __init__(self) -> None:
        self._second = self._count = self._left_out = 0

    def admit(self, second: int) -> int | None:
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count > _OBSERVED_A_SECOND:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


class _Cut(msgspec.Struct, frozen=True):
    """Detail of a cut's entry.

    ``through`` and ``digest`` are of the last deleted entry; all were recorded earlier than ``before``.
    """

    through: int
    digest: str
    before: datetime


class Note(msgspec.Struct, frozen=True):
    """An earlier head. ``at`` is None in notes of older releases."""

    number: int
    digest: bytes
    at: datetime | None

    @classmethod
    def read(cls, text: str) -> Self:
        """Read ``number:digest:time``. Raises ValueError."""
        found = _NOTE.match(text.strip())
        if found is None:
            raise ValueError("not a note of the log's head: a number, a colon and 64 hexadecimal digits")
        try:
            at = None if found[3] is None else datetime.fromisoformat(found[3])
        except ValueError:
            raise ValueError("not a note of the log's head: what follows the digest is no time") from None
        if at is not None and at.tzinfo is None:
            raise ValueError("not a note of the log's head: its time has no zone")
        return cls(int(found[1]), bytes.fromhex(found[2]), at)

    def __str__(self) -> str:
        time = "" if self.at is None else f":{rfc3339(self.at)}"
        return f"{self.number}:{self.digest.hex()}{time}"


class Audit:
    """A refusal is recorded once per caller and ``window`` seconds.

    ``keep_days`` of 0 means unlimited.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        ids: Ids,
        *,
        window: float = 300.0,
        keep_days: int = 0,
    ) -> None:
        self._keep_days = keep_days
        self._db = db
        self._clock = clock
        self._ids = ids
        self._observed: dict[str, _Observed] = {}
        self._by_caller = Sampler(window, now=lambda: clock.now().timestamp())

    async def observe(
        self,
        action: str,
        *,
        merchant_id: str | None,
        actor: str,
        subject_id: str | None = None,
        env: Env | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Record a refusal: one per caller, kind and window, few per second. Never raises.

        A caller is an API key or an address (IPv6: its /64). ``left_out`` counts omitted entries.
        """
        before = self._left_out_of(action, subject_id, detail)
        if before is None:
            return
        left_out = self._observed.setdefault(action, _Observed()).admit(int(self._clock.now().timestamp()))
        if left_out is None:
            return
        left_out += before
        detail = (detail or {}) | ({"left_out": left_out} if left_out else {})
        try:
            await self.record(
                action, merchant_id=merchant_id, actor=actor, subject_id=subject_id, env=env, detail=detail
            )
        except Exception as problem:  # noqa: BLE001 - the request was refused already
            log.warning("audit_entry_lost", action=action, error=type(problem).__name__)

    def _left_out_of(self, action: str, subject_id: str | None, detail: dict[str, Any] | None) -> int | None:
        if subject_id is not None:
            return self._by_caller.admit((action, subject_id, str(detail)))
        address = acting_from.get()
        return 0 if address is None else self._by_caller.admit((action, client_network(address)))

    async def record(
        self,
        action: str,
        *,
        merchant_id: str | None,
        actor: str,
        subject_id: str | None = None,
        env: Env | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Add an entry in the open transaction or its own.

        ``detail`` must hold no secrets. Phone numbers are masked: entries are never erased. ``env`` and the client's
        address (``from``) are added to it.
        """
        address = acting_from.get()
        detail = (detail or {}) | ({"env": env} if env else {}) | ({"from": address} if address else {})
        text = msgspec.json.encode(_masked(detail), order="deterministic").decode()
        # Locks the chain until the transaction ends.
        await self._db.execute(
            APPEND_ENTRY, self._ids.new("aud"), self._clock.now(), merchant_id, actor, action, subject_id, text
        )

    async def page(
        self,
        limit: int,
        merchant_id: str | None,
        action: str | None,
        cursor: str | None,
        *,
        subject_id: str | None = None,
        env: Env | None = None,
        count: bool = False,
    ) -> KeysetPage[AuditEntry]:
        """``env`` includes entries without env. Raises InvalidFields for a bad cursor."""
        found = Conditions(env, merchant_id)
        found.equal(action=action, subject_id=subject_id)
        return (await ENTRIES.page(self._db, found, cursor, limit, count=count)).map(_entry)

    async def announce_cut(self) -> None:
        """Record which entries may be deleted, by the clock of Postgres: an unbroken range from the beginning."""
        # raw SQL: function - our own, in a migration; the log has no other writer.
        await self._db.execute("SELECT audit_announce_cut($1)", self._ids.new("aud"))

    async def cut(self) -> int:
        """Delete up to 500 announced entries; return the number.

        Postgres stores a checkpoint that continues the chain.
        """
        return int(await self._db.fetchval("SELECT audit_cut()"))

    async def _cut(self) -> "_Cut | None":
        row = await self._last(AuditRow.action == CUT_ACTION)
        return None if row is None else msgspec.json.decode(row["detail"], type=_Cut)

    async def _last(self, *where: Where) -> dict[str, Any] | None:
        row: dict[str, Any] | None = await self._db.run(
            AuditRow.select().where(*where).order_by(AuditRow.number, ascending=False).first()
        )
        return row

    async def keep_days(self) -> int | None:
        """0 means unlimited, None not set."""
        policy = await self._db.run(AuditPolicyRow.select().first())
        return None if policy is None else int(policy["keep_days"])

    async def head(self) -> str:
        """Return ``120:ab12…:2026-11-23T10:15:12.000000Z``, which proves all earlier entries if stored elsewhere."""
        last = await self._last()
        return str(Note(last["number"], bytes(last["digest"]), last["at"]) if last else Note(0, _FIRST, None))

    async def verify(self, noted: str | None = None) -> int:
        """Check the chain; return the number of entries. Raises BrokenChain.

        After a cut, the chain starts at an announced checkpoint. Only ``noted``, an earlier ``head``, detects a missing
        end, a rewritten chain and an early cut. Raises ValueError if it is malformed or expired.
        """
        note = Note(0, _FIRST, None) if noted is None else Note.read(noted)
        while True:
            start = await self._checkpoint()
            try:
                await self._verify_chain(*start)
                await self._verify_note(note, *start)
                break
            except BrokenChain:
                # The beginning may have been cut.
                if await self._checkpoint() == start:
                    raise
        last = await self._last()
        return max((0 if last is None else last["number"]) - start[0], 0)

    async def _verify_note(self, note: Note, last_deleted: int, last_digest: bytes) -> None:
        number = note.number
        if number and number <= last_deleted and note.at is not None:
            kept_until = note.at + timedelta(days=self._keep_days) if self._keep_days else None
            if kept_until is None or self._clock.now() < kept_until:
                raise BrokenChain(
                    f"audit entry {number}, which was noted at {rfc3339(note.at)}, was deleted before "
                    f"`retention.audit_days` ({self._keep_days}) had passed"
                )
        if number and number < last_deleted:
            raise ValueError(f"entry {number}, which was noted, has expired: store the current head")
        row = await self._last(AuditRow.number == number)
        found = None if row is None else row["digest"]
        if number == last_deleted:
            found = last_digest
        if number and found is None:
            raise BrokenChain(f"audit entry {number}, which was noted, is missing: the log was cut off before it")
        if number and found != note.digest:
            raise BrokenChain(f"audit entry {number} is not the one that was noted: the log was rewritten")

    async def _checkpoint(self) -> tuple[int, bytes]:
        row = await self._db.run(AuditCheckpointRow.select().first())
        return (0, _FIRST) if row is None else (row["number"], bytes(row["digest"]))

    async def _verify_chain(self, last_deleted: int, previous: bytes) -> None:
        cut = await self._cut()
        if last_deleted and (cut is None or cut.through < last_deleted):
            raise BrokenChain(f"audit entries up to {last_deleted} are missing, and no entry announces their deletion")
        announced = {cut.through: cut.digest} if cut is not None else {}
        if announced.get(last_deleted, previous.hex()) != previous.hex():
            raise BrokenChain(f"audit entry {last_deleted} is not the last one of the announced cut")
        kept = await self._kept()
        expected = last_deleted + 1
        while True:
            rows = await self._db.run(
                AuditRow.select().where(AuditRow.number >= expected).order_by(AuditRow.number).limit(1000)
            )
            if not rows:
                return
            for row in rows:
                digest = _digest(
                    previous,
                    row["number"],
                    row["entry_id"],
                    row["at"],
                    row["merchant_id"],
                    row["actor"],
                    row["action"],
                    row["subject_id"],
                    row["detail"],
                )
                if (
                    row["number"] != expected
                    or bytes(row["previous_digest"]) != previous
                    or bytes(row["digest"]) != digest
                    or announced.get(expected, digest.hex()) != digest.hex()
                ):
                    raise BrokenChain(f"audit entry {expected} was changed or removed")
                if row["action"] == CUT_ACTION:
                    _check_cut(row, kept)
                previous, expected = digest, expected + 1

    async def _kept(self) -> timedelta | None:
        policy = await self._db.run(AuditPolicyRow.select().first())
        days = [None if policy is None else policy["least_days"], self._keep_days]
        return timedelta(days=min(number for number in days if number)) if any(days) else None


_NOTE = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})(?::([0-9T:.Z+-]{10,40}))?\Z", re.ASCII)


def _check_cut(row: dict[str, Any], kept: timedelta | None) -> None:
    """Raise BrokenChain if a cut covers entries younger than ``kept``."""
    try:
        before = msgspec.json.decode(row["detail"], type=_Cut).before
    except msgspec.MsgspecError:
        before = row["at"]
    if kept is None or before > row["at"] - kept:
        raise BrokenChain(f"audit entry {row['number']} announces a cut of entries younger than `retention.audit_days`")


def _entry(row: Row) -> AuditEntry:
    return AuditEntry(
        id=row["entry_id"],
        number=row["number"],
        at=rfc3339(row["at"]),
        merchant_id=row["merchant_id"],
        actor=row["actor"],
        action=row["action"],
        subject_id=row["subject_id"],
        detail=msgspec.json.decode(row["detail"], type=dict[str, Any]),
    )


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask_phones(value)
    if isinstance(value, dict):
        return {name: _masked(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in cast("list[Any]", value)]
    return value


def _digest(
    previous: bytes,
    number: int,
    entry_id: str,
    at: datetime,
    merchant_id: str | None,
    actor: str,
    action: str,
    subject_id: str | None,
    detail: str,
) -> bytes:
    content = msgspec.json.encode([number, entry_id, rfc3339(at), merchant_id, actor, action, subject_id, detail])
    return hashlib.sha256(previous + content).digest()
