"""Queues C2B confirmations. Each is sent once, and again only on request of the control API."""

from datetime import timedelta

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.c2b_bodies import C2bManner, C2bMoney, c2b_body
from mpesa_gateway_simulator.c2b_registrations import C2bRegistrations
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.tables import ResultRow

CONFIRMATION = "c2bconfirmation"
"""The operation of a confirmation among the results to post."""


class C2bConfirmations:
    """Writes confirmations in the transaction that moves the money."""

    def __init__(self, *, db: Database, clock: Clock, controls: Controls, registrations: C2bRegistrations) -> None:
        self._db = db
        self._clock = clock
        self._controls = controls
        self._registrations = registrations

    async def confirm_push(self, money: C2bMoney, store_number: str) -> None:
        """Confirm a paid push as C2B does where its till or store number has registered addresses."""
        registration = await self._registrations.find(money.shortcode, store_number)
        if registration is not None:
            await self.confirm(money, C2bManner(), registration)

    async def confirm(self, money: C2bMoney, manner: C2bManner, registration: Found, third_party: str = "") -> None:
        balance = int(await self._db.fetchval(tables.HELD, money.shortcode, money.at))
        delay = await self._controls.knob("late_delay" if manner.confirmation == "late" else "callback_delay")
        due = self._clock.now() + timedelta(seconds=delay)
        row = ResultRow(
            operation=CONFIRMATION,
            originator_conversation_id=money.receipt,
            callback_url=registration["confirmation_url"],
            body=c2b_body(money, manner, registration["version"], balance=balance, third_party=third_party),
            encoding="utf-8",
            due_at=None if manner.confirmation == "lost" else due,
        )
        await self._db.run(ResultRow.insert(row))

    async def find(self, receipt: str) -> Found | None:
        """Return the confirmation of a receipt, sent or lost."""
        row: Found | None = await self._db.run(
            ResultRow.select()
            .where(ResultRow.operation == CONFIRMATION, ResultRow.originator_conversation_id == receipt)
            .first()
        )
        return row
