"""Who did what, when: entries chained by their digests, so that a changed or missing one shows."""

import hashlib
import re
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import msgspec
import structlog

from mpesa_gateway.clock import Clock, rfc3339
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.lists import Conditions
from mpesa_gateway.errors import Invalid
from mpesa_gateway.ids import Ids
from mpesa_gateway.security.tables import INSERT_ENTRY, LAST_ENTRY

_LOCK = int.from_bytes(hashlib.sha256(b"mpesa_gateway.audit").digest()[:8], "big", signed=True)
_FIRST = bytes(32)

_OBSERVED_A_SECOND = 5
"""How many entries of one kind about refused requests a process writes in a second: a flood must not fill the log, and
one of one kind must not hide another."""

log = structlog.get_logger(__name__)

acting_from: ContextVar[str | None] = ContextVar("mpesa_gateway_acting_from", default=None)
"""The address of the client whose request is being handled; None outside a request."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry as the API shows it."""

    id: str
    number: int
    at: str
    merchant_id: str | None
    actor: str
    action: str
    subject_id: str | None
    detail: dict[str, Any]


class BrokenChain(Exception):
    """An audit entry was changed or is missing. The text names its number."""


class _Observed:
    """How much of one kind was seen in this second, and how much was left out since the last entry."""

    def __init__(self) -> None:
        self._second = self._count = self._left_out = 0

    def admit(self, second: int) -> int | None:
        """How many were left out before this one; None when this one is to be left out as well."""
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count > _OBSERVED_A_SECOND:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


class Audit:
    """Writes and verifies the audit log."""

    def __init__(self, db: Database, clock: Clock, ids: Ids) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._observed: dict[str, _Observed] = {}

    async def observe(
        self,
        action: str,
        *,
        merchant_id: str | None,
        actor: str,
        subject_id: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Like record, for what was refused: a few of a kind in a second, and a failure to write them stops nobody.

        The next entry after some that were left out says how many: ``left_out`` in its detail.
        """
        left_out = self._observed.setdefault(action, _Observed()).admit(int(self._clock.now().timestamp()))
        if left_out is None:
            return
        detail = (detail or {}) | ({"left_out": left_out} if left_out else {})
        try:
            await self.record(action, merchant_id=merchant_id, actor=actor, subject_id=subject_id, detail=detail)
        except Exception as problem:  # noqa: BLE001 - the request was refused already
            log.warning("audit_entry_lost", action=action, error=type(problem).__name__)

    async def record(
        self,
        action: str,
        *,
        merchant_id: str | None,
        actor: str,
        subject_id: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Add an entry in the open transaction, or one of its own. ``detail`` holds no secrets, no phone numbers.

        Where a request is being handled, the client's address is added to ``detail`` as ``from``.
        """
        address = acting_from.get()
        detail = (detail or {}) | ({"from": address} if address else {})
        async with self._db.transaction():
            # One chain means one writer at a time; the lock goes with the transaction.
            await self._db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            last = await self._db.fetchrow(LAST_ENTRY)
            number, previous = (last["number"] + 1, bytes(last["digest"])) if last else (1, _FIRST)
            at = self._clock.now()
            entry_id = self._ids.new("aud")
            text = msgspec.json.encode(detail, order="deterministic").decode()
            digest = _digest(previous, number, entry_id, at, merchant_id, actor, action, subject_id, text)
            await self._db.execute(
                INSERT_ENTRY, number, entry_id, at, merchant_id, actor, action, subject_id, text, previous, digest
            )

    async def page(
        self,
        limit: int,
        merchant_id: str | None,
        action: str | None,
        before: str | None,
        *,
        subject_id: str | None = None,
    ) -> list[AuditEntry]:
        """Entries, newest first, from just before the one with this number. Raises Invalid for another cursor."""
        if before is not None and not (before.isascii() and before.isdigit() and len(before) < 19):
            raise Invalid.field_error("cursor", "send the next_cursor of the page before, unchanged")
        found = Conditions()
        for value, clause in (
            (merchant_id, "merchant_id = {}"),
            (action, "action = {}"),
            (subject_id, "subject_id = {}"),
            (None if before is None else int(before), "number < {}"),
        ):
            if value is not None:
                found.add(clause, value)
        rows = await self._db.fetch(
            "SELECT entry_id, number, at, merchant_id, actor, action, subject_id, detail FROM audit_entry "  # noqa: S608
            f"WHERE {found.where} ORDER BY number DESC LIMIT {limit}",
            *found.values,
        )
        return [
            AuditEntry(
                id=row["entry_id"],
                number=row["number"],
                at=rfc3339(row["at"]),
                merchant_id=row["merchant_id"],
                actor=row["actor"],
                action=row["action"],
                subject_id=row["subject_id"],
                detail=msgspec.json.decode(row["detail"], type=dict[str, Any]),
            )
            for row in rows
        ]

    async def count(self, merchant_id: str | None, action: str | None) -> int:
        """How many entries there are."""
        return int(
            await self._db.fetchval(
                "SELECT count(*) FROM audit_entry "
                "WHERE ($1::text IS NULL OR merchant_id = $1) AND ($2::text IS NULL OR action = $2)",
                merchant_id,
                action,
            )
        )

    async def head(self) -> str:
        """The newest entry's number and digest, ``120:ab12…``: noted elsewhere, it proves all that came before it."""
        last = await self._db.fetchrow(LAST_ENTRY)
        return f"{last['number']}:{bytes(last['digest']).hex()}" if last else f"0:{_FIRST.hex()}"

    async def verify(self, noted: str | None = None) -> int:
        """Check every entry against the one before; gives their count. Raises BrokenChain.

        A chain does not tell of its own cut-off end, nor of having been written anew from some entry on: with a
        ``noted`` head (of an earlier look, see ``head``) it does. Raises ValueError for a note that is none.
        """
        number, digest = _read_note(noted)
        await self._verify_chain()
        if number:
            found = await self._db.fetchval("SELECT digest FROM audit_entry WHERE number = $1", number)
            if found is None:
                raise BrokenChain(f"audit entry {number}, which was noted, is missing: the log was cut off before it")
            if bytes(found) != digest:
                raise BrokenChain(f"audit entry {number} is not the one that was noted: the log was written anew")
        return int(await self._db.fetchval("SELECT COALESCE(max(number), 0) FROM audit_entry"))

    async def _verify_chain(self) -> None:
        previous, expected = _FIRST, 1
        while True:
            rows = await self._db.fetch(
                "SELECT number, entry_id, at, merchant_id, actor, action, subject_id, detail, previous_digest, digest "
                "FROM audit_entry WHERE number >= $1 ORDER BY number LIMIT 1000",
                expected,
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
                ):
                    raise BrokenChain(f"audit entry {expected} was changed or removed")
                previous, expected = digest, expected + 1


_NOTE = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})\Z", re.ASCII)


def _read_note(noted: str | None) -> tuple[int, bytes]:
    if noted is None:
        return 0, _FIRST
    found = _NOTE.match(noted.strip())
    if found is None:
        raise ValueError("not a note of the log's head: a number, a colon and 64 hexadecimal digits")
    return int(found[1]), bytes.fromhex(found[2])


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
