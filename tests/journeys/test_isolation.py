"""Protects webhooks and expiry: both continue while every call to M-Pesa hangs."""

import asyncio
from base64 import b64encode
from contextlib import AsyncExitStack
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import QUEUES
from mpesa_gateway.testing.receiver import Receiver
from mpesa_gateway.testing.serving import INITIATED, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from tests.daraja import Daraja, stk_callback

PHONE = "254711000001"
SLOTS = 3
"""Daraja jobs that may run concurrently in this test."""


async def call_back(gateway: Gateway, api: Api, payment: Any) -> None:
    """Post the callback of a completed payment."""
    url = gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    body = stk_callback(payment["provider_ref"], 0, receipt="TKN4A1B2C3")
    assert (await api.call("POST", url.removeprefix(api.base), body)).status == 200


async def test_hanging_daraja_delays_no_webhook_and_no_expiry(
    values: dict[str, Any], daraja: Daraja, webhook_receiver: Receiver
) -> None:
    values |= {
        "daraja": {"sandbox_url": daraja.base, "timeout": 300},
        "payments": {"query_after": [1], "expire_after": 3600},
        "worker": {"in_process": True, "grace": 0, "daraja": SLOTS, "deliveries": 2, "maintenance": 3},
        # No limit of its own: the queue alone keeps its runs out of the slots of others.
        "reconciliation": {"max_concurrent": 100},
    }
    daraja.hold("stkquery")
    daraja.hold("pullquery")
    async with running_gateway(values) as (gateway, base), AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(shop(gateway, base)) for _ in range(SLOTS + 1)]
        for api in apis:
            assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
            for number in range(2):
                assert (await api.pay(PHONE, 500, key=f"stuck-{number}")).status == 201
        await gateway.db.execute("UPDATE payment SET due_at = now()")
        await gateway.jobs.enqueue("payments.sweep")
        queue = gateway.jobs.queues["daraja"]

        async def all_hang() -> bool:
            return await queue.count("active") == SLOTS and len(daraja.requests_of("stkquery")) >= SLOTS

        await eventually(all_hang, 30)
        # Pull jobs wait in the same queue.
        await gateway.jobs.enqueue("reconciliation.reconcile_all")
        await eventually(lambda: _waits(queue), 30)

        api = await stack.enter_async_context(shop(gateway, base, webhook_url=webhook_receiver.url))
        fresh = (await api.pay(PHONE, 500, key="fresh")).data
        await call_back(gateway, api, fresh)
        assert await webhook_receiver.wait_for(1, patience=30)
        assert webhook_receiver.received[0].headers["x-event-type"] == "payment.completed"

        await gateway.db.execute("UPDATE payment SET expires_at = now() WHERE status = 'pending'")
        open_ones = "SELECT count(*) = 0 FROM payment WHERE status = 'pending'"
        await eventually(lambda: gateway.db.fetchval(open_ones), 30)
        assert await all_hang()


@pytest.mark.parametrize("operation", ["oauth", "reversal"])
async def test_hanging_token_or_reversal_delays_only_its_merchant(
    values: dict[str, Any], daraja: Daraja, operation: str
) -> None:
    values |= {"daraja": {"sandbox_url": daraja.base, "timeout": 60}, "worker": {"in_process": False}}
    async with running_gateway(values) as (gateway, base), AsyncExitStack() as stack:
        slow, quick = [await stack.enter_async_context(shop(gateway, base)) for _ in range(2)]

        async def store(api: Api, name: str) -> None:
            keys = {"consumer_key": f"consumer-key-{name}", "consumer_secret": f"consumer-secret-{name}"}
            receiver = {"shortcode": "600001" if api is slow else "600002"}
            body = INITIATED | {"mpesa": INITIATED["mpesa"] | keys | receiver}
            assert (await api.call("PUT", "/v1/merchant/providers", body)).status == 200

        await store(slow, "FIRST")
        await store(quick, "QUICK")
        paid = {api: [await _paid(gateway, api, f"{number}") for number in range(12)] for api in (slow, quick)}
        # The same number with other credentials, which have no token yet.
        await store(slow, "SLOW")
        basic = b64encode(b"consumer-key-SLOW:consumer-secret-SLOW").decode()
        go = daraja.hold(operation, basic if operation == "oauth" else "600001")
        waiting = [
            asyncio.create_task(slow.call("POST", "/v1/refunds", {"payment_id": one})) for one in paid[slow][:10]
        ] + ([asyncio.create_task(slow.pay(PHONE, 500, key=f"w{number}")) for number in range(10)])
        count = len(daraja.requests_of("oauth")) + 1 if operation == "oauth" else 5
        await eventually(lambda: _asked(daraja, operation, count), 15)
        async with asyncio.timeout(15):
            for number, payment_id in enumerate(paid[quick][:5]):
                assert (await quick.call("POST", "/v1/refunds", {"payment_id": payment_id})).status == 201
                assert (await quick.pay(PHONE, 500, key=f"quick-{number}")).status == 201
        assert not all(one.done() for one in waiting)
        go.set()
        answers = await asyncio.gather(*waiting)
        # Over the call limit of one shortcode: rejected as not sent, and retried.
        assert {one.status for one in answers} <= {201, 503}
        assert any(one.status == 201 for one in answers)


async def _paid(gateway: Gateway, api: Api, key: str) -> str:
    """Return the id of a completed payment."""
    made = (await api.pay(PHONE, 500, key=key)).data
    url = gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"]
    )
    body = stk_callback(made["provider_ref"], 0, receipt=f"R{made['provider_ref'].replace('_', '').upper():0>9}")
    assert (await api.call("POST", url.removeprefix(api.base), body)).status == 200
    return str(made["id"])


async def _asked(daraja: Daraja, operation: str, count: int) -> bool:
    return len(daraja.requests_of(operation)) >= count


async def _waits(queue: Any) -> bool:
    return bool(await queue.count("queued"))


async def test_worker_with_named_queues_serves_only_those(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": True, "grace": 0, "queues": ["maintenance", "deliveries"]}
    async with running_gateway(values) as (gateway, _):

        async def served() -> list[str]:
            counts = [(name, await queue.count_workers()) for name, queue in gateway.jobs.queues.items()]
            return [name for name, count in counts if count]

        async def both_are() -> bool:
            return len(await served()) >= 2

        await eventually(both_are)
        assert await served() == ["deliveries", "maintenance"]
        await gateway.jobs.enqueue("payments.query", shortcode_id="shc_1")
        assert await gateway.jobs.queues["daraja"].count("queued") == 1
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        group = gateway.worker()
        assert tuple(group.workers) == QUEUES
        names = [worker.queue.name for worker in group.workers.values()]
        assert names == [f"{gateway.config.valkey.prefix}-{name}" for name in QUEUES]
        for worker in group.workers.values():
            await worker.queue.disconnect()


async def test_slow_cron_leaves_a_slot_for_each_other_cron(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False, "maintenance": 1}
    async with running_gateway(values) as (gateway, _):
        (worker,) = gateway.worker(["maintenance"]).workers.values()
        crons = [job for job in gateway.jobs_by_name.values() if job.queue == "maintenance" and job.cron is not None]
        assert worker.concurrency == len(crons) > 1
        await worker.queue.disconnect()
