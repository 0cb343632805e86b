"""Ends due prompts, posts due callbacks and results, and stores the answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.errors import require_found
from mpesa_gateway.logs import trace
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.c2b import C2bPayments
from mpesa_gateway_simulator.c2b_confirmations import CONFIRMATION
from mpesa_gateway_simulator.callback_bodies import callback_body
from mpesa_gateway_simulator.exchange_log import ChangeSignal, DueSignal
from mpesa_gateway_simulator.outcomes import by_name
from mpesa_gateway_simulator.poster import AT_ONCE, CallbackPoster
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.seeded_random import SeededRandom
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.tables import CallbackRow, ResultRow

log = structlog.get_logger(__name__)

_LONGEST_SLEEP = 0.25
"""Seconds between two polls without a wake-up."""

_LEASE = timedelta(seconds=20)

_HELD_BACK = 20.0
"""The longest delay of a push's answer, in seconds, for a callback that comes first."""


class CallbackCaller:
    """Posts callbacks and results. Each is a row until posted, so that a restart continues."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: SimulatorSettings,
        chance: SeededRandom,
        prompts: Prompts,
        pulse: ChangeSignal,
        poster: CallbackPoster,
        c2b: C2bPayments,
        due: DueSignal,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._chance = chance
        self._prompts = prompts
        self._pulse = pulse
        self._poster = poster
        self._c2b = c2b
        self._due = due
        self._dispatcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def stop(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.gather(self._dispatcher, return_exceptions=True)
            self._dispatcher = None

    async def send_results_now(self, result_ids: list[int]) -> None:
        for result_id in result_ids:
            claimed = await self._db.run(
                ResultRow.update({ResultRow.due_at: self._clock.now() + _LEASE, ResultRow.tries: ResultRow.tries + 1})
                .where(ResultRow.result_id == result_id)
                .returning(*ResultRow.all_columns())
            )
            for row in claimed:
                await self._send_result(row)

    async def forge(self, checkout_request_id: str, about: str, amount: int | None, signature: str | None) -> int:
        """Post a forged success to a push's callback address; returns the HTTP status of the answer.

        ``about`` is the push in the body. Raises NotFound for unknown pushes.
        """
        row, subject = await self._prompts.find(checkout_request_id), dict(await self._prompts.find(about))
        if amount is not None:
            subject["amount"] = amount
        now = self._clock.now()
        receipt = await self._chance.receipt(now)
        body = callback_body(subject, "0", receipt, now, by_name("pays"))
        headers = {} if signature is None else {"X-Mpesa-Signature": signature}
        return await self._post({"callback_url": row["callback_url"], "body": body, "encoding": "utf-8"}, headers)

    async def until_called_back(self, checkout_request_id: str) -> None:
        async with self._pulse.limit_wait(_HELD_BACK):
            while not await self._db.run(
                CallbackRow.exists().where(
                    CallbackRow.checkout_request_id == checkout_request_id, CallbackRow.last_status.is_not_null()
                )
            ):
                await self._pulse.wait_for_change(_LONGEST_SLEEP)

    async def call_back_now(self, checkout_request_id: str) -> None:
        """End a prompt and call back before its push is answered."""
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK_PUSH, checkout_request_id)
            if row is None or row["state"] != "open":
                return
            owed = await self._prompts.end(row, by_name(row["behaviour"]).result_code)
            if owed:
                await self._db.run(
                    CallbackRow.update({CallbackRow.due_at: self._clock.now() + _LEASE, CallbackRow.tries: 1}).where(
                        CallbackRow.callback_id.is_in(owed)
                    )
                )
        await self.send_again(checkout_request_id)

    async def send_again(self, checkout_request_id: str) -> int:
        """Post a push's callback (again) now; returns the HTTP status of the answer, 0 for none.

        Raises NotFound when the push has none.
        """
        row = await self._db.fetchrow(tables.FIND_CALLBACK, checkout_request_id)
        return await self._send(require_found(row, "this push has no callback"))

    async def _dispatch(self) -> None:
        while True:
            try:
                self._due.clear()
                worked = (
                    await self._prompts.end_due()
                    + await self._send_all(tables.CLAIM_CALLBACKS, self._send)
                    + await self._send_all(tables.CLAIM_RESULTS, self._send_result)
                    + await self._c2b.start_due()
                )
                if not worked:
                    await self._rest()
            except Exception as problem:  # noqa: BLE001 - it must not stop calling back
                log.error("simulator_dispatch_failed", exception=trace(problem))
                await asyncio.sleep(_LONGEST_SLEEP)

    async def _rest(self) -> None:
        """Sleep until something is due, ``due`` is set, or the poll interval ends."""
        due = await self._db.fetchval(tables.NEXT_DUE)
        wait = _LONGEST_SLEEP
        if due is not None:
            wait = min(wait, max(0.005, (due - self._clock.now()).total_seconds()))
        try:
            await asyncio.wait_for(self._due.wait(), wait)
        except TimeoutError:
            return

    async def _send_all(self, claim: str, send: Callable[[Row], Awaitable[int]]) -> int:
        now = self._clock.now()
        rows = await self._db.fetch(claim, now, now + _LEASE)
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(row: Row) -> None:
            async with slots:
                await send(row)

        await asyncio.gather(*map(one, rows))
        return len(rows)

    async def _send(self, row: Row) -> int:
        """Returns 0 without an answer."""
        status = await self._post(row)
        await self._db.execute(tables.ANSWERED, row["callback_id"], *self._noted(row, status))
        return status

    async def _send_result(self, row: Found) -> int:
        status = await self._post(row)
        due, _, now = self._noted(row, status)
        await self._db.run(
            ResultRow.update({ResultRow.due_at: due, ResultRow.last_status: status, ResultRow.answered_at: now}).where(
                ResultRow.result_id == row["result_id"]
            )
        )
        return status

    def _noted(self, row: Found, status: int) -> tuple[datetime | None, int, datetime]:
        """The time of the next try (None: no more), the status, and now."""
        now = self._clock.now()
        is_confirmation = row.get("operation") == CONFIRMATION
        is_done = is_confirmation or 200 <= status < 300 or row["tries"] >= self._settings.callback_tries
        return None if is_done else now + timedelta(seconds=self._settings.callback_pause), status, now

    async def _post(self, row: Found, headers: Mapping[str, str] | None = None) -> int:
        status, _ = await self._poster.post(row["callback_url"], str(row["body"]), row["encoding"], headers)
        return status
