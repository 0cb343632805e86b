"""Who did what, when: entries chained by their digests, so that a changed or missing one shows."""

import hashlib
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self, cast

import msgspec
import structlog
from piccolo.columns.combination import Where

from mpesa_gateway.client_ip import neighbourhood
from mpesa_gateway.clock import Clock, rfc3339
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions, KeysetList, KeysetPage
from mpesa_gateway.env import Env
from mpesa_gateway.ids import Ids
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.sampling import Sampler
from mpesa_gateway.security.tables import APPEND_ENTRY, AuditCheckpointRow, AuditPolicyRow, AuditRow

_FIRST = bytes(32)

CUT = "audit.cut"
"""The action of the entry that says up to where the log is let go, before any of it is. Postgres writes it (ADR 51)."""

KEEPING = "audit.keeping"
"""The action of the entry that says for how many days the log is kept from then on. The tables' owner writes it."""

_OBSERVED_A_SECOND = 5
"""How many entries of one kind about refused requests a process writes in a second: a flood must not fill the log, and
one of one kind must not hide another."""


log = structlog.get_logger(__name__)

acting_from: ContextVar[str | None] = ContextVar("mpesa_gateway_acting_from", default=None)
"""The address of the client whose request is being handled; None outside a request."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry as the API shows it."""

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


class _Cut(msgspec.Struct, frozen=True):
    """What an entry says that announces a cut.

    ``through`` is the last entry that goes, ``digest`` its digest in hexadecimal. ``before`` is the moment that all
    which goes was recorded before.
    """

    through: int
    digest: str
    before: datetime


class Note(msgspec.Struct, frozen=True):
    """The head of the log as an earlier look has shown it: number, digest and time of the newest entry.

    ``at`` is None in a note of a release before, which had no time.
    """

    number: int
    digest: bytes
    at: datetime | None

    @classmethod
    def read(cls, text: str) -> Self:
        """Read ``number:digest:time``. Raises ValueError for anything else."""
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
        """How it is shown."""
        time = "" if self.at is None else f":{rfc3339(self.at)}"
        return f"{self.number}:{self.digest.hex()}{time}"


