"""Two APIs and a worker read from a replica: nobody is shown less than was committed, and no call fails with it."""

import asyncio
import csv
import io
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import niquests

from mpesa_gateway.app import Gateway
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import Api, eventually, shop
from mpesa_gateway.testing.standby import Standby, database_of, running_primary, running_standby
from tests.identifiers import expression
from tests.journeys.site import Site, books, running_site, until_up

_PAYMENTS, _ROWS = 15, 30_000

_FILL = f"""
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, idempotency_key, status, failure_reason, expires_at, created_at, updated_at)
SELECT {expression("pay", "at", "i")}, merchant_id, 'sandbox', 'mpesa',
    '174379', (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1), 1 + i % 100, 'KES', '254711000001',
    'ROW' || i, false, 'Payment', 'fill-' || i, 'failed', 'expired', now(),
    at, now()
FROM merchant, (
    SELECT i, now() - interval '1 day' - i * interval '1 second' AS at FROM generate_series(1, $1::int) AS i) AS made
"""  # noqa: S608 - ids that the test chose


@dataclass
class Reading:
    """A site whose APIs read from a replica, and a shop that calls both."""

    site: Site
    standby: Standby
    gateway: Gateway
    shops: tuple[Api, Api]
    receiver: Receiver

    async def answered(self, by: str, why: str = "") -> float:
        """How many reads of both APIs the replica, or the primary for this reason, has answered."""
        pattern = rf'mpesa_replica_reads_total{{answered_by="{by}",why="{why}"}} ([0-9.]+)'
        async with niquests.AsyncSession() as session:
            texts = [(await session.get(f"{base}/metrics")).text or "" for base in self.site.bases]
        return sum(float(number) for text in texts for number in re.findall(pattern, text))

    async def is_read_from(self) -> None:
        """Wait until both APIs read from the replica."""

        async def both() -> bool:
            for one in self.shops:
                before = await self.answered("replica")
                assert (await one.call("GET", "/v1/payments")).status == 200
                if await self.answered("replica") == before:
                    return False
            return True

        await eventually(both, 60)


@asynccontextmanager
async def reading_site(url: str, standby: Standby, valkey_url: str, folder: Path) -> AsyncGenerator[Reading]:
    """All of it, running for the length of the block."""
    with running_site(url, valkey_url, folder) as site:
        site.values["plugins"].append("metrics")
        site.values["metrics"] = {"networks": ["127.0.0.0/8"]}
        # However slow this machine is.
        site.values["database"] |= {"replica_url": standby.url(url), "replica_max_lag": 10}
        site.start_api(0)
        site.start_api(1)
        site.start_worker()
        site.start("serve", "--port", str(site.simulator_port), plugins=["simulator"], metrics={})
        everybody = [f"{base}/health/ready" for base in site.bases] + [f"{site.simulator}/health/live"]
        await asyncio.gather(*(until_up(one, 120) for one in everybody))
        async with (
            receiving() as receiver,
            books(site) as gateway,
            shop(gateway, site.bases[0], webhook_url=receiver.url) as first,
        ):
            second = Api(site.bases[1], first.key)
            yield Reading(site, standby, gateway, (first, second), receiver)
            await second.close()


async def test_a_site_that_reads_from_a_replica(valkey_url: str, tmp_path: Path) -> None:
    """In one go, since starting all of this takes longer than what is looked at."""
    with running_primary() as primary, running_standby(primary) as standby, database_of(primary) as url:
        async with reading_site(url, standby, valkey_url, tmp_path) as reading:
            await whoever_has_made_a_payment_or_heard_of_one_finds_it_in_the_list_of_any_process(reading)
            await a_replica_that_dies_takes_no_call_with_it_and_is_used_again(reading)
            await a_file_goes_on_at_the_primary_without_a_row_twice_or_missing(reading)


