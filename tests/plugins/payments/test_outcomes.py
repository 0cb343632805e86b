"""Protects the outcomes of pushes: each is written, even if Postgres fails, and an unknown outcome is never guessed."""

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
from tests.daraja import Daraja, DarajaAnswer, fault, stk_callback

pytestmark = pytest.mark.as_owner

PHONE = "25471100000"
BUSY = fault("500.003.02", "Spike arrest violation", 503)
REFUSED = fault("400.002.02", "Bad Request - Invalid Amount", 400)
BROKEN: DarajaAnswer = (500, b"<html>")


@dataclass(frozen=True)
class Pushes:
    """A gateway without a worker, a scripted Daraja, and another session in the same database."""

    gateway: Gateway
    base: str
    api: Api
    daraja: Daraja
    url: str

    @property
    def queries(self) -> StkQueries:
        return self.gateway.services.get(StkQueries)

    @property
    def pusher(self) -> Any:
        service: Any = self.gateway.services.get(PaymentService)
        return service._pusher

    async def row(self, key: str = "a") -> Row:
        """The payment with this Idempotency-Key."""
        found = await self.gateway.db.fetchrow("SELECT * FROM payment WHERE idempotency_key = $1", key)
        assert found is not None
        return found

    async def key_state(self, key: str = "a") -> str:
        """The state of an Idempotency-Key."""
        state: str = await self.gateway.db.fetchval(
            "SELECT state FROM idempotency_key AS known JOIN payment ON payment_id = subject_id "
            "WHERE payment.idempotency_key = $1",
            key,
        )
        return state

    async def steps(self, key: str = "a") -> list[str]:
        """The kinds of the payment's timeline."""
        payment_id = (await self.row(key))["payment_id"]
        return [step["kind"] for step in await self.gateway.db.fetch(tables.TIMELINE, payment_id)]

    async def await_all_written(self) -> None:
        """Wait until no outcome is waiting to be written."""

        async def is_empty() -> bool:
            return self.gateway.outcomes.kept == 0

        await eventually(is_empty)

    async def call_back(self, row: Row, body: dict[str, Any]) -> None:
        """Post a callback to the address of a payment's push."""
        url = self.gateway.services.get(Callbacks).url_for(
            "stk", env="sandbox", merchant_id=row["merchant_id"], subject_id=row["payment_id"]
        )
        assert (await self.api.call("POST", url.removeprefix(self.base), body)).status == 200

    @asynccontextmanager
    async def locked(self, *statements: str) -> AsyncGenerator[None]:
        """Hold the locks of these statements in another session for the length of the block."""
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
async def open_pushes(values: dict[str, Any], daraja: Daraja, url: str) -> AsyncGenerator[Pushes]:
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        yield Pushes(gateway, base, api, daraja, url)


@pytest.fixture
async def pushes(values: dict[str, Any], daraja: Daraja, database_url: str) -> AsyncGenerator[Pushes]:
    async with open_pushes(values, daraja, database_url) as found:
        yield found


async def start_pushes(pushes: Pushes, *keys: str) -> tuple[asyncio.Event, list["asyncio.Task[Answer]"]]:
    """Start payments whose pushes wait; returns the event that answers them, and the requests."""
    answer = pushes.daraja.hold("stkpush")
    before = len(pushes.daraja.requests_of("stkpush"))
    tasks = [asyncio.create_task(pushes.api.pay(f"{PHONE}{number}", 500, key=key)) for number, key in enumerate(keys)]
    await pushes.daraja.wait_for_requests("stkpush", before + len(keys))
    return answer, tasks


