"""Protects concurrent callbacks: two equal ones at once count once, and neither blocks the other forever."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any

import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.plugin import Plugin, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.incoming import CallbackPost
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.decisions import Expired
from mpesa_gateway_payments.events import StkResulted
from mpesa_gateway_payments.transitions import Transitions
from tests.conftest import Harness
from tests.plugins.callbacks.test_callbacks import body, pending_payment, post

pytestmark = pytest.mark.as_owner

ASKS = "254700000020"


class Pause:
    """Holds the first subscriber of a result inside its transaction until `may_continue` is set.

    ``has_written`` says whether the payment is written and locked by then, or only read.
    """

    def __init__(self, *, has_written: bool) -> None:
        self._has_written = has_written
        self.is_reached = asyncio.Event()
        self.may_continue = asyncio.Event()

    async def hold(self, _: Sequence[StkResulted], gateway: Runtime) -> None:
        if not self.is_reached.is_set():
            if self._has_written:
                # A query flushes the deferred writes.
                await gateway.db.fetchval("SELECT 1")
            self.is_reached.set()
            await self.may_continue.wait()

    @property
    def plugin(self) -> Plugin:
        return Plugin(name="pause", summary="A pause.", subscribers=(on_event_in_transaction(StkResulted, self.hold),))


async def paid_payment(gateway: Gateway, api: Api) -> dict[str, Any]:
    """A paid payment whose callback is stored in the simulator and not due."""
    made: dict[str, Any] = (await api.pay(ASKS, key="order")).data
    await gateway.db.execute(
        "UPDATE sim_push SET state = 'ended', result_code = '0', receipt = 'TKN4A1B2C3', ended_at = now()"
    )
    content = {
        "CheckoutRequestID": made["provider_ref"],
        "ResultCode": 0,
        "CallbackMetadata": {
            "Item": [{"Name": "Amount", "Value": 500}, {"Name": "MpesaReceiptNumber", "Value": "TKN4A1B2C3"}]
        },
    }
    body = msgspec.json.encode({"Body": {"stkCallback": content}}).decode()
    await gateway.db.execute(
        "INSERT INTO sim_callback (checkout_request_id, body) VALUES ($1, $2)", made["provider_ref"], body
    )
    return made


async def published_kinds(gateway: Gateway) -> list[str]:
    """Returns the kinds of the public events, oldest first."""
    rows = await gateway.db.fetch("SELECT kind FROM event WHERE is_public ORDER BY occurred_at, event_id")
    return [row["kind"] for row in rows]


@pytest.mark.parametrize("has_written", [True, False])
async def test_equal_concurrent_callbacks_complete_once_and_are_stored_once(
    values: dict[str, Any], *, has_written: bool
) -> None:
    pause = Pause(has_written=has_written)
    async with running_gateway(values, plugins=(pause.plugin,)) as (gateway, base), shop(gateway, base) as api:
        made = await paid_payment(gateway, api)
        prompt = f"/simulator/control/pushes/{made['provider_ref']}"
        first = asyncio.create_task(api.call("POST", f"{prompt}/callback"))
        await pause.is_reached.wait()
        second = asyncio.create_task(api.call("POST", f"{prompt}/callback"))

        async def is_waiting() -> bool:
            """Returns True if the second callback waits for the row lock of the first."""
            return bool(
                await gateway.db.fetchval(
                    "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                    "AND wait_event_type = 'Lock')"
                )
            )

        async def has_overtaken() -> bool:
            """Returns True if the second callback was answered before the first."""
            return second.done()

        await eventually(is_waiting if has_written else has_overtaken)
        pause.may_continue.set()
        assert [(await answer).data for answer in (first, second)] == [{"status": 200}] * 2
        rows = await gateway.db.fetch("SELECT verdict, repeats FROM callback")
        assert [tuple(row) for row in rows] == [("applied", 1)]
        assert (await api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed"
        assert await published_kinds(gateway) == ["payment.completed"]


async def query_status(_: Gateway, api: Api, payment_id: str) -> None:
    assert (await api.call("POST", f"/v1/payments/{payment_id}/query")).data["status"] == "completed"


async def expire_payment(gateway: Gateway, api: Api, payment_id: str) -> None:
    async with gateway.db.transaction():
        row = await gateway.db.fetchrow(tables.LOCK, [payment_id])
        assert row is not None
        await gateway.services.get(Transitions).apply(row, Expired())
    assert (await api.call("GET", f"/v1/payments/{payment_id}")).data["status"] == "failed"


@pytest.mark.parametrize(
    ("change", "events"),
    [(query_status, ["payment.completed"]), (expire_payment, ["payment.failed", "payment.completed"])],
)
async def test_callback_overtaken_by_another_change_applies_to_the_changed_payment(
    values: dict[str, Any], change: Callable[[Gateway, Api, str], Awaitable[None]], events: list[str]
) -> None:
    pause = Pause(has_written=False)
    async with running_gateway(values, plugins=(pause.plugin,)) as (gateway, base), shop(gateway, base) as api:
        made = await paid_payment(gateway, api)
        callback = asyncio.create_task(api.call("POST", f"/simulator/control/pushes/{made['provider_ref']}/callback"))
        await pause.is_reached.wait()
        await change(gateway, api, made["id"])
        pause.may_continue.set()
        assert (await callback).data == {"status": 200}
        payment = (await api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (payment["status"], payment["receipt"]) == ("completed", "TKN4A1B2C3")
        assert [step["kind"] for step in payment["timeline"]].count("completed") == 1
        assert await published_kinds(gateway) == events
        assert await gateway.db.fetchval("SELECT verdict FROM callback") == "applied"


@pytest.mark.parametrize("code", ["serialization_failure", "MG001"])
async def test_callback_with_a_retryable_postgres_error_is_not_a_repetition(values: dict[str, Any], code: str) -> None:
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = await paid_payment(gateway, api)
        # An error of a stricter isolation level, or one of our own: the first two attempts fail.
        await gateway.db.execute("CREATE SEQUENCE tries")
        await gateway.db.execute(
            "CREATE FUNCTION not_now() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('tries') <= 2 THEN "
            f"RAISE EXCEPTION 'not now' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$"
        )
        await gateway.db.execute(
            "CREATE TRIGGER not_now BEFORE INSERT ON callback FOR EACH ROW EXECUTE FUNCTION not_now()"
        )
        send = f"/simulator/control/pushes/{made['provider_ref']}/callback"
        assert (await api.call("POST", send)).data == {"status": 503}
        assert await gateway.db.fetchval("SELECT count(*) FROM callback") == 0
        assert (await api.call("POST", send)).data == {"status": 200}
        assert (await api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed"


async def test_receive_with_a_locked_repetition_delays_no_new_callback(harness: Harness) -> None:
    gateway, inbox = harness.gateway, harness.gateway.services.get(CallbackInbox)
    applied, url = await pending_payment(harness, "had")
    assert (await post(harness, url, body(applied["provider_ref"]))).status == 200
    fresh = [await pending_payment(harness, f"fresh-{number}") for number in range(3)]
    same = [
        CallbackPost("stk", url.rpartition("/")[2], msgspec.json.encode(body(applied["provider_ref"])), "127.0.0.1")
        for _ in range(5)
    ]
    others = [
        CallbackPost(
            "stk",
            callback_url.rpartition("/")[2],
            msgspec.json.encode(body(made["provider_ref"], receipt=f"TKNFRESH{number}")),
            "127.0.0.1",
        )
        for number, (made, callback_url) in enumerate(fresh)
    ]
    async with gateway.db.transaction():
        await gateway.db.fetch("SELECT 1 FROM callback FOR UPDATE")
        # A context of its own keeps it out of the transaction that holds the lock.
        works = [asyncio.create_task(inbox.receive(one), context=Context()) for one in (same[0], *others, *same[1:])]
        await asyncio.wait_for(asyncio.gather(*works), 15)
        for made, _ in fresh:
            assert await gateway.db.fetchval("SELECT status FROM payment WHERE payment_id = $1", made["id"]) == (
                "completed"
            )
        assert await gateway.db.fetchval("SELECT repeats FROM callback WHERE repeats > 0") is None

    async def counted() -> bool:
        return bool(await gateway.db.fetchval("SELECT count(*) = 1 FROM callback WHERE repeats = 5"))

    # The repetitions are counted once the lock is released.
    await eventually(counted)
