"""Publishing of callbacks until they are applied."""

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Literal

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.wire import InvalidCallback
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.logs import trace
from mpesa_gateway.ops_contract import TimelineEntry
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.api import DifferentSubject
from mpesa_gateway_callbacks.callback_kinds import CallbackKinds, Make, ParsedCallback
from mpesa_gateway_callbacks.schemas import laid_out
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.tables import CallbackRow
from mpesa_gateway_callbacks.tokens import Subject, make_token
from mpesa_gateway_callbacks.verifier import CallbackVerifier

log = structlog.get_logger(__name__)

Verdict = Literal["waiting", "applied"]

RETRY_PAUSES = (5, 15, 60, 300, 900, 3600)
"""Seconds between attempts to publish; the last repeats for ``unmatched_after_hours``."""

_LEASE = timedelta(seconds=60)

_SWEPT_AT_ONCE = 200


class CallbackDispatcher:
    """Implements the port ``Callbacks``."""

    def __init__(
        self,
        *,
        db: Database,
        outbox: Outbox,
        clock: Clock,
        settings: CallbacksSettings,
        verifier: CallbackVerifier,
        kinds: CallbackKinds,
        token_key: Callable[[], bytes],
        public_url: Callable[[str], str],
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._verifier = verifier
        self._kinds = kinds
        self._token_key = token_key
        self._public_url = public_url
        self._unwritten: ContextVar[dict[str, Verdict] | None] = ContextVar("unwritten_callbacks", default=None)
        """Verdicts on callbacks that are written at the end of the transaction."""
        self._is_batch: ContextVar[bool] = ContextVar("callbacks_in_batch", default=False)

    def url_for(self, kind: str, *, env: Env, merchant_id: str, subject_id: str) -> str:
        # Daraja rejects addresses that contain certain words: see tokens.py.
        if self._kinds.get(kind) is None:
            raise LookupError(f"no enabled plugin declares the callback kind `{kind}`")
        token = make_token(self._token_key(), kind, Subject(env, merchant_id, subject_id))
        return self._public_url(f"/v1/cb/{kind}/{token}")

    async def mark_applied(self, callback_id: str) -> None:
        unwritten = self._unwritten.get()
        if unwritten is not None and callback_id in unwritten:
            unwritten[callback_id] = "applied"
            return
        await self._db.execute(tables.APPLIED, callback_id, self._clock.now())

    @property
    def is_batch(self) -> bool:
        return self._is_batch.get()

    async def find_waiting(self, handles: Sequence[str]) -> set[str]:
        return {row["handle"] for row in await self._db.fetch(tables.WAITING_AMONG, handles)}

    async def last_received(self, kind: str, subject_id: str) -> datetime | None:
        found: datetime | None = await self._db.fetchval(tables.LAST_RECEIVED, subject_id, kind)
        return found

    async def apply_waiting(self, handle: str) -> int:
        if not handle:
            return 0
        rows = await self._db.fetch(tables.WAITING_FOR, handle)
        for row in rows:
            await self.publish_again(row)
        return len(rows)

    async def timeline_of(self, subject_ids: Collection[str], handles: Collection[str]) -> list[TimelineEntry]:
        rows = await self._db.fetch(tables.ABOUT, list(subject_ids), list(handles))
        return [
            TimelineEntry(
                at=row["received_at"],
                source=f"callback from {row['source']}",
                state=row["verdict"],
                text=f"{row['kind']}: result {row['result_code']}" + _repeated(row["repeats"]),
                body=laid_out(row["body"]),
                about=row["callback_id"],
            )
            for row in rows
        ]

    @contextmanager
    def collect_verdicts(self, verdicts: dict[str, Verdict], *, is_batch: bool = False) -> Generator[None]:
        """In this block, verdicts change ``verdicts`` instead of rows."""
        token, batch = self._unwritten.set(verdicts), self._is_batch.set(is_batch)
        try:
            yield
        finally:
            self._unwritten.reset(token)
            self._is_batch.reset(batch)

    async def publish(self, parsed: ParsedCallback, row: Mapping[str, Any]) -> None:
        """Publish a callback in the open transaction. It stays waiting if its subscriber fails.

        Raises DifferentSubject if a subscriber finds that the content is about another subject than the token.
        """
        if parsed.event is None:
            await self.mark_applied(row["callback_id"])
            return
        await self._publish_event(parsed.event, row)
        for make in parsed.alternatives:
            if await self._is_applied(row["callback_id"]):
                break
            await self._publish_event(make, row)

    async def publish_again(self, row: Found) -> None:
        try:
            body = row["body"].encode() if row["body_bytes"] is None else bytes(row["body_bytes"])
            parsed = self._kinds.read(row["kind"], body, has_token=bool(row["subject_id"]))
            await self.publish(parsed, dict(row) | {"is_listed": self._verifier.is_listed(row["source"])})
        except DifferentSubject:
            await self._give_up(row["callback_id"])
        except InvalidCallback as problem:
            # An earlier release may have accepted it. It must not block the other callbacks.
            log.error("callback_not_read", callback_id=row["callback_id"], exception=trace(problem))

    async def sweep(self) -> int:
        """Publish due callbacks; returns their number. Deletes refused callbacks over the limit."""
        now = self._clock.now()
        rows = await self._db.fetch(tables.CLAIM_DUE, now, now + _LEASE, _SWEPT_AT_ONCE)
        for row in rows:
            async with self._db.transaction():
                await self.publish_again(row)
                if now - row["received_at"] > timedelta(hours=self._settings.unmatched_after_hours):
                    await self._give_up(row["callback_id"])
                else:
                    pause = RETRY_PAUSES[min(int(row["tries"]), len(RETRY_PAUSES) - 1)]
                    await self._change_waiting(row["callback_id"], {CallbackRow.due_at: now + timedelta(seconds=pause)})
        await self._db.execute(tables.FORGET_REFUSED, self._settings.keep_refused)
        return len(rows)

    async def _give_up(self, callback_id: str) -> None:
        await self._change_waiting(callback_id, {CallbackRow.verdict: "unmatched", CallbackRow.due_at: None})

    async def _change_waiting(self, callback_id: str, values: dict[Any, Any]) -> None:
        await self._db.run(
            CallbackRow.update(values).where(CallbackRow.callback_id == callback_id, CallbackRow.verdict == "waiting")
        )

    async def _is_applied(self, callback_id: str) -> bool:
        unwritten = self._unwritten.get()
        if unwritten is not None and callback_id in unwritten:
            return unwritten[callback_id] == "applied"
        return bool(await self._db.fetchval(tables.IS_APPLIED, callback_id))

    async def _publish_event(self, make: Make, row: Mapping[str, Any]) -> None:
        event = make(
            {
                "merchant_id": row["merchant_id"] or "",
                "subject_id": row["subject_id"] or "",
                "callback_id": row["callback_id"],
                "env": row["env"],
                "received_at": row["received_at"],
                "is_listed": row["is_listed"],
            }
        )
        try:
            async with self._db.savepoint():
                await self._outbox.publish([event])
        except DifferentSubject:
            raise
        except Exception as problem:  # noqa: BLE001 - any error of a subscriber leaves the callback waiting
            unwritten = self._unwritten.get()
            if unwritten is not None and row["callback_id"] in unwritten:
                unwritten[row["callback_id"]] = "waiting"
            log.error("callback_not_applied", callback_id=row["callback_id"], exception=trace(problem))


def _repeated(repeats: int) -> str:
    return f", came {repeats} more {'time' if repeats == 1 else 'times'}" if repeats else ""
