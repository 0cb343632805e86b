"""What a push brought is written, whatever Postgres does at that moment; and nothing is claimed that is not known."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.daraja.client import NotSent
from mpesa_gateway.db import outcomes
from mpesa_gateway.db.engine import ExternalCallInTransaction, Row
from mpesa_gateway.testing.serving import Answer, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.operations import StkAck
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.daraja import Daraja, Said, fault, stk_callback

pytestmark = pytest.mark.as_owner

PHONE = "25471100000"
BUSY = fault("500.003.02", "Spike arrest violation", 503)
REFUSED = fault("400.002.02", "Bad Request - Invalid Amount", 400)
BROKEN: Said = (500, b"<html>")


@dataclass(frozen=True)
class Shop:
    """A gateway without a worker, a Daraja that answers as it is told, and another session in the same database."""

    gateway: Gateway
    base: str
    api: Api
    daraja: Daraja
    url: str

    @property
    def queries(self) -> StkQueries:
        """Asks Daraja about payments."""
        return self.gateway.services.get(StkQueries)

    @property
    def pusher(self) -> Any:
        """Sends pushes and writes their outcomes."""
        service: Any = self.gateway.services.get(PaymentService)
        return service._pusher

    async def row(self, key: str = "a") -> Row:
        """The payment of a key."""
        found = await self.gateway.db.fetchrow("SELECT * FROM payment WHERE idempotency_key = $1", key)
        assert found is not None
        return found

    async def key_state(self, key: str = "a") -> str:
        """The state of an Idempotency-Key."""
        state: str = await self.gateway.db.fetchval("SELECT state FROM idempotency_key WHERE key = $1", key)
        return state

    async def steps(self, key: str = "a") -> list[str]:
        """The timeline of a payment, by kind."""
        payment_id = (await self.row(key))["payment_id"]
        return [step["kind"] for step in await self.gateway.db.fetch(tables.TIMELINE, payment_id)]

    async def all_written(self) -> None:
        """Wait until no outcome is kept."""

        async def is_empty() -> bool:
            return self.gateway.outcomes.kept == 0

        await eventually(is_empty)

    async def call_back(self, row: Row, body: dict[str, Any]) -> None:
        """A callback at the address of a payment's push."""
        url = self.gateway.services.get(Callbacks).url_for(
            "stk", env="sandbox", merchant_id=row["merchant_id"], subject_id=row["payment_id"]
        )
        assert (await self.api.call("POST", url.removeprefix(self.base), body)).status == 200

    @asynccontextmanager
    async def locked(self, *statements: str) -> AsyncGenerator[None]:
        """Another session that holds the locks of these statements for the length of the block."""
        connection = await asyncpg.connect(self.url)
        try:
            async with connection.transaction():
                for statement in statements:
                    await connection.execute(statement)
                yield
        finally:
            await connection.close()


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """A gateway without a worker."""
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    values.pop("simulator", None)
    return values | {"worker": {"in_process": False, "grace": 1}, "daraja": {"sandbox_url": daraja.base}}


@asynccontextmanager
async def opened(values: dict[str, Any], daraja: Daraja, url: str) -> AsyncGenerator[Shop]:
    """Such a shop."""
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        yield Shop(gateway, base, api, daraja, url)


@pytest.fixture
async def counter(values: dict[str, Any], daraja: Daraja, database_url: str) -> AsyncGenerator[Shop]:
    """Such a shop."""
    async with opened(values, daraja, database_url) as found:
        yield found


async def pushing(counter: Shop, *keys: str) -> tuple[asyncio.Event, list["asyncio.Task[Answer]"]]:
    """Payments whose pushes wait for their answers, and the event that lets them have these."""
    answer = counter.daraja.hold("stkpush")
    before = len(counter.daraja.of("stkpush"))
    tasks = [asyncio.create_task(counter.api.pay(f"{PHONE}{number}", 500, key=key)) for number, key in enumerate(keys)]
    await counter.daraja.asked_about("stkpush", before + len(keys))
    return answer, tasks