# -- outcomes that cannot be written at once ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lock",
    [
        "SELECT 1 FROM payment WHERE idempotency_key = 'c' FOR UPDATE",
        (
            "SELECT 1 FROM idempotency_key AS known JOIN payment ON payment_id = subject_id "
            "WHERE payment.idempotency_key = 'c' FOR UPDATE OF known"
        ),
    ],
)
async def test_ack_of_a_locked_row_is_written_later_and_the_others_at_once(pushes: Pushes, lock: str) -> None:
    keys = ("a", "b", "c", "d", "e")
    answer, tasks = await start_pushes(pushes, *keys)
    async with pushes.locked(lock):
        answer.set()
        answers = await asyncio.gather(*tasks)
        assert [one.status for one in answers] == [201] * 5
        assert all(one.data["provider_ref"].startswith("ws_CO_") for one in answers)
        assert {one.data["status"] for one in answers} == {"pending"}
        for key in ("a", "b", "d", "e"):
            assert (await pushes.row(key))["charge"] == "accepted"
            assert await pushes.key_state(key) == "settled"
        assert (await pushes.row("c"))["charge"] == "sending"
        assert pushes.gateway.outcomes.kept == 1
        again = await pushes.api.pay(f"{PHONE}2", 500, key="c") if "FROM payment" in lock else None
        assert again is None or (again.status, again.error["code"]) == (409, "IDEMPOTENCY_IN_PROGRESS")
    await pushes.await_all_written()
    for key, one in zip(keys, answers, strict=True):
        row = await pushes.row(key)
        assert (row["charge"], row["checkout_request_id"]) == ("accepted", one.data["provider_ref"])
        assert await pushes.key_state(key) == "settled"
        assert await pushes.steps(key) == ["requested", "sent"]
    assert len(pushes.daraja.requests_of("stkpush")) == 5


async def test_ack_with_terminated_connections_is_answered_and_written(pushes: Pushes) -> None:
    answer, (task,) = await start_pushes(pushes, "a")
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mpesa-gateway' "
        "AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    # The statement that writes the acknowledgement waits for this table while its backend is terminated.
    async with pushes.locked("LOCK TABLE payment IN EXCLUSIVE MODE"):
        answer.set()
        other = await asyncpg.connect(pushes.url)

        async def is_terminated() -> bool:
            return bool(await other.fetch(terminate))

        await eventually(is_terminated)
        made = await task
        await other.close()
    assert (made.status, made.data["provider_ref"]) == (201, "ws_CO_2")
    await pushes.await_all_written()
    assert (await pushes.row())["charge"] == "accepted"
    assert await pushes.steps() == ["requested", "sent"]


async def test_ack_without_a_free_connection_is_answered_and_written_later(
    pushes: Pushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "ANSWER_WITHIN", 0.3)
    answer, (task,) = await start_pushes(pushes, "a")
    pool = pushes.gateway.db.engine.pool
    assert pool is not None
    held = [await pool.acquire() for _ in range(10)]
    answer.set()
    made = await task
    assert (made.status, made.data["provider_ref"]) == (201, "ws_CO_2")
    for connection in held:
        await pool.release(connection)
    await pushes.await_all_written()
    assert (await pushes.row())["checkout_request_id"] == "ws_CO_2"
    assert await pushes.key_state() == "settled"


@pytest.mark.parametrize(
    ("reply", "status", "code", "charge", "key_state"),
    [
        (BROKEN, 201, None, "unknown", "settled"),
        (REFUSED, 502, "PROVIDER_REJECTED", "refused", "settled"),
        (BUSY, 503, "PROVIDER_UNAVAILABLE", "released", "released"),
    ],
)
async def test_outcome_of_each_kind_with_a_locked_row_is_written_later(
    pushes: Pushes, reply: DarajaAnswer, status: int, code: str | None, charge: str, key_state: str
) -> None:
    pushes.daraja.add_answers("stkpush", reply)
    answer, (task,) = await start_pushes(pushes, "a")
    async with pushes.locked("SELECT 1 FROM payment FOR UPDATE"):
        answer.set()
        made = await task
        assert made.status == status
        assert code is None or made.error["code"] == code
        assert pushes.gateway.outcomes.kept == 1
    await pushes.await_all_written()
    assert (await pushes.row())["charge"] == charge
    assert await pushes.key_state() == key_state


async def test_stop_writes_kept_outcomes_within_its_grace(
    values: dict[str, Any], daraja: Daraja, database_url: str
) -> None:
    async with open_pushes(values, daraja, database_url) as pushes:
        answer, (task,) = await start_pushes(pushes, "a")
        async with pushes.locked("SELECT 1 FROM payment FOR UPDATE"):
            answer.set()
            assert (await task).status == 201
            assert pushes.gateway.outcomes.kept == 1
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT checkout_request_id FROM payment") == "ws_CO_2"
    await connection.close()


