"""One callback that comes twice in the same moment: whoever is first, it counts once, and neither waits for ever."""

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
from tests.conftest import Town
from tests.plugins.callbacks.test_callbacks import asked, body, post

pytestmark = pytest.mark.as_owner

ASKS = "254700000020"


class Pause:
    """Holds up the first who hears of a result, in the middle of its transaction, until it is told to go on.

    ``has_written`` says whether the payment is written by then, and locked, or only looked at.
    """

    def __init__(self, *, has_written: bool) -> None:
        self._has_written = has_written
        self.is_reached = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def hear(self, _: Sequence[StkResulted], gateway: Runtime) -> None:
        """Wait, the first time."""
        if not self.is_reached.is_set():
            if self._has_written:
                # Whoever asks Postgres something finds everything written that was to be until then.
                await gateway.db.fetchval("SELECT 1")
            self.is_reached.set()
            await self.may_go_on.wait()

    @property
    def plugin(self) -> Plugin:
        """What listens after payments have heard of the result."""
        return Plugin(name="pause", summary="A pause.", subscribers=(on_event_in_transaction(StkResulted, self.hear),))


async def paid(gateway: Gateway, api: Api) -> dict[str, Any]:
    """A payment that its payer has just paid, with M-Pesa's callback ready to be sent, by nobody but us."""
    made: dict[str, Any] = (await api.pay(ASKS, key="order")).data
    await gateway.db.execute(
        "UPDATE sim_push SET state = 'ended', result_code = '0', receipt = 'TKN4A1B2C3', ended_at = now()"
    )
    said = {
        "CheckoutRequestID": made["provider_ref"],
        "ResultCode": 0,
        "CallbackMetadata": {
            "Item": [{"Name": "Amount", "Value": 500}, {"Name": "MpesaReceiptNumber", "Value": "TKN4A1B2C3"}]
        },
    }
    body = msgspec.json.encode({"Body": {"stkCallback": said}}).decode()
    await gateway.db.execute(
        "INSERT INTO sim_callback (checkout_request_id, body) VALUES ($1, $2)", made["provider_ref"], body
    )
    return made


async def told(gateway: Gateway) -> list[str]:
    """What the merchant is told, in its order."""
    rows = await gateway.db.fetch("SELECT kind FROM event WHERE is_public ORDER BY occurred_at, event_id")
    return [row["kind"] for row in rows]


@pytest.mark.parametrize("has_written", [True, False])
async def test_the_payment_ends_at_once_and_the_callback_is_kept_once(
    values: dict[str, Any], *, has_written: bool
) -> None:
    pause = Pause(has_written=has_written)
    async with running_gateway(values, plugins=(pause.plugin,)) as (gateway, base), shop(gateway, base) as api:
        made = await paid(gateway, api)
        prompt = f"/simulator/control/pushes/{made['provider_ref']}"
        first = asyncio.create_task(api.call("POST", f"{prompt}/callback"))
        await pause.is_reached.wait()
        second = asyncio.create_task(api.call("POST", f"{prompt}/callback"))

        async def is_waiting() -> bool:
            """The second waits for the payment, which the first has locked."""
            return bool(
                await gateway.db.fetchval(
                    "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                    "AND wait_event_type = 'Lock')"
                )
            )

        async def has_gone_first() -> bool:
            """The second has overtaken the first."""
            return second.done()

        await eventually(is_waiting if has_written else has_gone_first)
        pause.may_go_on.set()
        assert [(await answer).data for answer in (first, second)] == [{"status": 200}] * 2
        rows = await gateway.db.fetch("SELECT verdict, repeats FROM callback")
        assert [tuple(row) for row in rows] == [("applied", 1)]
        assert (await api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed"
        assert await told(gateway) == ["payment.completed"]


async def answered(_: Gateway, api: Api, payment_id: str) -> None:
    """M-Pesa, asked, says that it was paid."""
    assert (await api.call("POST", f"/v1/payments/{payment_id}/query")).data["status"] == "completed"


async def given_up(gateway: Gateway, api: Api, payment_id: str) -> None:
    """The payment's time is over."""
    async with gateway.db.transaction():
        row = await gateway.db.fetchrow(tables.LOCK, [payment_id])
        assert row is not None
        await gateway.services.get(Transitions).apply(row, Expired())
    assert (await api.call("GET", f"/v1/payments/{payment_id}")).data["status"] == "failed"


@pytest.mark.parametrize(
    ("meanwhile", "events"),
    [(answered, ["payment.completed"]), (given_up, ["payment.failed", "payment.completed"])],
)
async def test_who_is_overtaken_takes_the_payment_as_it_is_by_then(
    values: dict[str, Any], meanwhile: Callable[[Gateway, Api, str], Awaitable[None]], events: list[str]
) -> None:
    pause = Pause(has_written=False)
    async with running_gateway(values, plugins=(pause.plugin,)) as (gateway, base), shop(gateway, base) as api:
        made = await paid(gateway, api)
        callback = asyncio.create_task(api.call("POST", f"/simulator/control/pushes/{made['provider_ref']}/callback"))
        await pause.is_reached.wait()
        await meanwhile(gateway, api, made["id"])
        pause.may_go_on.set()
        assert (await callback).data == {"status": 200}
        payment = (await api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (payment["status"], payment["receipt"]) == ("completed", "TKN4A1B2C3")
        assert [step["kind"] for step in payment["timeline"]].count("completed") == 1
        assert await told(gateway) == events
        assert await gateway.db.fetchval("SELECT verdict FROM callback") == "applied"


@pytest.mark.parametrize("code", ["serialization_failure", "MG001"])
async def test_what_postgres_cannot_do_now_is_no_repetition(values: dict[str, Any], code: str) -> None:
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = await paid(gateway, api)
        # As under an isolation that Postgres can be set to for everybody, or what we raise ourselves: two tries fail.
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


async def test_receive_with_locked_repetition_delays_no_fresh_callback(town: Town) -> None:
    gateway, inbox = town.gateway, town.gateway.services.get(CallbackInbox)
    had, url = await asked(town, "had")
    assert (await post(town, url, body(had["provider_ref"]))).status == 200
    fresh = [await asked(town, f"fresh-{number}") for number in range(3)]
    same = [
        CallbackPost("stk", url.rpartition("/")[2], msgspec.json.encode(body(had["provider_ref"])), "127.0.0.1")
        for _ in range(5)
    ]
    others = [
        CallbackPost(
            "stk",
            where.rpartition("/")[2],
            msgspec.json.encode(body(made["provider_ref"], receipt=f"TKNFRESH{number}")),
            "127.0.0.1",
        )
        for number, (made, where) in enumerate(fresh)
    ]
    async with gateway.db.transaction():
        await gateway.db.fetch("SELECT 1 FROM callback FOR UPDATE")
        # In a context of its own: not in the transaction that holds the lock.
        works = [asyncio.create_task(inbox.receive(one), context=Context()) for one in (same[0], *others, *same[1:])]
        await asyncio.wait_for(asyncio.gather(*works), 15)
        for made, _ in fresh:
            assert await gateway.db.fetchval("SELECT status FROM payment WHERE payment_id = $1", made["id"]) == (
                "completed"
            )
        assert await gateway.db.fetchval("SELECT repeats FROM callback WHERE repeats > 0") is None

    async def counted() -> bool:
        return bool(await gateway.db.fetchval("SELECT count(*) = 1 FROM callback WHERE repeats = 5"))

    # Not counted while it was locked, and not forgotten.
    await eventually(counted)
