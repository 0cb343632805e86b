"""Protects the clock shared by all processes: Postgres', so that a wrong clock of one machine delays nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock, SharedClock
from mpesa_gateway.config import GatewayConfig

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Counter:
    """A counter of seconds that a test advances."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


async def test_shared_clock_before_its_first_comparison_is_the_machines() -> None:
    assert SharedClock(SetClock(NOON)).now() == NOON


@pytest.mark.parametrize("wrong", [timedelta(seconds=90), timedelta(seconds=-90), timedelta(days=400)])
async def test_shared_clock_corrects_a_wrong_machine_and_returns_the_difference(wrong: timedelta) -> None:
    count = Counter()
    clock = SharedClock(SetClock(NOON + wrong), count)

    async def ask() -> datetime:
        return NOON

    assert await clock.synchronize(ask) == wrong
    assert clock.now() == NOON
    count.seconds += 7.5
    assert clock.now() == NOON + timedelta(seconds=7.5)


async def test_shared_clock_ignores_a_later_change_of_the_machines_clock() -> None:
    machine, count = SetClock(NOON), Counter()
    clock = SharedClock(machine, count)

    async def ask() -> datetime:
        return NOON

    await clock.synchronize(ask)
    machine.advance(timedelta(hours=-3))
    count.seconds += 1
    assert clock.now() == NOON + timedelta(seconds=1)


async def test_shared_clock_adds_half_of_the_round_trip_and_ignores_slow_answers() -> None:
    count = Counter()
    clock = SharedClock(SetClock(NOON), count)

    async def ask() -> datetime:
        # Two seconds there and two back.
        count.seconds += 4
        return NOON + timedelta(seconds=2)

    await clock.synchronize(ask)
    assert clock.now() == NOON + timedelta(seconds=4)

    async def ask_again() -> datetime:
        # All four on the way there: Postgres read its clock just before it answered.
        count.seconds += 4
        return NOON + timedelta(seconds=8)

    await clock.synchronize(ask_again)
    assert clock.now() == NOON + timedelta(seconds=8)


async def test_shared_clock_of_a_running_gateway_is_postgres_time(values: dict[str, Any]) -> None:
    wrong = SharedClock(SetClock(NOON - timedelta(days=9000)))
    async with Gateway(
        GatewayConfig.from_values(values | {"worker": {"in_process": False}}), clock=wrong
    ).running() as (gateway):
        before = await gateway.db.fetchval("SELECT clock_timestamp()")
        now = gateway.clock.now()
        after = await gateway.db.fetchval("SELECT clock_timestamp()")
    slack = timedelta(seconds=5)
    assert before - slack < now < after + slack


async def test_gateway_with_a_given_clock_uses_it(values: dict[str, Any]) -> None:
    clock = SetClock(NOON)
    config = GatewayConfig.from_values(values | {"worker": {"in_process": False}})
    async with Gateway(config, clock=clock).running() as gateway:
        assert gateway.clock.now() == NOON