# -- what cannot be written at once -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lock",
    [
        "SELECT 1 FROM payment WHERE idempotency_key = 'c' FOR UPDATE",
        "SELECT 1 FROM idempotency_key WHERE key = 'c' FOR UPDATE",
    ],
)
async def test_ack_of_a_locked_row_is_kept_and_its_neighbours_are_written(counter: Shop, lock: str) -> None:
    keys = ("a", "b", "c", "d", "e")
    answer, tasks = await pushing(counter, *keys)
    async with counter.locked(lock):
        answer.set()
        answers = await asyncio.gather(*tasks)
        assert [one.status for one in answers] == [201] * 5
        assert all(one.data["provider_ref"].startswith("ws_CO_") for one in answers)
        assert {one.data["status"] for one in answers} == {"pending"}
        for key in ("a", "b", "d", "e"):
            assert (await counter.row(key))["charge"] == "accepted"
            assert await counter.key_state(key) == "settled"
        assert (await counter.row("c"))["charge"] == "sending"
        assert counter.gateway.outcomes.kept == 1
        again = await counter.api.pay(f"{PHONE}2", 500, key="c") if "payment" in lock else None
        assert again is None or (again.status, again.error["code"]) == (409, "IDEMPOTENCY_IN_PROGRESS")
    await counter.all_written()
    for key, one in zip(keys, answers, strict=True):
        row = await counter.row(key)
        assert (row["charge"], row["checkout_request_id"]) == ("accepted", one.data["provider_ref"])
        assert await counter.key_state(key) == "settled"
        assert await counter.steps(key) == ["requested", "sent"]
    assert len(counter.daraja.of("stkpush")) == 5


async def test_ack_whose_connections_are_terminated_is_answered_and_written(counter: Shop) -> None:
    answer, (task,) = await pushing(counter, "a")
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mpesa-gateway' "
        "AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    # The statement that writes the ack waits for this table, and its backend is terminated while it does.
    async with counter.locked("LOCK TABLE payment IN EXCLUSIVE MODE"):
        answer.set()
        other = await asyncpg.connect(counter.url)

        async def is_terminated() -> bool:
            return bool(await other.fetch(terminate))

        await eventually(is_terminated)
        made = await task
        await other.close()
    assert (made.status, made.data["provider_ref"]) == (201, "ws_CO_2")
    await counter.all_written()
    assert (await counter.row())["charge"] == "accepted"
    assert await counter.steps() == ["requested", "sent"]


async def test_ack_while_no_connection_answers_is_answered_in_time_and_written_later(
    counter: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "ANSWER_WITHIN", 0.3)
    answer, (task,) = await pushing(counter, "a")
    pool = counter.gateway.db.engine.pool
    assert pool is not None
    held = [await pool.acquire() for _ in range(10)]
    answer.set()
    made = await task
    assert (made.status, made.data["provider_ref"]) == (201, "ws_CO_2")
    for connection in held:
        await pool.release(connection)
    await counter.all_written()
    assert (await counter.row())["checkout_request_id"] == "ws_CO_2"
    assert await counter.key_state() == "settled"


@pytest.mark.parametrize(
    ("said", "status", "code", "charge", "key_state"),
    [
        (BROKEN, 201, None, "unknown", "settled"),
        (REFUSED, 502, "PROVIDER_REJECTED", "refused", "settled"),
        (BUSY, 503, "PROVIDER_UNAVAILABLE", "released", "released"),
    ],
)
async def test_every_other_outcome_is_kept_and_written_likewise(
    counter: Shop, said: Said, status: int, code: str | None, charge: str, key_state: str
) -> None:
    counter.daraja.say("stkpush", said)
    answer, (task,) = await pushing(counter, "a")
    async with counter.locked("SELECT 1 FROM payment FOR UPDATE"):
        answer.set()
        made = await task
        assert made.status == status
        assert code is None or made.error["code"] == code
        assert counter.gateway.outcomes.kept == 1
    await counter.all_written()
    assert (await counter.row())["charge"] == charge
    assert await counter.key_state() == key_state


async def test_stop_writes_what_is_kept_within_its_grace(
    values: dict[str, Any], daraja: Daraja, database_url: str
) -> None:
    async with opened(values, daraja, database_url) as counter:
        answer, (task,) = await pushing(counter, "a")
        async with counter.locked("SELECT 1 FROM payment FOR UPDATE"):
            answer.set()
            assert (await task).status == 201
            assert counter.gateway.outcomes.kept == 1
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT checkout_request_id FROM payment") == "ws_CO_2"
    await connection.close()


