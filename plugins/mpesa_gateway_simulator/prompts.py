"""Opens and ends prompts on simulated phones, and writes the ledger."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from mpesa_gateway.clock import EAT, Clock
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.errors import Conflict, require_found
from mpesa_gateway_simulator import bystanders, tables
from mpesa_gateway_simulator.c2b_bodies import C2bMoney
from mpesa_gateway_simulator.c2b_confirmations import C2bConfirmations
from mpesa_gateway_simulator.callback_bodies import callback_body
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.exchange_log import ChangeSignal, DueSignal
from mpesa_gateway_simulator.misbehaviour import written
from mpesa_gateway_simulator.outcomes import ANSWERS, Behaviour, by_name
from mpesa_gateway_simulator.results import Results
from mpesa_gateway_simulator.seeded_random import SeededRandom
from mpesa_gateway_simulator.tables import PushRow
from mpesa_gateway_simulator.validation import Push


class Prompts:
    """The prompts of pushes. Each ends once, by its phone, by hand or by time, and then has callbacks due."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        controls: Controls,
        results: Results,
        confirmations: C2bConfirmations,
        chance: SeededRandom,
        pulse: ChangeSignal,
        due: DueSignal,
    ) -> None:
        self._db = db
        self._clock = clock
        self._controls = controls
        self._results = results
        self._confirmations = confirmations
        self._chance = chance
        self._pulse = pulse
        self._due = due

    async def open(self, push: Push, behaviour: Behaviour) -> tuple[str, str]:
        """Store an open prompt; returns its CheckoutRequestID and MerchantRequestID."""
        now = self._clock.now()
        merchant_request_id = await self._chance.identifier()
        wait = await self._controls.knob("prompt_timeout" if behaviour.waits else "callback_delay")
        is_new = None
        checkout_request_id = ""
        # Daraja's format: the time, three digits and nine of the phone. The digits are a counter, because milliseconds
        # of a frozen clock would repeat.
        while not is_new:
            # raw SQL: function - a sequence of Postgres.
            number = await self._db.fetchval("SELECT nextval('sim_handle')")
            checkout_request_id = f"ws_CO_{now.astimezone(EAT):%d%m%Y%H%M%S}{number % 1000:03}{push.phone[3:]}"
            is_new = await self._db.fetchval(
                *tables.INSERT_PUSH.bind(
                    checkout_request_id=checkout_request_id,
                    merchant_request_id=merchant_request_id,
                    shortcode=push.shortcode,
                    receiver=push.receiver,
                    phone=push.phone,
                    amount=push.amount,
                    reference=push.reference,
                    description=push.description,
                    callback_url=push.callback_url,
                    behaviour=behaviour.name,
                    created_at=now,
                    ends_at=now + timedelta(seconds=wait),
                )
            )
        await self._let_strangers_pay(push, now)
        self._due.set()
        self._pulse.notify()
        return checkout_request_id, merchant_request_id

    async def _let_strangers_pay(self, push: Push, now: datetime) -> None:
        """Write other people's payments at the receiver; none while ``strangers`` is 0."""
        count = await self._controls.knob("strangers")
        if not count:
            return
        seen = bystanders.Push(
            receiver=push.receiver,
            is_till=push.receiver != push.shortcode,
            phone=push.phone,
            amount=push.amount,
            reference=push.reference,
            at=now,
        )
        strangers = bystanders.bystanders_of(seen, count, await self._chance.draw(16))
        receipts = await self._chance.receipts([movement.at for movement in strangers])
        for movement, receipt in zip(strangers, receipts, strict=True):
            await self._results.record(msgspec.structs.replace(movement, receipt=receipt))

    async def answer(self, checkout_request_id: str, answer: str) -> Row:
        """Answer an open prompt by hand. Raises NotFound without such a push, Conflict when it has ended."""
        async with self._db.transaction():
            row = require_found(await self._db.fetchrow(tables.LOCK_PUSH, checkout_request_id), "there is no such push")
            if row["state"] != "open":
                raise Conflict("this prompt is not open any more")
            await self.end(row, ANSWERS[answer])
        self._due.set()
        return await self.find(checkout_request_id)

    async def find(self, checkout_request_id: str) -> Row:
        """Raises NotFound."""
        return require_found(await self._db.fetchrow(tables.FIND, checkout_request_id), "there is no such push")

    async def list_pushes(self, phone: str | None, reference: str | None, state: str | None, limit: int) -> list[Found]:
        wanted = ((PushRow.phone, phone), (PushRow.reference, reference), (PushRow.state, state))
        found: list[Found] = await self._db.run(
            PushRow.select()
            .where(*(column == value for column, value in wanted if value is not None))
            .order_by(PushRow.created_at, ascending=False)
            .limit(limit)
        )
        return found

    async def ledger(self, phone: str | None, limit: int) -> list[Row]:
        return await self._db.fetch(tables.LEDGER, phone, limit, self._clock.now())

    async def add_money(
        self, phone: str, amount: int, shortcode: str, reference: str, at: datetime | None, **more: Any
    ) -> str:
        """Write money without a push to the ledger; returns its receipt.

        ``more`` are further fields of `bystanders.Movement`, such as ``kind``.
        """
        moment = at or self._clock.now()
        movement = bystanders.Movement(
            receipt=await self._chance.receipt(moment),
            phone=phone,
            amount=amount,
            shortcode=shortcode,
            reference=reference,
            at=moment,
            **more,
        )
        await self._results.record(movement)
        self._pulse.notify()
        return movement.receipt

    async def end_due(self) -> int:
        """End the prompts whose time is up; returns their count."""
        async with self._db.transaction():
            rows = await self._db.fetch(tables.DUE_PUSHES, self._clock.now())
            for row in rows:
                # Money moves at the time of the phone's answer, not of this poll.
                await self.end(row, by_name(row["behaviour"]).result_code, row["ends_at"])
        return len(rows)

    async def end(self, row: Row, result_code: str, acted_at: datetime | None = None) -> list[int]:
        """End a prompt in the open transaction, with its ledger row and callbacks; returns the callbacks' ids."""
        now = self._clock.now()
        acted_at = acted_at or now
        behaviour = by_name(row["behaviour"])
        receipt = await self._chance.receipt(acted_at) if result_code == "0" else None
        await self._db.execute(tables.END_PUSH, row["checkout_request_id"], result_code, receipt, acted_at)
        await self._db.after_commit(self._pulse.notify_after_commit)
        if receipt is not None:
            shown: dict[str, Any] = {}
            if await self._controls.knob("strangers"):
                shown["payer_shown"], shown["time_shown"] = bystanders.shown_by_chance(await self._chance.draw(16))
            movement = bystanders.Movement(
                receipt=receipt,
                checkout_request_id=row["checkout_request_id"],
                phone=row["phone"],
                amount=row["amount"],
                shortcode=row["receiver"],
                reference=row["reference"],
                at=acted_at,
                kind="push",
                **shown,
            )
            await self._results.record(movement)
            await self._confirm(row, receipt, acted_at)
        if behaviour.callback == "never":
            return []
        late = await self._controls.knob("late_delay") if behaviour.callback == "late" else 0.0
        jitter = await self._controls.knob("callback_jitter")
        habit = await self._controls.habit("callback")
        body, encoding = written(callback_body(row, result_code, receipt, acted_at, behaviour, habit), habit)
        owed: list[int] = []
        for _ in range(2 if behaviour.callback == "twice" else 1):
            wait = late + (jitter * await self._chance.share() if jitter else 0.0)
            due = now + timedelta(seconds=wait)
            owed.append(
                await self._db.fetchval(tables.INSERT_CALLBACK, row["checkout_request_id"], body, encoding, due)
            )
        return owed

    async def _confirm(self, row: Row, receipt: str, at: datetime) -> None:
        """A shortcode with C2B addresses gets a confirmation of its pushes too, even if the callback fails."""
        is_till = row["receiver"] != row["shortcode"]
        money = C2bMoney(
            receipt=receipt,
            phone=row["phone"],
            amount=row["amount"],
            shortcode=row["receiver"],
            account_number="" if is_till else row["reference"],
            kind="buy_goods" if is_till else "pay_bill",
            at=at,
        )
        await self._confirmations.confirm_push(money, row["shortcode"])
