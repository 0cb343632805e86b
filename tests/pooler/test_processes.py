"""Protects separate processes behind one PgBouncer: from push to webhook, no payment is lost."""

import asyncio
from pathlib import Path

from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, eventually, shop
from tests.journeys.site import books, running_site, until_up
from tests.pooler.conftest import POOL

_PAYMENTS = 40


async def test_processes_behind_pgbouncer_share_a_few_connections(
    pooled_url: str, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(pooled_url, valkey_url, tmp_path) as site:
        site.values["database"]["direct_url"] = database_url
        for start in (site.start_simulator, lambda: site.start_api(0), lambda: site.start_api(1), site.start_worker):
            start()
        everybody = [f"{base}/health/ready" for base in site.bases] + [f"{site.simulator}/health/live"]
        await asyncio.gather(*(until_up(url, 120) for url in everybody))
        async with (
            receiving() as receiver,
            books(site) as gateway,
            shop(gateway, site.bases[0], webhook_url=receiver.url) as first,
        ):
            second = Api(site.bases[1], first.key)
            answers = await asyncio.gather(
                *((first, second)[n % 2].pay("254711000050", 50 + n, key=f"pay-{n}") for n in range(_PAYMENTS))
            )
            assert {answer.status for answer in answers} == {201}
            ids = {answer.data["id"] for answer in answers}
            assert len(ids) == _PAYMENTS
            for payment_id in ids:
                await second.settled(payment_id, "completed", patience=60)
            await receiver.wait_for(_PAYMENTS, patience=60)
            received = [webhook.json["data"]["payment_id"] for webhook in receiver.received]
            assert sorted(received) == sorted(ids)
            assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == _PAYMENTS
            # Listeners have direct connections that bypass the pooler.
            shared = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'mpesa-gateway' AND query NOT LIKE 'LISTEN%'"
            )
            assert 1 <= await gateway.db.fetchval(shared) <= POOL

            async def is_turned_away() -> bool:
                return (await second.call("GET", "/v1/payments")).status == 401

            assert (await second.call("GET", "/v1/payments")).status == 200
            await gateway.db.execute("UPDATE api_key SET revoked_at = now()")
            await eventually(is_turned_away, 10)
            await second.close()