async def test_callback_after_a_lost_outcome_completes_the_payment_by_its_token(
    values: dict[str, Any], daraja: Daraja, database_url: str
) -> None:
    values["worker"]["grace"] = 0
    async with open_pushes(values, daraja, database_url) as pushes:
        answer, (task,) = await start_pushes(pushes, "a")
        async with pushes.locked("SELECT 1 FROM payment FOR UPDATE"):
            answer.set()
            assert (await task).status == 201
            await pushes.gateway.outcomes.stop(0)
        assert pushes.gateway.outcomes.kept == 0
        row = await pushes.row()
        assert row["charge"] == "sending"
        await pushes.call_back(row, stk_callback("ws_CO_2"))
        assert (await pushes.row())["status"] == "completed"


async def test_push_while_too_many_outcomes_are_kept_is_not_sent(
    pushes: Pushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "MOST", 0)
    made = await pushes.api.pay(f"{PHONE}0", 500, key="a")
    assert (made.status, made.error["code"], made.headers["Retry-After"]) == (503, "SERVICE_UNAVAILABLE", "5")
    assert await pushes.gateway.db.fetchval("SELECT count(*) FROM payment") == 0
    assert pushes.daraja.requests_of("stkpush") == []


async def test_outcome_written_twice_adds_one_step(pushes: Pushes) -> None:
    # As after a COMMIT whose answer was lost.
    assert (await pushes.api.pay(f"{PHONE}0", 500, key="a")).status == 201
    row = await pushes.row()
    ack = StkAck(merchant_request_id="m-1", checkout_request_id="ws_CO_2")
    async with pushes.gateway.db.transaction():
        credentials = await pushes.gateway.services.get(Credentials).get(row["merchant_id"], "sandbox")
        await pushes.pusher._write_accepted(row, ack, credentials)
    assert await pushes.steps() == ["requested", "sent"]


async def test_daraja_call_inside_a_transaction_raises(pushes: Pushes) -> None:
    credentials = await pushes.gateway.services.get(Credentials).get(
        (await pushes.api.call("GET", "/v1/merchant/me")).data["id"], "sandbox"
    )
    async with pushes.gateway.db.transaction():
        with pytest.raises(ExternalCallInTransaction):
            await pushes.gateway.daraja.verify(credentials.daraja)
        with pytest.raises(ExternalCallInTransaction):
            await pushes.queries.query_payment("pay_1")
    assert pushes.daraja.asked == []


# -- pushes that were interrupted -----------------------------------------------------------------------------------


@pytest.fixture
def short_lease(values: dict[str, Any]) -> dict[str, Any]:
    """A lease of one second."""
    return values | {"payments": {"create_lease": 1}}


async def await_lease_end(pushes: Pushes) -> None:
    """Wait until every key's lease has ended."""
    await eventually(lambda: pushes.gateway.db.fetchval("SELECT bool_and(leased_until < now()) FROM idempotency_key"))


@pytest.mark.parametrize("by", ["sweep", "retry"])
async def test_push_interrupted_before_sending_fails_as_not_sent_after_the_lease(
    short_lease: dict[str, Any], daraja: Daraja, database_url: str, by: str
) -> None:
    async with open_pushes(short_lease, daraja, database_url) as pushes:
        token = daraja.hold("oauth")
        task = asyncio.create_task(pushes.api.pay(f"{PHONE}0", 500, key="a"))
        await daraja.wait_for_requests("oauth")
        row = await pushes.row()
        assert row["charge"] == "ready"
        # While the lease runs the request may still be active.
        assert not await pushes.queries.query_payment(row["payment_id"])
        await await_lease_end(pushes)
        if by == "sweep":
            assert await pushes.queries.query_payment(row["payment_id"])
        else:
            again = await pushes.api.pay(f"{PHONE}0", 500, key="a")
            assert (again.status, again.data["failure_reason"]) == (200, "not_sent")
        ended = await pushes.row()
        assert (ended["status"], ended["failure_reason"]) == ("failed", "not_sent")
        assert await pushes.key_state() == "settled"
        kinds = await pushes.gateway.db.fetch("SELECT kind FROM event")
        assert [one["kind"] for one in kinds] == ["payment.failed"]
        # The slow process finds that it must not send any more.
        token.set()
        slow = await task
        assert (slow.data["status"], slow.data["failure_reason"]) == ("failed", "not_sent")
        assert daraja.requests_of("stkpush") == []
        assert await pushes.key_state() == "settled"