class Audit:
    """Writes and verifies the audit log.

    ``window`` is for how long one refusal of a kind is recorded for each
    caller, in seconds. ``keep_days`` is ``retention.audit_days``: 0 for ever.
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
        """Like record, for what was refused: one of a kind for each caller and window, and few of a kind in a second.

        A caller is an API key, and for what it is refused; a stranger is an address (with IPv6: its /64). The next
        entry after some that were left out says how many: ``left_out`` in its detail. Raises nothing: the request was
        refused already.
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
        """How many of this kind were left out for this caller before this one; None to leave this one out."""
        if subject_id is not None:
            return self._by_caller.admit((action, subject_id, str(detail)))
        address = acting_from.get()
        return 0 if address is None else self._by_caller.admit((action, neighbourhood(address)))

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
        """Add an entry in the open transaction, or one of its own. ``detail`` holds no secrets.

        ``env`` is that of what was done, and stands in ``detail``; what belongs to no env, such as a new merchant, has
        none.

        Nothing is ever erased from an entry: phone numbers in its texts, such as a person's note, are masked.
        Where a request is being handled, the client's address is added to ``detail`` as ``from``.
        """
        address = acting_from.get()
        detail = (detail or {}) | ({"env": env} if env else {}) | ({"from": address} if address else {})
        text = msgspec.json.encode(_masked(detail), order="deterministic").decode()
        # Postgres chains it to the entry before; until the transaction ends, nobody else adds one.
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
        """Return entries, newest first, with ``env`` those of it and of no env. Raises Invalid for a bad cursor."""
        found = Conditions(env, merchant_id)
        found.equal(action=action, subject_id=subject_id)
        return (await ENTRIES.page(self._db, found, cursor, limit, count=count)).map(_entry)

    # -- letting go -----------------------------------------------------------------------------------------------

    async def announce_cut(self) -> None:
        """Let Postgres say in the log what has been kept long enough, by its own clock, if there is any of it.

        Only an unbroken stretch from the beginning may go: up to the first entry that is not older.
        """
        # raw SQL: function - our own, in a migration; the log has no other writer.
        await self._db.execute("SELECT audit_announce_cut($1)", self._ids.new("aud"))

    async def cut(self) -> int:
        """Delete the next of the oldest entries that were announced, 500 at most; returns how many.

        Postgres' own function does, and nothing else can: it leaves a checkpoint, with which the chain goes on.
        """
        return int(await self._db.fetchval("SELECT audit_cut()"))

    async def _cut(self) -> "_Cut | None":
        row = await self._last(AuditRow.action == CUT)
        return None if row is None else msgspec.json.decode(row["detail"], type=_Cut)

    async def _last(self, *where: Where) -> dict[str, Any] | None:
        row: dict[str, Any] | None = await self._db.run(
            AuditRow.select().where(*where).order_by(AuditRow.number, ascending=False).first()
        )
        return row

    async def keep_days(self) -> int | None:
        """For how many days Postgres keeps the log, 0 for ever; None where Postgres has not been told."""
        policy = await self._db.run(AuditPolicyRow.select().first())
        return None if policy is None else int(policy["keep_days"])

    # -- proving --------------------------------------------------------------------------------------------------

    async def head(self) -> str:
        """The newest entry's number, digest and time: noted elsewhere, they prove all that came before it.

        It looks like ``120:ab12…:2026-11-23T10:15:12.000000Z``.
        """
        last = await self._last()
        return str(Note(last["number"], bytes(last["digest"]), last["at"]) if last else Note(0, _FIRST, None))

    async def verify(self, noted: str | None = None) -> int:
        """Check every entry against the one before; gives their count. Raises BrokenChain.

        Where the beginning was let go, the chain goes on from the checkpoint, and an entry must have announced it that
        had been kept for ``retention.audit_days``.

        A chain does not tell of its own cut-off end, nor of having been written anew from some entry on: with a
        ``noted`` head (of an earlier look, see ``head``) it does, and the note's time tells of an entry that was let go
        too early. Raises ValueError for a note that is none, or of an entry that has been let go in its time.
        """
        note = Note(0, _FIRST, None) if noted is None else Note.read(noted)
        while True:
            start = await self._checkpoint()
            try:
                await self._verify_chain(*start)
                await self._verify_note(note, *start)
                break
            except BrokenChain:
                # Perhaps only the beginning was let go meanwhile.
                if await self._checkpoint() == start:
                    raise
        last = await self._last()
        return max((0 if last is None else last["number"]) - start[0], 0)

    async def _verify_note(self, note: Note, last_gone: int, last_digest: bytes) -> None:
        number = note.number
        if number and number <= last_gone and note.at is not None:
            kept_until = note.at + timedelta(days=self._keep_days) if self._keep_days else None
            if kept_until is None or self._clock.now() < kept_until:
                raise BrokenChain(
                    f"audit entry {number}, which was noted at {rfc3339(note.at)}, has been let go before "
                    f"`retention.audit_days` ({self._keep_days}) had passed"
                )
        if number and number < last_gone:
            raise ValueError(f"entry {number}, which was noted, has been let go since: note the head anew")
        row = await self._last(AuditRow.number == number)
        found = None if row is None else row["digest"]
        if number == last_gone:
            found = last_digest
        if number and found is None:
            raise BrokenChain(f"audit entry {number}, which was noted, is missing: the log was cut off before it")
        if number and found != note.digest:
            raise BrokenChain(f"audit entry {number} is not the one that was noted: the log was written anew")

    async def _checkpoint(self) -> tuple[int, bytes]:
        row = await self._db.run(AuditCheckpointRow.select().first())
        return (0, _FIRST) if row is None else (row["number"], bytes(row["digest"]))

    async def _verify_chain(self, last_gone: int, previous: bytes) -> None:
        cut = await self._cut()
        if last_gone and (cut is None or cut.through < last_gone):
            raise BrokenChain(f"audit entries up to {last_gone} are missing, and no entry says that they were let go")
        announced = {cut.through: cut.digest} if cut is not None else {}
        if announced.get(last_gone, previous.hex()) != previous.hex():
            raise BrokenChain(f"audit entry {last_gone} is not the one up to which the log was to be let go")
        kept = await self._kept()
        expected = last_gone + 1
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
                if row["action"] == CUT:
                    _check_cut(row, kept)
                previous, expected = digest, expected + 1

    async def _kept(self) -> timedelta | None:
        """For how long the log was kept at least, by the setting and by what Postgres has noted; None for ever."""
        policy = await self._db.run(AuditPolicyRow.select().first())
        days = [None if policy is None else policy["least_days"], self._keep_days]
        return timedelta(days=min(number for number in days if number)) if any(days) else None


_NOTE = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})(?::([0-9T:.Z+-]{10,40}))?\Z", re.ASCII)


def _check_cut(row: dict[str, Any], kept: timedelta | None) -> None:
    """Raises BrokenChain for an announcement of a cut that lets go what was recorded within ``kept``."""
    try:
        before = msgspec.json.decode(row["detail"], type=_Cut).before
    except msgspec.MsgspecError:
        before = row["at"]
    if kept is None or before > row["at"] - kept:
        raise BrokenChain(
            f"audit entry {row['number']} let go what was younger than `retention.audit_days`: entries are missing"
        )


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
