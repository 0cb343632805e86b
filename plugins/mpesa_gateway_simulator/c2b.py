"""Simulates payments without a prompt: validation, the money, and the confirmation."""

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import structlog

from mpesa_gateway.clock import EAT, Clock
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.errors import NotFound, require_found
from mpesa_gateway.logs import trace
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.bystanders import Movement
from mpesa_gateway_simulator.c2b_bodies import C2bManner, C2bMoney, Verdict, Version, c2b_body, read_verdict
from mpesa_gateway_simulator.c2b_confirmations import C2bConfirmations
from mpesa_gateway_simulator.c2b_registrations import C2bRegistrations
from mpesa_gateway_simulator.c2b_requests import C2bSimulation, read_c2b_simulation
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.exchange_log import ChangeSignal, DueSignal
from mpesa_gateway_simulator.poster import CallbackPoster
from mpesa_gateway_simulator.results import Results
from mpesa_gateway_simulator.seeded_random import SeededRandom
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.tables import C2bPaymentRow
from mpesa_gateway_simulator.validation import named_fault

log = structlog.get_logger(__name__)

UNANSWERED = "no_answer"
"""The code of a payment that ended because its validation was not answered."""

_LEASE = timedelta(seconds=20)


class C2bPayments:
    """Payments without a prompt. Each waits in Postgres until its validation has ended."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: SimulatorSettings,
        controls: Controls,
        results: Results,
        registrations: C2bRegistrations,
        confirmations: C2bConfirmations,
        chance: SeededRandom,
        poster: CallbackPoster,
        pulse: ChangeSignal,
        due: DueSignal,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._controls = controls
        self._results = results
        self._registrations = registrations
        self._confirmations = confirmations
        self._chance = chance
        self._poster = poster
        self._pulse = pulse
        self._due = due
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Payments begin as they fall due."""

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def simulate(self, version: Version, body: dict[str, Any]) -> dict[str, str]:
        if self._settings.c2b_live:
            raise named_fault("404.001.01")
        habit = await self._controls.habit("c2bsimulate")
        manner = C2bManner(forgets_registration=habit == "forgets_registration")
        await self._insert(read_c2b_simulation(body), manner, timedelta())
        self._due.set()
        ack = {
            "OriginatorCoversationID": await self._chance.identifier(),
            "ResponseDescription": "Accept the service request successfully.",
        }
        if version == "v2":
            return ack | {"ResponseCode": "0"}
        now = self._clock.now().astimezone(EAT)
        return ack | {"ConversationID": f"AG_{now:%Y%m%d}_{(await self._chance.draw(10)).hex()}"}

    async def pay(self, payment: C2bSimulation, manner: C2bManner) -> Found:
        """Pay now and return the ended payment, after at most the time of a validation."""
        receipt = await self._insert(payment, manner, _LEASE)
        await self._settle(await self.find(receipt))
        return await self.find(receipt)

    async def find(self, receipt: str) -> Found:
        """Raises NotFound."""
        query = C2bPaymentRow.select().where(C2bPaymentRow.receipt == receipt).first()
        found: Found = require_found(await self._db.run(query), "there is no such payment")
        return found

    async def list_payments(self, phone: str | None, limit: int) -> list[Found]:
        found: list[Found] = await self._db.run(
            C2bPaymentRow.select()
            .where(*(() if phone is None else (C2bPaymentRow.phone == phone,)))
            .order_by(C2bPaymentRow.created_at, ascending=False)
            .limit(limit)
        )
        return found

    async def confirm_again(self, receipt: str) -> int:
        """Post a receipt's confirmation, lost or sent; returns the status of the answer, 0 for none.

        Raises NotFound where its shortcode has registered no addresses.
        """
        row = await self._confirmations.find(receipt)
        if row is None:
            raise NotFound("this receipt has no confirmation")
        status, _ = await self._poster.post(row["callback_url"], row["body"], row["encoding"])
        return status

    async def start_due(self) -> int:
        """Begin the payments that are due, without waiting for them; returns their count."""
        now = self._clock.now()
        rows = await self._db.fetch(tables.CLAIM_C2B, now, now + _LEASE)
        for row in rows:
            task = asyncio.create_task(self._settle_logged(row))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(rows)

    async def _insert(self, payment: C2bSimulation, manner: C2bManner, wait: timedelta) -> str:
        now = self._clock.now()
        receipt = await self._chance.receipt(now)
        row = C2bPaymentRow(
            receipt=receipt,
            **msgspec.structs.asdict(payment),
            manner=msgspec.json.encode(manner).decode(),
            state="waiting",
            created_at=now,
            due_at=now + wait,
        )
        await self._db.run(C2bPaymentRow.insert(row))
        return receipt

    async def _settle_logged(self, row: Row) -> None:
        try:
            await self._settle(row)
        except Exception as problem:  # noqa: BLE001 - the payment is due again after its lease
            log.error("simulator_c2b_failed", exception=trace(problem))

    async def _settle(self, row: Found) -> None:
        manner = msgspec.json.decode(row["manner"], type=C2bManner)
        registration = await self._registrations.find(row["shortcode"])
        verdict = Verdict()
        if registration is not None and self._settings.external_validation and manner.validation != "not_enabled":
            verdict = await self._validate(_money(row, row["created_at"]), manner, registration)
        now = self._clock.now()
        state = "paid" if verdict.code is None else "refused"
        async with self._db.transaction():
            ended: dict[Any, Any] = {
                C2bPaymentRow.state: state,
                C2bPaymentRow.code: verdict.code,
                C2bPaymentRow.ended_at: now,
                C2bPaymentRow.due_at: None,
            }
            if not await self._db.run(
                C2bPaymentRow.update(ended)
                .where(C2bPaymentRow.receipt == row["receipt"], C2bPaymentRow.state == "waiting")
                .returning(C2bPaymentRow.receipt)
            ):
                return
            if verdict.code is None:
                await self._move(_money(row, now), manner, registration, verdict.third_party)
            if manner.forgets_registration:
                await self._registrations.forget(row["shortcode"])
            await self._db.after_commit(self._pulse.notify_after_commit)
        self._due.set()

    async def _move(self, money: C2bMoney, manner: C2bManner, registration: Found | None, third_party: str) -> None:
        await self._results.record(
            Movement(
                receipt=money.receipt,
                phone=money.phone,
                amount=money.amount,
                shortcode=money.shortcode,
                reference=money.account_number,
                at=money.at,
                kind=money.kind,
            )
        )
        if registration is not None:
            await self._confirmations.confirm(money, manner, registration, third_party)

    async def _validate(self, money: C2bMoney, manner: C2bManner, registration: Found) -> Verdict:
        verdict = None
        if manner.validation == "asked":
            body = c2b_body(money, manner, registration["version"], balance=None)
            within = await self._controls.knob("validation_timeout")
            verdict = read_verdict(
                *await self._poster.post(registration["validation_url"], body, "utf-8", within=within)
            )
        if verdict is not None:
            return verdict
        return Verdict(code=None if registration["response_type"] == "Completed" else UNANSWERED)


def _money(row: Found, at: Any) -> C2bMoney:
    return C2bMoney(
        receipt=row["receipt"],
        phone=row["phone"],
        amount=row["amount"],
        shortcode=row["shortcode"],
        account_number=row["account_number"],
        kind=row["kind"],
        at=at,
    )
