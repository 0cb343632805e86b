"""Stores the delays, faults and habits of the simulator."""

from collections.abc import Mapping

from mpesa_gateway.db.engine import Database
from mpesa_gateway_simulator import tables
from mpesa_gateway_simulator.exchange_log import ChangeSignal
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.tables import (
    C2bPaymentRow,
    C2bRegistrationRow,
    CallbackRow,
    FaultRow,
    HabitRow,
    HandRow,
    KnobRow,
    PushRow,
    RegistrationRow,
    ResultRow,
    ReversalRow,
    TransactionRow,
)
from mpesa_gateway_simulator.validation import named_fault

_FORGOTTEN = (
    CallbackRow,
    PushRow,
    ReversalRow,
    ResultRow,
    TransactionRow,
    C2bPaymentRow,
    C2bRegistrationRow,
    FaultRow,
    KnobRow,
    RegistrationRow,
    HabitRow,
    HandRow,
)
"""The tables that a reset empties. Only an owner may TRUNCATE; the simulator's role is another one."""


class Controls:
    """Reads and changes the simulator's behaviour. All processes see a change at once."""

    def __init__(self, *, db: Database, settings: SimulatorSettings, pulse: ChangeSignal) -> None:
        self._db = db
        self._settings = settings
        self._pulse = pulse

    async def habit(self, operation: str) -> str:
        found: str | None = await self._db.fetchval(tables.HABIT, operation)
        return found or "normal"

    async def play_fault(self, operation: str) -> None:
        """Raise the Fault set for the next request of an operation, and count it down."""
        fault = await self._db.fetchval(tables.TAKE_FAULT, operation)
        if fault is not None:
            raise named_fault(fault)

    async def knob(self, name: str) -> float:
        turned = await self._db.fetchval(tables.KNOB, name)
        return float(turned) if turned is not None else float(getattr(self._settings, name))

    async def set_knobs(self, values: Mapping[str, float]) -> None:
        """Set delays, in seconds, from the next push on."""
        for name, value in values.items():
            await self._db.run(
                KnobRow.insert(KnobRow(name=name, value=value)).on_conflict(
                    target=KnobRow.name, action="DO UPDATE", values=[KnobRow.value]
                )
            )

    async def set_fault(self, operation: str, fault: str, times: int) -> None:
        """Answer the next ``times`` requests of an operation with a fault. Raises KeyError for an unknown fault."""
        named_fault(fault)
        await self._db.run(
            FaultRow.insert(FaultRow(operation=operation, fault=fault, remaining=times)).on_conflict(
                target=FaultRow.operation, action="DO UPDATE", values=[FaultRow.fault, FaultRow.remaining]
            )
        )

    async def set_habit(self, operation: str, habit: str) -> None:
        await self._db.run(
            HabitRow.insert(HabitRow(operation=operation, habit=habit)).on_conflict(
                target=HabitRow.operation, action="DO UPDATE", values=[HabitRow.habit]
            )
        )

    async def reset(self) -> None:
        """Delete all rows and settings, and restart the random sequence."""
        async with self._db.transaction():
            for table in _FORGOTTEN:
                await self._db.run(table.delete(force=True))
            # raw SQL: function - our own, in a migration.
            await self._db.execute("SELECT sim_chance_begins_again()")
        self._pulse.notify()