async def test_what_a_stopped_process_lost_is_found_by_the_callback_token(
    values: dict[str, Any], daraja: Daraja, database_url: str
) -> None:
    values["worker"]["grace"] = 0
    async with opened(values, daraja, database_url) as counter:
        answer, (task,) = await pushing(counter, "a")
        async with counter.locked("SELECT 1 FROM payment FOR UPDATE"):
            answer.set()
            assert (await task).status == 201
            await counter.gateway.outcomes.stop(0)
        assert counter.gateway.outcomes.kept == 0
        row = await counter.row()
        assert row["charge"] == "sending"
        await counter.call_back(row, stk_callback("ws_CO_2"))
        assert (await counter.row())["status"] == "completed"


async def test_nothing_is_sent_while_too_many_outcomes_are_kept(counter: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MOST", 0)
    made = await counter.api.pay(f"{PHONE}0", 500, key="a")
    assert (made.status, made.error["code"], made.headers["Retry-After"]) == (503, "SERVICE_UNAVAILABLE", "5")
    assert await counter.gateway.db.fetchval("SELECT count(*) FROM payment") == 0
    assert counter.daraja.of("stkpush") == []


async def test_an_outcome_written_twice_is_written_once(counter: Shop) -> None:
    # As after a COMMIT whose answer was lost.
    assert (await counter.api.pay(f"{PHONE}0", 500, key="a")).status == 201
    row = await counter.row()
    ack = StkAck(merchant_request_id="m-1", checkout_request_id="ws_CO_2", customer_message="")
    async with counter.gateway.db.transaction():
        credentials = await counter.gateway.services.get(Credentials).get(row["merchant_id"], "sandbox")
        await counter.pusher._write_accepted(row, ack, credentials)
    assert await counter.steps() == ["requested", "sent"]


async def test_no_call_to_daraja_is_made_inside_a_transaction(counter: Shop) -> None:
    """Also where a port forgets to refuse it."""
    credentials = await counter.gateway.services.get(Credentials).get(
        (await counter.api.call("GET", "/v1/merchant/me")).data["id"], "sandbox"
    )
    async with counter.gateway.db.transaction():
        with pytest.raises(ExternalCallInTransaction):
            await counter.gateway.daraja.verify(credentials.daraja)
        with pytest.raises(ExternalCallInTransaction):
            await counter.queries.ask("pay_1")
    assert counter.daraja.asked == []


# -- nothing was sent, or may have been -------------------------------------------------------------------------------


@pytest.fixture
def brief(values: dict[str, Any]) -> dict[str, Any]:
    """A lease of a second."""
    return values | {"payments": {"create_lease": 1}}


async def lease_ends(counter: Shop) -> None:
    """Wait until no key is under its lease."""
    await eventually(lambda: counter.gateway.db.fetchval("SELECT bool_and(leased_until < now()) FROM idempotency_key"))


@pytest.mark.parametrize("by", ["sweep", "retry"])
async def test_what_was_cut_off_before_its_push_fails_as_not_sent_once_the_lease_has_ended(
    brief: dict[str, Any], daraja: Daraja, database_url: str, by: str
) -> None:
    async with opened(brief, daraja, database_url) as counter:
        token = daraja.hold("oauth")
        task = asyncio.create_task(counter.api.pay(f"{PHONE}0", 500, key="a"))
        await daraja.asked_about("oauth")
        row = await counter.row()
        assert row["charge"] == "ready"
        # Nobody gives it up while its request may still be at work.
        assert not await counter.queries.ask(row["payment_id"])
        await lease_ends(counter)
        if by == "sweep":
            assert await counter.queries.ask(row["payment_id"])
        else:
            again = await counter.api.pay(f"{PHONE}0", 500, key="a")
            assert (again.status, again.data["failure_reason"]) == (200, "not_sent")
        ended = await counter.row()
        assert (ended["status"], ended["failure_reason"]) == ("failed", "not_sent")
        assert await counter.key_state() == "settled"
        kinds = await counter.gateway.db.fetch("SELECT kind FROM event")
        assert [one["kind"] for one in kinds] == ["payment.failed"]
        # The process was slow and not dead: it finds that it must not send any more.
        token.set()
        slow = await task
        assert (slow.data["status"], slow.data["failure_reason"]) == ("failed", "not_sent")
        assert daraja.of("stkpush") == []
        assert await counter.key_state() == "settled"


async def test_what_may_have_been_sent_is_never_called_not_sent(
    brief: dict[str, Any], daraja: Daraja, database_url: str
) -> None:
    async with opened(brief, daraja, database_url) as counter:
        answer, (task,) = await pushing(counter, "a")
        row = await counter.row()
        assert row["charge"] == "sending"
        await lease_ends(counter)
        assert await counter.queries.ask(row["payment_id"])
        given_up = await counter.row()
        assert (given_up["status"], given_up["charge"]) == ("pending", "unknown")
        assert given_up["due_at"] == given_up["expires_at"]
        assert await counter.key_state() == "settled"
        again = await counter.api.pay(f"{PHONE}0", 500, key="a")
        assert (again.status, again.data["status"]) == (200, "pending")
        # It was only slow: its acknowledgement counts.
        answer.set()
        assert (await task).data["provider_ref"] == "ws_CO_2"
        assert (await counter.row())["charge"] == "accepted"
        assert len(daraja.of("stkpush")) == 1


async def test_money_for_a_push_whose_process_died_completes_the_expired_payment(
    brief: dict[str, Any], daraja: Daraja, database_url: str
) -> None:
    async with opened(brief, daraja, database_url) as counter:
        answer, (task,) = await pushing(counter, "a")
        row = await counter.row()
        await lease_ends(counter)
        assert await counter.queries.ask(row["payment_id"])
        await counter.gateway.db.execute("UPDATE payment SET due_at = now(), expires_at = now()")
        assert await counter.queries.ask(row["payment_id"])
        assert (await counter.row())["failure_reason"] == "expired"
        await counter.call_back(row, stk_callback("ws_CO_9"))
        assert (await counter.row())["status"] == "completed"
        answer.set()
        await task


async def test_push_that_cannot_be_marked_is_not_sent_and_the_key_tries_again(counter: Shop) -> None:
    token = counter.daraja.hold("oauth")
    task = asyncio.create_task(counter.api.pay(f"{PHONE}0", 500, key="a"))
    await counter.daraja.asked_about("oauth")
    async with counter.locked("SELECT 1 FROM payment FOR UPDATE"):
        token.set()
        made = await task
        assert (made.status, made.error["code"]) == (503, "PROVIDER_UNAVAILABLE")
    await counter.all_written()
    assert counter.daraja.of("stkpush") == []
    assert await counter.key_state() == "released"
    again = await counter.api.pay(f"{PHONE}0", 500, key="a")
    assert (again.status, again.data["provider_ref"]) == (201, "ws_CO_2")


async def test_late_repetition_of_an_unsent_outcome_releases_no_later_push(counter: Shop) -> None:
    counter.daraja.say("stkpush", BUSY)
    assert (await counter.api.pay(f"{PHONE}0", 500, key="a")).status == 503
    first = await counter.row()
    answer, (task,) = await pushing(counter, "a")
    async with counter.gateway.db.transaction():
        await counter.pusher._write_unsent(first, NotSent("spike arrest"))
    assert (await counter.row())["charge"] == "sending"
    assert await counter.key_state() == "in_flight"
    assert (await counter.api.pay(f"{PHONE}0", 500, key="a")).status == 409
    answer.set()
    assert (await task).status == 201
    assert len(counter.daraja.of("stkpush")) == 2


@pytest.mark.parametrize(
    "callback",
    [
        stk_callback("ws_CO_9", 0, amount=5),
        stk_callback("ws_CO_9", 0, has_metadata=False),
        stk_callback("ws_CO_9", 0),
        stk_callback("ws_CO_9", "4999"),
        stk_callback("ws_CO_9", 1032),
        stk_callback(None, 0, amount=5),
    ],
    ids=["mismatch", "no receipt", "paid", "pending", "cancelled", "no handle"],
)
@pytest.mark.parametrize("confirm", ["never", "always"])
async def test_released_payment_of_which_something_is_known_is_not_pushed_again(
    values: dict[str, Any], daraja: Daraja, database_url: str, callback: dict[str, Any], confirm: str
) -> None:
    async with opened(values | {"payments": {"confirm": confirm}}, daraja, database_url) as counter:
        daraja.say("stkpush", BUSY)
        assert (await counter.api.pay(f"{PHONE}0", 500, key="a")).status == 503
        row = await counter.row()
        assert (row["charge"], await counter.key_state()) == ("released", "released")
        await counter.call_back(row, callback)
        again = await counter.api.pay(f"{PHONE}0", 500, key="a")
        assert again.status == 200
        assert len(daraja.of("stkpush")) == 1
        assert await counter.key_state() == "settled"
