"""Protects the turns of shortcodes: a slow or unresponsive statement starves no other."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.clock import SetClock
from mpesa_gateway.testing.serving import INITIATED, eventually, running_gateway, shop
from mpesa_gateway_reconciliation.service import ReconciliationService
from mpesa_gateway_reconciliation.turns import Turns
from tests.daraja import Daraja
from tests.stored import default_shortcode

TILLS = tuple(str(5_200_001 + number) for number in range(6))

READ = """
SELECT DISTINCT shortcode FROM reconciliation_run WHERE status = 'completed' AND run_id >= id_least('run', $1)
"""


def test_turns_are_in_the_order_of_arrival() -> None:
    turns = Turns()
    for one in ("c", "a", "b"):
        turns.wait(one)
    assert [turns.wake(lambda _: True) for _ in range(4)] == ["c", "a", "b", None]


def test_woken_shortcode_without_a_slot_keeps_its_turn() -> None:
    turns = Turns()
    for one in ("a", "b", "a"):
        turns.wait(one)
    assert turns.wake(lambda _: True) == "a"
    # Another job was quicker.
    turns.wait("a")
    assert turns.wake(lambda _: True) == "a"
    turns.end("a")
    turns.wait("a")
    assert [turns.wake(lambda _: True) for _ in range(2)] == ["b", "a"]


def test_shortcode_without_room_is_passed_over_and_keeps_its_turn() -> None:
    """One of two unresponsive shortcodes has the only slot for such."""
    places, turns = Bulkhead(3, each=1), Turns()
    for one in ("a", "b"):
        places.record_answer(one, answered=False)
    with places.acquire("a") as has_slot:
        assert has_slot
        for one in ("b", "c"):
            turns.wait(one)
        assert [turns.wake(places.is_free) for _ in range(2)] == ["c", None]
    assert turns.wake(places.is_free) == "b"


@dataclass(frozen=True)
class Tills:
    """A merchant for each till, ordered by its shortcode's id."""

    gateway: Gateway
    clock: SetClock
    shortcodes: dict[str, str]
    """Ids by till."""

    @property
    def service(self) -> ReconciliationService:
        return self.gateway.services.get(ReconciliationService)

    async def wait_until_read(self, tills: set[str], since: datetime) -> None:
        async def are_read() -> bool:
            return {row["shortcode"] for row in await self.gateway.db.fetch(READ, since)} >= tills

        await eventually(are_read)


@pytest.fixture
async def tills(values: dict[str, Any], daraja: Daraja) -> AsyncGenerator[Tills]:
    values |= {"daraja": {"sandbox_url": daraja.base}, "reconciliation": {"max_concurrent": 2, "wait": 0.1}}
    clock = SetClock(datetime(2026, 11, 23, 12, 1, tzinfo=UTC))
    async with running_gateway(values, clock=clock) as (gateway, base), AsyncExitStack() as stack:
        found: dict[str, str] = {}
        for till in TILLS:
            api = await stack.enter_async_context(shop(gateway, base))
            body = {"provider": "mpesa", "mpesa": INITIATED["mpesa"] | {"till_number": till}}
            assert (await api.call("PUT", "/v1/merchant/providers", body)).status == 200
            merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
            found[till] = await default_shortcode(gateway, merchant_id)
        yield Tills(gateway, clock, found)


async def test_slow_shortcode_starves_no_other(tills: Tills, daraja: Daraja) -> None:
    """Six tills, two slots, and one till whose statement never ends."""
    slow, *others = TILLS
    go = daraja.hold("pullquery", slow)
    hanging = asyncio.create_task(tills.service.run_due(tills.shortcodes[slow]))
    try:
        await daraja.wait_for_requests("pullquery")
        for _ in range(3):
            tills.clock.advance(timedelta(minutes=15))
            since = tills.clock.now()
            assert await tills.service.enqueue_all() == len(TILLS)
            await tills.wait_until_read(set(others), since)
    finally:
        go.set()
        assert await hanging


async def test_slow_shortcodes_leave_a_slot_to_others(tills: Tills, daraja: Daraja) -> None:
    """Their runs took minutes: from then on they share one slot."""
    first, second, *others = TILLS
    for till in (first, second):
        go = daraja.hold("pullquery", till)
        run = asyncio.create_task(tills.service.run_due(tills.shortcodes[till]))
        await daraja.wait_for_requests("pullquery", TILLS.index(till) + 1)
        tills.clock.advance(timedelta(minutes=2))
        go.set()
        assert await run
    go = daraja.hold("pullquery")
    asked = len(daraja.requests_of("pullquery"))
    runs = [asyncio.create_task(tills.service.run_due(tills.shortcodes[till])) for till in TILLS]
    await daraja.wait_for_requests("pullquery", asked + 2)
    assert await runs[1] is False
    tried = {request["ShortCode"] for request in daraja.requests_of("pullquery")[asked:]}
    assert tried == {first, others[0]}
    go.set()
    await asyncio.gather(*runs)
    await tills.wait_until_read(set(TILLS), tills.clock.now())


async def test_shortcode_read_least_recently_is_enqueued_first(tills: Tills, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    async def enqueue(_: str, /, **kwargs: Any) -> bool:
        order.append(kwargs["shortcode_id"])
        return True

    monkeypatch.setattr(tills.gateway.jobs, "enqueue", enqueue)
    ids = tills.shortcodes
    for till in (TILLS[3], TILLS[0], TILLS[3]):
        assert await tills.service.run_due(ids[till])
        tills.clock.advance(timedelta(minutes=1))
    await tills.service.enqueue_all()
    never = sorted(ids[till] for till in TILLS if till not in {TILLS[0], TILLS[3]})
    assert [sorted(order[:4]), *order[4:]] == [never, ids[TILLS[0]], ids[TILLS[3]]]
