"""Erases a payer's phone number; records of money remain."""

from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.db.engine import OVERLOADED
from mpesa_gateway.erasure import ErasedNumber, ErasureCase
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.tables import MerchantRow

log = structlog.get_logger(__name__)

MINIMUM_AGE = timedelta(hours=48)
"""M-Pesa's statements reach back 48 hours and are matched by number."""

_TAG = 8
"""Characters that distinguish ids of one millisecond."""

# raw SQL: join - the subscribers' tasks of a case's events.
# raw SQL: lock - the events of a case.
# raw SQL: expression - JSON as it was stored, and not as Piccolo writes it.
OWED_TASKS = """
SELECT event_id FROM event JOIN event_task USING (event_id)
WHERE subject_id = ANY($1::uuid[]) AND done_at IS NULL LIMIT 1
"""

EVENTS_OF = """
SELECT event_id, payload::text AS payload, event.body FROM event WHERE subject_id = ANY($1::uuid[]) FOR UPDATE NOWAIT
"""

CHANGE_EVENT = "UPDATE event SET payload = $2::text::jsonb, form_id = NULL, stored_body = $3 WHERE event_id = $1"


LOCKS = "SET LOCAL lock_timeout = '200ms'"
"""Limits the wait of a host's erasers. Ours use NOWAIT, which avoids deadlocks."""


@dataclass(frozen=True)
class NotErased:
    """A remaining record, and the reason."""

    subject_id: str
    why: str


@dataclass
class ErasureReport:
    """Counts by kind, and remaining records."""

    cases: int = 0
    erased: Counter[str] = field(default_factory=Counter[str])
    left: list[NotErased] = field(default_factory=list[NotErased])

    def add(self, other: "ErasureReport") -> None:
        self.cases += other.cases
        self.erased.update(other.erased)
        self.left += other.left

    def counted(self) -> dict[str, int]:
        return {"cases": self.cases, "left": len({left.subject_id for left in self.left}), **self.erased}


class _Undone(Exception):
    """Rolls back a rehearsal."""


def _undo(is_rehearsal: bool) -> None:
    if is_rehearsal:
        raise _Undone


async def _owed(runtime: Runtime, case: ErasureCase) -> str | None:
    event_id = await runtime.db.fetchval(OWED_TASKS, case.named)
    return None if event_id is None else f"a subscriber has not handled {event_id} yet"


async def _erase_events(runtime: Runtime, case: ErasureCase) -> dict[str, int]:
    count = 0
    for row in await runtime.db.fetch(EVENTS_OF, case.named):
        was = (row["payload"], row["body"])
        now = tuple(None if text is None else case.number.without_in_json(text) for text in was)
        if now != was:
            await runtime.db.execute(CHANGE_EVENT, row["event_id"], *now)
            count += 1
    return {"events": count}


KERNEL_ERASER = Eraser(erase=_erase_events, objects=_owed)


class Privacy:
    """Erases case by case, each in its own transaction."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._erasers = (KERNEL_ERASER, *runtime.contributed(Eraser))

    async def erase(
        self,
        phone: Msisdn,
        *,
        actor: str,
        merchant_id: str | None = None,
        before: datetime | None = None,
        is_rehearsal: bool = False,
    ) -> ErasureReport:
        """Erase a number from records last changed before ``before``; report others.

        ``is_rehearsal`` rolls back. Raises InvalidFields if ``before`` is less than 48 hours ago, and NotFound.
        """
        latest = self._runtime.clock.now() - MINIMUM_AGE
        before = before or latest
        if before > latest:
            raise InvalidFields.field_error(
                "before", "must be at least 48 hours ago: until then a late callback or statement needs the number"
            )
        merchants = await self._merchants(merchant_id)
        if not is_rehearsal:
            # First, so that no erasure is unrecorded.
            await self._record("privacy.erasing", merchant_id, actor, {"before": rfc3339(before)})
        done, seen = ErasureReport(), set[str]()
        for merchant in merchants:
            here = ErasureReport()
            async for root in self._roots(merchant, ErasedNumber(phone)):
                if root not in seen:
                    number = ErasedNumber(phone, root[-_TAG:])
                    case = ErasureCase(merchant, root, number, before, frozenset({root}))
                    seen |= await self._erase_case(case, here, is_rehearsal=is_rehearsal)
            if not is_rehearsal and (here.cases or here.left or merchant_id):
                await self._record("privacy.erased", merchant, actor, here.counted())
            done.add(here)
        if not is_rehearsal and merchant_id is None:
            await self._record("privacy.erased", None, actor, done.counted())
        log.info("privacy_erased", cases=done.cases, left=len(done.left), rehearsal=is_rehearsal)
        return done

    async def _record(self, action: str, merchant_id: str | None, actor: str, detail: dict[str, Any]) -> None:
        await self._runtime.audit.record(action, merchant_id=merchant_id, actor=actor, detail=detail)

    async def _merchants(self, merchant_id: str | None) -> Iterable[str]:
        if merchant_id is not None:
            return [(await self._runtime.merchants.require(merchant_id)).merchant_id]
        rows = await self._runtime.db.run(MerchantRow.select(MerchantRow.merchant_id).order_by(MerchantRow.merchant_id))
        return [row["merchant_id"] for row in rows]

    async def _roots(self, merchant_id: str, number: ErasedNumber) -> AsyncGenerator[str]:
        # A payment before its callbacks.
        for eraser in reversed(self._erasers):
            after = ""
            while eraser.find is not None and (page := await eraser.find(self._runtime, merchant_id, number, after)):
                for root in page:
                    yield root
                after = page[-1]

    async def _erase_case(self, case: ErasureCase, done: ErasureReport, *, is_rehearsal: bool) -> frozenset[str]:
        here = ErasureReport()
        try:
            async with self._runtime.db.transaction():
                await self._runtime.db.execute(LOCKS)
                case = await self._widened(case)
                why = await self._objection(case)
                if why is not None:
                    done.left.append(NotErased(case.root, why))
                    return case.ids
                for eraser in self._erasers:
                    here.erased.update(await eraser.erase(self._runtime, case))
                    if eraser.keeps is not None:
                        here.left += [NotErased(case.root, why) for why in await eraser.keeps(self._runtime, case)]
                here.cases = int(here.erased.total() > 0)
                _undo(is_rehearsal)
        except _Undone:
            pass
        except OVERLOADED:
            # Another session has locked it.
            done.left.append(NotErased(case.root, "another session is changing it"))
            return case.ids
        done.add(here)
        return case.ids

    async def _objection(self, case: ErasureCase) -> str | None:
        for eraser in self._erasers:
            why = None if eraser.objects is None else await eraser.objects(self._runtime, case)
            if why is not None:
                return why
        return None

    async def _widened(self, case: ErasureCase) -> ErasureCase:
        while True:
            before = case.ids
            for eraser in reversed(self._erasers):
                if eraser.widen is not None:
                    ids = case.ids | await eraser.widen(self._runtime, case)
                    case = ErasureCase(case.merchant_id, case.root, case.number, case.before, ids)
            if case.ids == before:
                return case
