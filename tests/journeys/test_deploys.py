"""Deploys: processes that are replaced one by one lose no request, hand their jobs on, and push nobody twice."""

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
from tests.conftest import Town
from tests.journeys.site import Site, books, running_site, until_up

pytestmark = pytest.mark.as_owner

SLOW = "254700000017"
"""Pays, and its push is answered slowly."""

DRAIN = 4
"""Seconds that a stopping API goes on serving: time enough for a proxy that looks ten times a second."""


@asynccontextmanager
async def balanced(site: Site) -> AsyncGenerator[Balancer]:
    """A proxy before both APIs, once it has found them ready."""
    balancer = Balancer(site.ports)
    await balancer.start()
    try:
        await ready(balancer, 2)
        yield balancer
    finally:
        await balancer.stop()


async def ready(balancer: Balancer, count: int) -> None:
    """Wait until the proxy sends requests to so many APIs."""

    async def are_ready() -> bool:
        return len(balancer.ready) == count

    await eventually(are_ready, 60)


class Customers:
    """Buy without a pause until told to stop, and keep what they were answered."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.is_over = False
        self.payments: list[str] = []
        self.statuses: set[int] = set()

    async def shop(self, number: int) -> None:
        """Buy one thing after the other, and look at each."""
        bought = 0
        while not self.is_over:
            made = await self.api.pay(f"2547{11_000_000 + number * 10_000 + bought}", 5, key=f"{number}-{bought}")
            self.statuses.add(made.status)
            self.payments.append(made.data["id"])
            self.statuses.add((await self.api.call("GET", f"/v1/payments/{made.data['id']}")).status)
            bought += 1
            await asyncio.sleep(0.05)


async def test_replaced_one_by_one_under_load_behind_a_proxy_no_request_is_lost(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
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


async def test_a_worker_that_is_told_to_stop_hands_on_what_it_cannot_finish(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.start_simulator()
        # One whole call may take so long that only a job that is handed on can be done in the time of this test.
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
    """Ask for a payment, and signal the API that serves it while M-Pesa thinks; gives what the client was answered."""
    slow = Api(site.simulator, None)
    await slow.call("PATCH", "/simulator/control/knobs", {"slow_answer": 5, "callback_delay": 8})
    await slow.close()
    paying = asyncio.create_task(api.pay(SLOW, 77, key="one"))
    await eventually(lambda: gateway.db.fetchval("SELECT count(*) FROM sim_push"), 60)
    assert not paying.done()
    victim.send_signal(number)
    await asyncio.to_thread(victim.wait, 60)
    return (await asyncio.gather(paying, return_exceptions=True))[0]


async def test_a_push_that_is_interrupted_by_a_kill_is_never_repeated_and_its_money_arrives(
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
            # Nobody knows what became of it: the same key is not a second push, neither at once nor later.
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


async def test_a_push_that_a_stop_interrupts_is_finished_first(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
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


async def test_a_caller_that_hangs_up_and_a_gateway_that_stops_do_not_tear_a_push_from_its_record(
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
            wish = PaymentRequest(amount=Kes(5), phone=Msisdn(SLOW))
            payments = gateway.services.get(Payments)
            paying = asyncio.create_task(payments.request(merchant_id, "sandbox", wish, idempotency_key="one"))
            await eventually(lambda: gateway.db.fetchval("SELECT count(*) FROM sim_push"))
            paying.cancel()
            await gateway.stop()
            (left,) = await api_list(api)
            assert (left["status"], left["provider_ref"] is not None) == ("pending", True)
            assert [step["kind"] for step in await timeline(api, left["id"])] == ["requested", "sent"]


async def api_list(api: Api) -> list[dict[str, Any]]:
    """All payments, from another process."""
    found: list[dict[str, Any]] = (await api.call("GET", "/v1/payments")).data
    return found


async def timeline(api: Api, payment_id: str) -> list[dict[str, Any]]:
    """What happened to a payment, from another process."""
    found: list[dict[str, Any]] = (await api.call("GET", f"/v1/payments/{payment_id}")).data["timeline"]
    return found


# -- the release before, on what the next one has made of the database --------------------------------------------


TABLES = """
SELECT relname AS tablename FROM pg_class
WHERE relnamespace = 'mpesa'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
"""


async def add_what_a_release_may_add(gateway: Gateway) -> None:
    """Columns on every table, a table, an index and a rule, as the next release's migrations would."""
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
    """The migrations of a release after this one."""
    newest = await gateway.db.fetchval("SELECT max(number) FROM migration WHERE owner = 'payments'")
    added = [
        Migration("payments", number, f"{number:04}_next.sql", sql)
        for number, sql in enumerate(statements, start=newest + 1)
    ]
    known = await gateway.db.fetch("SELECT number, name, digest FROM migration WHERE owner = 'payments'")
    earlier = [one for one in gateway.migrations if one.number <= len(known)]
    assert await migrate(gateway.db, [*earlier, *added]) == added


async def live_a_day(town: Town, day: str) -> None:
    """A bit of everything that a merchant does."""
    api = town.api
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
    await eventually(lambda: town.gateway.db.fetchval(paying, silent["reference"]))
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


async def status_of_ready(town: Town) -> tuple[int, dict[str, Any]]:
    """What a proxy is told, and what about the migrations."""
    answer = await town.api.call("GET", "/health/ready")
    return answer.status, answer.body["data"]["parts"]["migrations"]


@pytest.mark.usefixtures("initiated")
async def test_a_release_goes_on_and_starts_anew_on_a_database_that_the_next_one_has_added_to(town: Town) -> None:
    assert (await town.api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
    await live_a_day(town, "before")
    await add_what_a_release_may_add(town.gateway)
    assert await status_of_ready(town) == (200, {"ok": True})
    await live_a_day(town, "meanwhile")
    # A process of the old release that crashed now, and is started again.
    await town.gateway.stop()
    await town.gateway.start()
    await live_a_day(town, "afterwards")
    assert await town.gateway.db.fetchval("SELECT bool_and(NOT next_flag AND next_word IS NULL) FROM payment")


async def test_a_release_is_not_ready_on_a_database_that_the_next_one_has_taken_something_from(town: Town) -> None:
    await apply(town.gateway, ["-- contract: nobody reads it any more\nALTER TABLE payment DROP COLUMN received_phone"])
    status, migrations = await status_of_ready(town)
    assert (status, migrations["ok"]) == (503, False)
    assert "took away what it needs): run the newer release" in migrations["detail"]
    await town.gateway.stop()
    with pytest.raises(MigrationError, match="ahead of this release"):
        await town.gateway.start()