async def test_push_interrupted_while_sending_is_unknown_and_never_not_sent(
    short_lease: dict[str, Any], daraja: Daraja, database_url: str
) -> None:
    async with open_pushes(short_lease, daraja, database_url) as pushes:
        answer, (task,) = await start_pushes(pushes, "a")
        row = await pushes.row()
        assert row["charge"] == "sending"
        await await_lease_end(pushes)
        assert await pushes.queries.query_payment(row["payment_id"])
        given_up = await pushes.row()
        assert (given_up["status"], given_up["charge"]) == ("pending", "unknown")
        assert given_up["due_at"] == given_up["expires_at"]
        assert await pushes.key_state() == "settled"
        again = await pushes.api.pay(f"{PHONE}0", 500, key="a")
        assert (again.status, again.data["status"]) == (200, "pending")
        # The process was only slow: its acknowledgement counts.
        answer.set()
        assert (await task).data["provider_ref"] == "ws_CO_2"
        assert (await pushes.row())["charge"] == "accepted"
        assert len(daraja.requests_of("stkpush")) == 1


async def test_callback_of_a_push_whose_process_died_completes_the_expired_payment(
    short_lease: dict[str, Any], daraja: Daraja, database_url: str
) -> None:
    async with open_pushes(short_lease, daraja, database_url) as pushes:
        answer, (task,) = await start_pushes(pushes, "a")
        row = await pushes.row()
        await await_lease_end(pushes)
        assert await pushes.queries.query_payment(row["payment_id"])
        await pushes.gateway.db.execute("UPDATE payment SET due_at = now(), expires_at = now()")
        assert await pushes.queries.query_payment(row["payment_id"])
        assert (await pushes.row())["failure_reason"] == "expired"
        await pushes.call_back(row, stk_callback("ws_CO_9"))
        assert (await pushes.row())["status"] == "completed"
        answer.set()
        await task


async def test_push_that_cannot_be_marked_is_not_sent_and_its_key_is_released(pushes: Pushes) -> None:
    token = pushes.daraja.hold("oauth")
    task = asyncio.create_task(pushes.api.pay(f"{PHONE}0", 500, key="a"))
    await pushes.daraja.wait_for_requests("oauth")
    async with pushes.locked("SELECT 1 FROM payment FOR UPDATE"):
        token.set()
        made = await task
        assert (made.status, made.error["code"]) == (503, "PROVIDER_UNAVAILABLE")
    await pushes.await_all_written()
    assert pushes.daraja.requests_of("stkpush") == []
    assert await pushes.key_state() == "released"
    again = await pushes.api.pay(f"{PHONE}0", 500, key="a")
    assert (again.status, again.data["provider_ref"]) == (201, "ws_CO_2")


async def test_unsent_outcome_repeated_late_releases_no_later_push(pushes: Pushes) -> None:
    pushes.daraja.add_answers("stkpush", BUSY)
    assert (await pushes.api.pay(f"{PHONE}0", 500, key="a")).status == 503
    first = await pushes.row()
    answer, (task,) = await start_pushes(pushes, "a")
    async with pushes.gateway.db.transaction():
        await pushes.pusher._write_unsent(first, NotSent("spike arrest"))
    assert (await pushes.row())["charge"] == "sending"
    assert await pushes.key_state() == "in_flight"
    assert (await pushes.api.pay(f"{PHONE}0", 500, key="a")).status == 409
    answer.set()
    assert (await task).status == 201
    assert len(pushes.daraja.requests_of("stkpush")) == 2


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
async def test_push_of_a_released_payment_with_a_callback_is_not_repeated(
    values: dict[str, Any], daraja: Daraja, database_url: str, callback: dict[str, Any], confirm: str
) -> None:
    async with open_pushes(values | {"payments": {"confirm": confirm}}, daraja, database_url) as pushes:
        daraja.add_answers("stkpush", BUSY)
        assert (await pushes.api.pay(f"{PHONE}0", 500, key="a")).status == 503
        row = await pushes.row()
        assert (row["charge"], await pushes.key_state()) == ("released", "released")
        await pushes.call_back(row, callback)
        again = await pushes.api.pay(f"{PHONE}0", 500, key="a")
        assert again.status == 200
        assert len(daraja.requests_of("stkpush")) == 1
        assert await pushes.key_state() == "settled"
