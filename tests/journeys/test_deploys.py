"""Protects rolling deploys: processes replaced one by one lose no request, requeue their jobs and repeat no push."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import niquests
import pytest

from bench.chaos.balancer import Balancer
from mpesa_gateway.app import Gateway
from mpesa_gateway.db.migrator import Migration, MigrationError, migrate
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, eventually, shop
from mpesa_gateway_payments.api import PaymentRequest, Payments
from tests.conftest import Harness
from tests.journeys.site import Site, books, running_site, until_up

pytestmark = pytest.mark.as_owner

SLOW = "254700000017"
"""Pays, with a slow answer to its push."""

DRAIN = 4
"""Seconds that a stopping API continues to serve, long enough for a proxy that probes ten times a second."""


@asynccontextmanager
async def balanced(site: Site) -> AsyncGenerator[Balancer]:
    """Return a proxy in front of both APIs once both are ready."""
    balancer = Balancer(site.ports)
    await balancer.start()
    try:
        await ready(balancer, 2)
        yield balancer
    finally:
        await balancer.stop()


async def ready(balancer: Balancer, count: int) -> None:
    """Wait until the proxy sends requests to this many APIs."""

    async def are_ready() -> bool:
        return len(balancer.ready) == count

    await eventually(are_ready, 60)


class Customers:
    """Buyers that create payments until stopped and store the answers."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.is_over = False
        self.payments: list[str] = []
        self.statuses: set[int] = set()

    async def shop(self, number: int) -> None:
        """Create one payment after another and read each."""
        bought = 0
        while not self.is_over:
            made = await self.api.pay(f"2547{11_000_000 + number * 10_000 + bought}", 5, key=f"{number}-{bought}")
            self.statuses.add(made.status)
            self.payments.append(made.data["id"])
            self.statuses.add((await self.api.call("GET", f"/v1/payments/{made.data['id']}")).status)
            bought += 1
            await asyncio.sleep(0.05)


async def test_rolling_deploy_under_load_loses_no_request(database_url: str, valkey_url: str, tmp_path: Path) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.values["http"] = {"drain": DRAIN}
        site.start_simulator()
        site.start_worker()
        apis = [site.start_api(0), site.start_api(1)]
        await until_up(f"{site.simulator}/health/live")
        async with (
            balanced(site) as balancer,
            books(site) as gateway,
            shop(gateway, balancer.base) as api,
        ):
            customers = Customers(api)
            buying = [asyncio.create_task(customers.shop(number)) for number in range(4)]
            for number in (0, 1):
                so_far = len(customers.payments)
                apis[number].send_signal(signal.SIGTERM)
                await ready(balancer, 1)
                assert await asyncio.to_thread(apis[number].wait, 60) == 0
                apis[number] = site.start_api(number)
                await ready(balancer, 2)
                assert len(customers.payments) > so_far
            customers.is_over = True
            await asyncio.gather(*buying)
            assert balancer.lost == []
            assert customers.statuses == {200, 201}
            for payment_id in customers.payments:
                await api.settled(payment_id, "completed", patience=60)
            assert await gateway.db.fetchval("SELECT count(*) FROM payment") == len(customers.payments)
            assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == len(customers.payments)


async def test_worker_stopped_with_unfinished_jobs_requeues_them(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.start_simulator()
        # The timeout of a whole call is long: only a requeued job can finish within this test.
        site.values |= {"webhooks": {"timeout": 15}, "worker": {"grace": 1}}
        site.start_api(0)
        worker = site.start_worker()
        await asyncio.gather(until_up(f"{site.bases[0]}/health/ready"), until_up(f"{site.simulator}/health/live"))
        async with (
            receiving() as receiver,
            books(site) as gateway,
            shop(gateway, site.bases[0], webhook_url=receiver.url) as api,
        ):
            receiver.delay = 300.0
            made = (await api.pay("254711000060", 10, key="stop")).data
            await receiver.wait_for(1, patience=60)
            receiver.delay = 0.0
            site.start_worker()
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, 60) == 0
            first, second = await receiver.wait_for(2, patience=60)
            assert first.headers["webhook-id"] == second.headers["webhook-id"]
            assert first.body == second.body

            async def is_delivered() -> bool:
                return bool(await gateway.db.fetchval("SELECT status = 'delivered' FROM delivery"))

            await eventually(is_delivered)
            assert second.json["data"]["payment_id"] == made["id"]
            assert len(receiver.received) == 2


