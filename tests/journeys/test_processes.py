"""Protects two APIs, a worker and the simulator as separate processes that are killed and restarted."""

import asyncio
import signal
from pathlib import Path

from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import INITIATED, Api, eventually, shop
from tests.journeys.site import books, running_site, until_up


async def test_idempotency_key_in_two_processes_makes_one_payment(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.start_simulator()
        site.start_api(0)
        site.start_api(1)
        await asyncio.gather(*(until_up(f"{base}/health/live") for base in (*site.bases, site.simulator)))
        async with books(site) as gateway, shop(gateway, site.bases[0]) as first:
            second = Api(site.bases[1], first.key)
            answers = await asyncio.gather(
                *((first, second)[number % 2].pay("254711000050", 50, key="one") for number in range(50))
            )
            await second.close()
            statuses = sorted(answer.status for answer in answers)
            assert statuses.count(201) == 1
            assert set(statuses) <= {200, 201, 409}
            assert {answer.error["code"] for answer in answers if answer.status == 409} <= {"IDEMPOTENCY_IN_PROGRESS"}
            assert len({answer.data["id"] for answer in answers if answer.status != 409}) == 1
            assert await gateway.db.fetchval("SELECT count(*) FROM payment") == 1
            assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1


async def test_refunds_in_two_processes_never_exceed_the_payment(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        for start in (site.start_simulator, lambda: site.start_api(0), lambda: site.start_api(1), site.start_worker):
            start()
        await asyncio.gather(*(until_up(f"{base}/health/live") for base in (*site.bases, site.simulator)))
        async with books(site) as gateway, shop(gateway, site.bases[0]) as first:
            assert (await first.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
            second = Api(site.bases[1], first.key)
            payment = await first.settled((await first.pay("254711000050", 100, key="paid")).data["id"], "completed")
            keyed = {"Idempotency-Key": "one"}
            body = {"payment_id": payment["id"], "amount": 30}
            answers = await asyncio.gather(
                *((first, second)[number % 2].call("POST", "/v1/refunds", body, headers=keyed) for number in range(10)),
                *(
                    (first, second)[number % 2].call(
                        "POST", "/v1/refunds", body, headers={"Idempotency-Key": f"other-{number}"}
                    )
                    for number in range(10)
                ),
            )
            await second.close()
            made = [answer.data["id"] for answer in answers if answer.status == 201]
            assert len(set(made)) == len(made) == 3
            assert {answer.status for answer in answers} <= {200, 201, 409}
            assert len({answer.data["id"] for answer in answers[:10] if answer.status in {200, 201}}) <= 1

            async def has_gone_back() -> bool:
                return bool(await gateway.db.fetchval("SELECT refunded = 90 AND refund_reserved = 0 FROM payment"))

            await eventually(has_gone_back, 30)
            assert await gateway.db.fetchval("SELECT sum(amount) FROM sim_reversal") == 90
            assert await gateway.db.fetchval("SELECT status FROM payment") == "partially_reversed"


async def test_retries_in_two_processes_with_busy_daraja_send_one_prompt(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.start_simulator()
        site.start_api(0)
        site.start_api(1)
        await asyncio.gather(*(until_up(f"{base}/health/live") for base in (*site.bases, site.simulator)))
        async with books(site) as gateway, shop(gateway, site.bases[0]) as first:
            second, phones = Api(site.bases[1], first.key), Api(site.simulator, None)
            busy = {"operation": "stkpush", "fault": "500.003.02", "times": 4}
            assert (await phones.call("POST", "/simulator/control/faults", busy)).status == 200
            statuses: set[int] = set()
            ids: set[str] = set()

            async def insist(number: int) -> None:
                # Retry until there is a payment, as a shop does for a waiting buyer.
                while True:
                    answer = await (first, second)[number % 2].pay("254700000020", 50, key="one")
                    statuses.add(answer.status)
                    if answer.status in {200, 201}:
                        ids.add(answer.data["id"])
                        return
                    assert answer.error["code"] in {"PROVIDER_UNAVAILABLE", "IDEMPOTENCY_IN_PROGRESS"}
                    await asyncio.sleep(0.05)

            async with asyncio.timeout(60):
                await asyncio.gather(*map(insist, range(50)))
            assert {201, 503} <= statuses <= {200, 201, 409, 503}
            assert len(ids) == 1
            assert await gateway.db.fetchval("SELECT count(*) FROM payment") == 1
            assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1
            assert await gateway.db.fetchval("SELECT state FROM idempotency_key") == "settled"
            for api in (second, phones):
                await api.close()


async def test_processes_killed_in_the_middle_finish_the_payment(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        for start in (site.start_simulator, lambda: site.start_api(0), site.start_worker):
            start()
        await asyncio.gather(until_up(f"{site.bases[0]}/health/ready"), until_up(f"{site.simulator}/health/live"))
        async with (
            receiving() as receiver,
            books(site) as gateway,
            shop(gateway, site.bases[0], webhook_url=receiver.url) as api,
        ):
            made = await api.pay("254700000020", 321, key="kill")
            assert made.data["status"] == "pending"
            for process in site.running:
                process.kill()
                process.wait()
            # The payer pays while no process runs.
            site.start_simulator()
            await until_up(f"{site.simulator}/health/live")
            phone = Api(site.simulator, None)
            handle = made.data["provider_ref"]
            answered = await phone.call("POST", f"/simulator/control/pushes/{handle}/answer", {"answer": "pay"})
            await phone.close()
            assert answered.data["receipt"]
            site.start_api(0)
            site.start_worker()
            await until_up(f"{site.bases[0]}/health/ready")
            paid = await api.settled(made.data["id"], "completed", patience=45)
            assert paid["receipt"] == answered.data["receipt"]
            (webhook,) = await receiver.wait_for(1, patience=30)
            assert webhook.json["data"]["receipt"] == paid["receipt"]
            assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1


async def test_worker_stopped_finishes_its_jobs_and_exits_zero(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with running_site(database_url, valkey_url, tmp_path) as site:
        site.start_simulator()
        site.start_api(0)
        worker = site.start_worker()
        await asyncio.gather(until_up(f"{site.bases[0]}/health/ready"), until_up(f"{site.simulator}/health/live"))
        async with (
            receiving() as receiver,
            books(site) as gateway,
            shop(gateway, site.bases[0], webhook_url=receiver.url) as api,
        ):
            receiver.delay = 2.0
            made = await api.pay("254711000060", 10, key="stop")
            await receiver.wait_for(1)
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, 20) == 0
            # The running attempt was finished and recorded, not repeated.
            log = (await api.call("GET", f"/v1/webhooks/logs?payment_id={made.data['id']}")).data
            assert [(row["status"], row["attempts"]) for row in log] == [("delivered", 1)]
            assert len(receiver.received) == 1