async def whoever_has_made_a_payment_or_heard_of_one_finds_it_in_the_list_of_any_process(reading: Reading) -> None:
    await reading.is_read_from()
    before = await reading.answered("replica")
    ids: list[str] = []
    for number in range(_PAYMENTS):
        here, there = reading.shops[number % 2], reading.shops[1 - number % 2]
        made = await here.pay("254711000050", 50 + number, key=f"pay-{number}")
        ids.append(made.data["id"])
        listed = (await there.call("GET", "/v1/payments?limit=1&count=true")).body
        assert (listed["data"][0]["id"], listed["meta"]["total"]) == (ids[-1], number + 1)
        # Somebody else has written this: whichever API the callback came to.
        await reading.receiver.wait_for(number + 1, patience=60)
        assert reading.receiver.received[-1].json["data"]["payment_id"] == ids[-1]
        for one in reading.shops:
            listed = (await one.call("GET", "/v1/payments?status=completed&limit=1")).data
            assert listed[0]["id"] == ids[-1]
            told = (await one.call("GET", "/v1/events?type=payment.completed&limit=1")).data
            assert told[0]["data"]["payment_id"] == ids[-1]
    assert await reading.answered("replica") - before >= 5 * _PAYMENTS
    assert await _by_primary(reading) == 0


async def a_replica_that_dies_takes_no_call_with_it_and_is_used_again(reading: Reading) -> None:
    await reading.is_read_from()
    is_over = False

    async def keep_listing(api: Api) -> set[int]:
        seen: set[int] = set()
        while not is_over:
            seen.add((await api.call("GET", "/v1/payments")).status)
            seen.add((await api.call("GET", "/health/ready")).status)
            await asyncio.sleep(0.01)
        return seen

    listing = [asyncio.create_task(keep_listing(api)) for api in reading.shops for _ in range(3)]
    await asyncio.to_thread(reading.standby.stop)

    async def primary_answers() -> bool:
        return await reading.answered("primary", "resting") > 20

    await eventually(primary_answers, 60)
    health = (await reading.shops[0].call("GET", "/health/ready")).body["data"]
    assert health["ready"]
    assert health["parts"]["replica"]["ok"] is False
    reading.standby.start()
    await reading.is_read_from()
    is_over = True
    assert await asyncio.gather(*listing) == [{200}] * len(listing)
    said = (reading.site.folder / "log").read_text()
    # One line of each API, however many calls it was.
    assert 1 <= len(re.findall(r'"replica_left_alone".*"warning"|"warning".*"replica_left_alone"', said)) <= 3
    assert "replica_used_again" in said


async def a_file_goes_on_at_the_primary_without_a_row_twice_or_missing(reading: Reading) -> None:
    await reading.gateway.db.execute(_FILL, _ROWS)
    listed = (await reading.shops[0].call("GET", "/v1/payments?limit=100")).data
    await reading.is_read_from()
    whole = [payment["reference"] for payment in listed][:_PAYMENTS] + [
        f"ROW{number}" for number in range(1, _ROWS + 1)
    ]
    replica_before, primary_before = await reading.answered("replica"), await _by_primary(reading)
    taken: list[bytes] = []
    async with reading.shops[0].streaming("/v1/payments/export") as chunks:
        taken.append(await anext(chunks))
        await asyncio.to_thread(reading.standby.stop)
        taken += [chunk async for chunk in chunks]
    assert _references(b"".join(taken)) == whole
    by_replica = await reading.answered("replica") - replica_before
    by_primary = await _by_primary(reading) - primary_before
    assert by_replica > 0
    assert by_primary > 0
    assert by_replica + by_primary == _ROWS // 1000 + 1
    reading.standby.start()
    # What the primary does meanwhile, the replica can only replay by cancelling who reads.
    async with _locking(reading.gateway):
        while not await reading.answered("primary", "conflict"):
            await reading.is_read_from()
            answer = await reading.shops[1].download("/v1/payments/export")
            assert _references(answer.content or b"") == whole


async def _by_primary(reading: Reading) -> float:
    return sum([await reading.answered("primary", why) for why in ("away", "resting")])


def _references(file: bytes) -> list[Any]:
    return [row["reference"] for row in csv.DictReader(io.StringIO(file.decode(), newline=""))]


@asynccontextmanager
async def _locking(gateway: Gateway) -> AsyncGenerator[None]:
    """A table is locked again and again, as a migration would, for the length of the block."""

    async def lock() -> None:
        while True:
            async with gateway.db.transaction():
                await gateway.db.execute("LOCK TABLE payment IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(0.01)

    task = asyncio.create_task(lock())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