async def interrupted(site: Site, gateway: Gateway, api: Api, victim: Any, number: signal.Signals) -> Any:
    """Create a payment and signal the API that serves it during the push; returns the client's answer."""
    slow = Api(site.simulator, None)
    await slow.call("PATCH", "/simulator/control/knobs", {"slow_answer": 5, "callback_delay": 8})
    await slow.close()
    paying = asyncio.create_task(api.pay(SLOW, 77, key="one"))
    await eventually(lambda: gateway.db.fetchval("SELECT count(*) FROM sim_push"), 60)
    assert not paying.done()
    victim.send_signal(number)
    await asyncio.to_thread(victim.wait, 60)
    return (await asyncio.gather(paying, return_exceptions=True))[0]


async def test_push_interrupted_by_a_kill_is_not_repeated_and_completes(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.start_simulator()
        site.values["payments"] = {"create_lease": 3}
        site.start_api(0)
        victim = site.start_api(1)
        await asyncio.gather(*(until_up(f"{base}/health/live") for base in (*site.bases, site.simulator)))
        async with books(site) as gateway, shop(gateway, site.bases[0]) as api:
            there = Api(site.bases[1], api.key)
            assert isinstance(
                await interrupted(site, gateway, there, victim, signal.SIGKILL), niquests.exceptions.RequestException
            )
            await there.close()
            # The result of the push is unknown: the same key sends no second push, then or later.
            statuses = set[int]()

            async def is_answered() -> Any:
                again = await api.pay(SLOW, 77, key="one")
                statuses.add(again.status)
                return again.data if again.status == 200 else None

            known = await eventually(is_answered, 60)
            assert statuses <= {200, 409}
            paid = await api.settled(known["id"], "completed", patience=60)
            assert (paid["receipt"], paid["amount"]) != (None, None)
            assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1
            assert await gateway.db.fetchval("SELECT receipt FROM sim_transaction") == paid["receipt"]


async def test_push_in_flight_at_a_stop_is_finished_first(database_url: str, valkey_url: str, tmp_path: Path) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.start_simulator()
        site.start_api(0)
        victim = site.start_api(1)
        await asyncio.gather(*(until_up(f"{base}/health/live") for base in (*site.bases, site.simulator)))
        async with books(site) as gateway, shop(gateway, site.bases[0]) as api:
            there = Api(site.bases[1], api.key)
            made = await interrupted(site, gateway, there, victim, signal.SIGTERM)
            await there.close()
            assert (made.status, made.data["status"]) == (201, "pending")
            assert made.data["provider_ref"]
            assert victim.returncode == 0
            await api.settled(made.data["id"], "completed", patience=60)
            assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1


async def test_push_after_a_disconnect_and_a_stop_is_recorded(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.start_simulator()
        site.start_api(0)
        await asyncio.gather(until_up(f"{site.bases[0]}/health/live"), until_up(f"{site.simulator}/health/live"))
        async with books(site) as gateway, shop(gateway, site.bases[0]) as api:
            simulator = Api(site.simulator, None)
            await simulator.call("PATCH", "/simulator/control/knobs", {"slow_answer": 3, "callback_delay": 60})
            await simulator.close()
            merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
            request = PaymentRequest(amount=Kes(5), phone=Msisdn(SLOW))
            payments = gateway.services.get(Payments)
            paying = asyncio.create_task(payments.request(merchant_id, "sandbox", request, idempotency_key="one"))
            await eventually(lambda: gateway.db.fetchval("SELECT count(*) FROM sim_push"))
            paying.cancel()
            await gateway.stop()
            (left,) = await api_list(api)
            assert (left["status"], left["provider_ref"] is not None) == ("pending", True)
            assert [step["kind"] for step in await timeline(api, left["id"])] == ["requested", "sent"]


async def api_list(api: Api) -> list[dict[str, Any]]:
    """Return all payments, read through another process."""
    found: list[dict[str, Any]] = (await api.call("GET", "/v1/payments")).data
    return found


async def timeline(api: Api, payment_id: str) -> list[dict[str, Any]]:
    """Return a payment's timeline, read through another process."""
    found: list[dict[str, Any]] = (await api.call("GET", f"/v1/payments/{payment_id}")).data["timeline"]
    return found


# -- the previous release on the schema of the next one -----------------------------------------------------------


TABLES = """
SELECT relname AS tablename FROM pg_class
WHERE relnamespace = 'mpesa'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
"""


async def add_what_a_release_may_add(gateway: Gateway) -> None:
    """Add columns to every table, a table, an index and a constraint, as the next release's migrations may."""
    tables = await gateway.db.fetch(TABLES)
    add = "ADD COLUMN next_word text, ADD COLUMN next_flag boolean NOT NULL DEFAULT false"
    await apply(
        gateway,
        [
            "".join(f"ALTER TABLE {row['tablename']} {add};\n" for row in tables if row["tablename"] != "migration"),
            "CREATE TABLE next_table (payment_id uuid REFERENCES payment)",
            "CREATE INDEX CONCURRENTLY next_index ON payment (next_word, amount)",
            "ALTER TABLE payment ADD CONSTRAINT next_rule CHECK (amount > 0 OR next_flag) NOT VALID",
            "ALTER TABLE payment VALIDATE CONSTRAINT next_rule",
        ],
    )


async def apply(gateway: Gateway, statements: list[str]) -> None:
    """Apply the migrations of the next release."""
    newest = await gateway.db.fetchval("SELECT max(number) FROM migration WHERE owner = 'payments'")
    added = [
        Migration("payments", number, f"{number:04}_next.sql", sql)
        for number, sql in enumerate(statements, start=newest + 1)
    ]
    known = await gateway.db.fetch("SELECT number, name, digest FROM migration WHERE owner = 'payments'")
    earlier = [one for one in gateway.migrations if one.number <= len(known)]
    assert await migrate(gateway.db, [*earlier, *added]) == added


async def call_everything(harness: Harness, day: str) -> None:
    """Call a bit of every merchant operation."""
    api = harness.api
    paid = (await api.pay("254711000001", 500, key=f"paid-{day}", metadata={"order": "7"})).data
    failed = (await api.pay("254700000001", 5, key=f"failed-{day}")).data
    await api.settled(paid["id"], "completed")
    await api.settled(failed["id"], "failed")
    refund = (
        await api.call(
            "POST", "/v1/refunds", {"payment_id": paid["id"], "amount": 200}, headers={"Idempotency-Key": f"part-{day}"}
        )
    ).data
    await api.settled(paid["id"], "partially_reversed")
    assert (await api.call("GET", f"/v1/refunds/{refund['id']}")).data["status"] == "completed"
    silent = (await api.pay("254700000007", 9, key=f"silent-{day}")).data
    paying = "SELECT count(*) FROM sim_transaction WHERE reference = $1"
    await eventually(lambda: harness.gateway.db.fetchval(paying, silent["reference"]))
    assert (await api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["status"] == "completed"
    await api.settled(silent["id"], "completed")
    assert (await api.call("POST", f"/v1/payments/mpesa/check-status/{paid['id']}")).status == 200
    for path in (
        "/v1/payments?count=true&status=failed",
        "/v1/refunds",
        "/v1/payments/mpesa/reconciliations",
        "/v1/webhooks/logs",
        "/v1/events",
        "/v1/merchant/providers",
    ):
        assert (await api.call("GET", path)).data, path
    exported = (await api.download("/v1/payments/export")).text or ""
    assert paid["id"] in exported
    (delivery,) = (await api.call("GET", f"/v1/webhooks/logs?payment_id={failed['id']}")).data
    assert (await api.call("GET", f"/v1/webhooks/logs/{delivery['id']}")).data["attempt_log"] is not None
    assert (await api.call("POST", f"/v1/webhooks/logs/{delivery['id']}/replay")).data["status"] == "pending"


async def status_of_ready(harness: Harness) -> tuple[int, dict[str, Any]]:
    """Return the status of /health/ready and its part about migrations."""
    answer = await harness.api.call("GET", "/health/ready")
    return answer.status, answer.body["data"]["parts"]["migrations"]


@pytest.mark.usefixtures("initiated")
async def test_release_on_a_schema_with_additions_serves_and_restarts(harness: Harness) -> None:
    assert (await harness.api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
    await call_everything(harness, "before")
    await add_what_a_release_may_add(harness.gateway)
    assert await status_of_ready(harness) == (200, {"ok": True})
    await call_everything(harness, "meanwhile")
    # A process of the old release that crashes now is restarted.
    await harness.gateway.stop()
    await harness.gateway.start()
    await call_everything(harness, "afterwards")
    assert await harness.gateway.db.fetchval("SELECT bool_and(NOT next_flag AND next_word IS NULL) FROM payment")


async def test_release_on_a_schema_with_removals_is_not_ready(harness: Harness) -> None:
    await apply(
        harness.gateway, ["-- contract: nobody reads it any more\nALTER TABLE payment DROP COLUMN received_phone"]
    )
    status, migrations = await status_of_ready(harness)
    assert (status, migrations["ok"]) == (503, False)
    assert "took away what it needs): run the newer release" in migrations["detail"]
    await harness.gateway.stop()
    with pytest.raises(MigrationError, match="ahead of this release"):
        await harness.gateway.start()
