"""What meets in the middle: callbacks, answers, retries and time, each arriving while another is under way."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.engine import ExternalCallInTransaction, Row
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.testing.serving import SANDBOX, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.api import Direction, Evidence, PaymentRequest, Proof, Receiver, Source, StatementMatching
from mpesa_gateway_payments.create_steps import CreateSteps, NewPayment
from mpesa_gateway_payments.events import StkResulted
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.identifiers import identifier
from tests.kernel.scripted import Asked, Scripted, scripted, write, write_json

pytestmark = pytest.mark.as_owner

PHONE = "254711000001"
PROCESSING = (
    500,
    {"requestId": "r", "errorCode": "500.001.1001", "errorMessage": "The transaction is being processed"},
)
BUSY = (503, {"requestId": "r", "errorCode": "500.003.02", "errorMessage": "Spike arrest violation"})
PAID = (200, {"ResponseCode": "0", "ResultCode": "0", "ResultDesc": "Processed"})


@dataclass
class Daraja:
    """A Daraja that answers when it is told to."""

    pushed: int = 0
    pushing: asyncio.Event = field(default_factory=asyncio.Event)
    handle: str | None = None
    """The CheckoutRequestID of every ack; without one, each push gets its own."""
    push: asyncio.Event = field(default_factory=asyncio.Event)
    query: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    says: tuple[int, dict[str, Any]] = PAID
    is_busy: bool = False
    """Whether pushes are turned away: nothing is sent."""

    async def answer(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        path = asked.path.partition("?")[0]
        if path == "/oauth/v1/generate":
            write_json(writer, 200, {"access_token": "token-of-tests", "expires_in": "3599"})
        elif path == "/mpesa/stkpush/v1/processrequest" and self.is_busy:
            write_json(writer, *BUSY)
        elif path == "/mpesa/stkpush/v1/processrequest":
            self.pushed += 1
            number = self.pushed
            self.pushing.set()
            await self.push.wait()
            ids = {"MerchantRequestID": f"m-{number}", "CheckoutRequestID": self.handle or f"ws_CO_{number}"}
            write_json(writer, 200, ids | {"ResponseCode": "0", "ResponseDescription": "Accepted"})
        elif path == "/mpesa/stkpushquery/v1/query":
            self.asked.set()
            await self.query.wait()
            status, said = self.says
            named: dict[str, Any] = {"CheckoutRequestID": msgspec.json.decode(asked.body)["CheckoutRequestID"]}
            write_json(writer, status, named | said)
        else:
            write(writer, 404)


@dataclass(frozen=True)
class Street:
    """A gateway without a worker, in front of a Daraja that does as it is told."""

    gateway: Gateway
    base: str
    api: Api
    daraja: Daraja
    script: Scripted

    @property
    def payments(self) -> PaymentService:
        """The use cases."""
        return self.gateway.services.get(PaymentService)

    @property
    def queries(self) -> StkQueries:
        """Asks Daraja about payments."""
        return self.gateway.services.get(StkQueries)

    async def asks(self, key: str = "a", **more: Any) -> dict[str, Any]:
        """A payment that Daraja has taken."""
        self.daraja.push.set()
        made: dict[str, Any] = (await self.api.pay(PHONE, 500, key=key, **more)).data
        return made

    async def find(self, payment: dict[str, Any]) -> dict[str, Any]:
        """The payment as it stands."""
        found: dict[str, Any] = (await self.api.call("GET", f"/v1/payments/{payment['id']}")).data
        return found

    def address(self, payment: dict[str, Any]) -> str:
        """Where Daraja calls back about it."""
        dispatcher = self.gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"])
        return url.removeprefix(self.base)

    async def call_back(self, payment: dict[str, Any], content: dict[str, Any], path: str | None = None) -> None:
        """Call back as Daraja does."""
        assert (await self.api.call("POST", path or self.address(payment), content)).status == 200

    async def events(self) -> list[str]:
        """What merchants were told, in order."""
        rows = await self.gateway.db.fetch("SELECT kind FROM event ORDER BY occurred_at, event_id")
        return [row["kind"] for row in rows]


async def lose(gateway: Gateway, *statements: str) -> None:
    """Turn the books back, as a failover to a replica that lags behind does: no trigger is asked."""
    async with gateway.db.transaction():
        for statement in ("SET LOCAL session_replication_role = replica", *statements):
            await gateway.db.execute(statement)


UNPAID = (
    "UPDATE payment SET status = 'pending', receipt = NULL, completed_at = NULL, completed_by = NULL, due_at = now()"
)
UNACKNOWLEDGED = "UPDATE payment SET charge = 'unknown', checkout_request_id = NULL"


def result(handle: str | None, code: Any = 0, **values: Any) -> dict[str, Any]:
    """A callback as Daraja writes it."""
    callback: dict[str, Any] = {"MerchantRequestID": "m", "ResultCode": code, "ResultDesc": "said"}
    if handle is not None:
        callback["CheckoutRequestID"] = handle
    if values:
        callback["CallbackMetadata"] = {"Item": [{"Name": name, "Value": value} for name, value in values.items()]}
    return {"Body": {"stkCallback": callback}}


def paid(handle: str | None, amount: int = 500, receipt: str = "TKN4A1B2C3", **more: Any) -> dict[str, Any]:
    """A callback that says that the payer paid."""
    return result(handle, Amount=amount, MpesaReceiptNumber=receipt, **more)


@asynccontextmanager
async def on_street(values: dict[str, Any], daraja: Daraja | None = None) -> AsyncGenerator[Street]:
    """A gateway of these settings whose Daraja waits for the test."""
    daraja = daraja or Daraja()
    async with scripted(daraja.answer) as script:
        values |= {"worker": {"in_process": False}, "daraja": {"sandbox_url": script.base, "timeout": 10.0}}
        values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
        values.pop("simulator", None)
        async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
            yield Street(gateway, base, api, daraja, script)


@pytest.fixture
async def street(values: dict[str, Any]) -> AsyncGenerator[Street]:
    """A gateway whose Daraja waits for the test."""
    async with on_street(values) as street:
        yield street


# -- an amount that is not what was asked for -------------------------------------------------------------------------


async def test_an_answer_without_an_amount_never_completes_what_is_held_for_its_amount(street: Street) -> None:
    payment = await street.asks()
    asking = asyncio.create_task(street.queries.ask(payment["id"], is_forced=True))
    await street.daraja.asked.wait()
    await street.call_back(payment, paid("ws_CO_1", 501))
    street.daraja.query.set()
    assert await asking
    found = await street.find(payment)
    assert (found["status"], found["mismatch"]["of"], found["receipt"]) == ("pending", "amount", None)
    assert await street.events() == ["payment.mismatched"]


@pytest.mark.parametrize(
    "later",
    [result("ws_CO_1"), result("ws_CO_1", MpesaReceiptNumber="TKN4A1B2C3"), result("ws_CO_1", Amount=500)],
)
async def test_a_success_that_proves_nothing_new_leaves_it_to_a_person(street: Street, later: dict[str, Any]) -> None:
    payment = await street.asks()
    await street.call_back(payment, paid("ws_CO_1", 501))
    await street.call_back(payment, later)
    found = await street.find(payment)
    assert (found["status"], found["mismatch"]["of"]) == ("pending", "amount")
    assert await street.events() == ["payment.mismatched"]


async def test_the_right_amount_with_its_receipt_completes_what_was_held(street: Street) -> None:
    payment = await street.asks()
    await street.call_back(payment, paid("ws_CO_1", 501))
    await street.call_back(payment, paid("ws_CO_1", 500))
    assert (await street.find(payment))["status"] == "completed"
    assert await street.events() == ["payment.mismatched", "payment.completed"]


async def test_every_receipt_that_does_not_fit_is_told_and_none_twice(street: Street) -> None:
    payment = await street.asks()
    # Paid from another phone, then once more, and once more again: three receipts for one charge.
    await street.call_back(payment, paid("ws_CO_1", receipt="FIRST00001", PhoneNumber=254722000002))
    await street.call_back(payment, paid("ws_CO_1", receipt="SECOND0002"))
    await street.call_back(payment, paid("ws_CO_1", receipt="THIRD00003"))
    await street.call_back(payment, paid("ws_CO_1", receipt="SECOND0002", PhoneNumber="2547****001"))
    found = await street.find(payment)
    assert (found["status"], found["receipt"], found["mismatch"]) == (
        "completed",
        "FIRST00001",
        {"of": "receipt", "received_amount": "500.00", "received_receipt": "SECOND0002"},
    )
    told = [step["detail"] for step in found["timeline"] if step["kind"] == "mismatched"]
    assert len(told) == 2
    rows = await street.gateway.db.fetch(
        "SELECT body::jsonb->'data'->>'received_receipt' AS receipt FROM event WHERE kind = 'payment.mismatched' "
        "ORDER BY occurred_at, event_id"
    )
    assert [row["receipt"] for row in rows] == ["FIRST00001", "SECOND0002", "THIRD00003"]


async def test_a_late_receipt_from_another_phone_is_told(street: Street) -> None:
    payment = await street.asks()
    street.daraja.query.set()
    await street.queries.ask(payment["id"], is_forced=True)
    assert (await street.find(payment))["status"] == "completed"
    await street.call_back(payment, paid("ws_CO_1", PhoneNumber=254722000002))
    found = await street.find(payment)
    assert (found["receipt"], found["mismatch"]["of"]) == ("TKN4A1B2C3", "phone")
    assert await street.events() == ["payment.completed", "payment.mismatched"]


async def test_a_success_without_a_receipt_after_a_failure_is_told_and_completes_nothing(street: Street) -> None:
    payment = await street.asks()
    await street.call_back(payment, result("ws_CO_1", 1037))
    await street.call_back(payment, result("ws_CO_1"))
    found = await street.find(payment)
    assert (found["status"], found["mismatch"]["of"]) == ("failed", "unconfirmed")
    assert await street.events() == ["payment.failed", "payment.mismatched"]
    await street.call_back(payment, paid("ws_CO_1"))
    assert (await street.find(payment))["status"] == "completed"


# -- time, and what comes just before it ------------------------------------------------------------------------------


async def test_a_payment_that_is_just_being_sent_again_is_not_given_up(values: dict[str, Any]) -> None:
    values["database"] |= {"pool_max": 1}
    async with on_street(values) as street:
        payment = await street.asks()
        db, now = street.gateway.db, street.gateway.clock.now()
        await db.execute(
            "UPDATE payment SET charge = 'released', checkout_request_id = NULL, merchant_request_id = NULL, "
            "due_at = $1, expires_at = $1",
            now,
        )
        giving_up = asyncio.create_task(street.queries.ask(payment["id"]))
        await asyncio.sleep(0)
        # There is one connection: this gets it right after the first step of giving up, and before the second.
        later = now + timedelta(minutes=15)

        async def send_again() -> Row | None:
            async with db.transaction():
                await db.execute("UPDATE idempotency_key SET state = 'in_flight', leased_until = $1", later)
                return await db.fetchrow(tables.RESEND, payment["id"], now, later, later)

        sent_again = asyncio.create_task(send_again())
        assert await giving_up
        assert (await sent_again) is not None
        assert (await street.find(payment))["status"] == "pending"
        assert await db.fetchval("SELECT charge FROM payment") == "ready"
        assert await street.events() == []


async def test_a_payment_whose_ack_has_just_come_is_asked_about_and_not_given_up(values: dict[str, Any]) -> None:
    values["database"] |= {"pool_max": 1}
    async with on_street(values) as street:
        payment = await street.asks()
        db, now = street.gateway.db, street.gateway.clock.now()
        await db.execute(
            "UPDATE payment SET charge = 'unknown', checkout_request_id = NULL, due_at = $1, expires_at = $1", now
        )
        giving_up = asyncio.create_task(street.queries.ask(payment["id"]))
        await asyncio.sleep(0)
        learnt = asyncio.create_task(
            db.execute("UPDATE payment SET merchant_request_id = 'm-1', checkout_request_id = 'ws_CO_1'")
        )
        assert await giving_up
        assert await learnt == "UPDATE 1"
        assert (await street.find(payment))["status"] == "pending"
        # The question that follows is the last one, and it is asked.
        street.daraja.query.set()
        await db.execute("UPDATE payment SET due_at = $1", now)
        assert await street.queries.ask(payment["id"])
        assert (await street.find(payment))["status"] == "completed"


async def test_what_is_sent_late_has_its_whole_time(street: Street) -> None:
    street.daraja.is_busy = True
    assert (await street.api.pay(PHONE, 500, key="a")).status == 503
    db = street.gateway.db
    payment = {"id": await db.fetchval("SELECT payment_id FROM payment WHERE charge = 'released'")}
    await db.execute(
        "UPDATE payment SET created_at = created_at - $1::interval, due_at = due_at - $1::interval, "
        "expires_at = expires_at - $1::interval",
        timedelta(seconds=800),
    )
    street.daraja.is_busy = False
    street.daraja.push.set()
    assert (await street.api.pay(PHONE, 500, key="a")).status == 201
    # The ack, and with it updated_at, comes a moment after the push.
    left = await db.fetchval("SELECT expires_at - updated_at FROM payment")
    assert timedelta(seconds=850) < left <= timedelta(seconds=900)
    assert await db.fetchval("SELECT due_at - updated_at FROM payment") == timedelta(seconds=30)
    street.daraja.says = PROCESSING
    street.daraja.query.set()
    await street.queries.ask(payment["id"], is_forced=True)
    # Counted from the push and not from the wish.
    due = await db.fetchval("SELECT due_at - (expires_at - interval '900 seconds') FROM payment")
    assert due == timedelta(seconds=30)


async def test_what_a_callback_left_to_confirm_during_the_last_question_gets_its_own_time(
    values: dict[str, Any],
) -> None:
    values["payments"] = {"confirm": "always"}
    async with on_street(values) as street:
        payment = await street.asks()
        await street.gateway.db.execute("UPDATE payment SET expires_at = now() - interval '1 second'")
        street.daraja.says = PROCESSING
        asking = asyncio.create_task(street.queries.ask(payment["id"], is_forced=True))
        await street.daraja.asked.wait()
        await street.call_back(payment, paid("ws_CO_1"))
        street.daraja.query.set()
        await asking
        found = await street.find(payment)
        assert (found["status"], found["mismatch"]) == ("pending", None)
        street.daraja.says = PAID
        await street.queries.ask(payment["id"], is_forced=True)
        assert (await street.find(payment))["receipt"] == "TKN4A1B2C3"


async def other_money(street: Street, payment: dict[str, Any], receipt: str, amount: int = 500) -> str:
    """M-Pesa's statement shows money under a payment's own reference; returns what it turned out to be."""
    line = Evidence(
        source=Source.STATEMENT,
        proof=Proof.WINDOW,
        direction=Direction.IN,
        receiver=Receiver("sandbox", "174379"),
        receipt=receipt,
        reference=payment["reference"],
        amount=Kes(amount),
    )
    async with street.gateway.db.transaction():
        return (await street.gateway.services.get(StatementMatching).apply(line)).finding


@pytest.mark.parametrize(
    ("receipt", "amount", "status", "mismatch", "told"),
    [
        # Two receipts for one payment: the payer may have paid twice, and nobody has said that the first is not true.
        ("OTHER00001", 500, "completed", "unconfirmed", [("unconfirmed", "TKN4A1B2C3")]),
        # What was waiting has been proved.
        ("TKN4A1B2C3", 500, "completed", None, []),
        ("OTHER00001", 499, "pending", "amount", [("amount", "OTHER00001"), ("unconfirmed", "TKN4A1B2C3")]),
    ],
)
async def test_what_waits_to_be_confirmed_is_told_when_other_money_comes_first(
    values: dict[str, Any], receipt: str, amount: int, status: str, mismatch: str | None, told: list[tuple[str, str]]
) -> None:
    values["payments"] = {"confirm": "always"}
    async with on_street(values) as street:
        payment = await street.asks()
        await street.call_back(payment, paid("ws_CO_1"))
        assert (await street.find(payment))["timeline"][-1]["kind"] == "confirming"
        await other_money(street, payment, receipt, amount)
        found = await street.find(payment)
        assert (found["status"], (found["mismatch"] or {}).get("of")) == (status, mismatch)
        assert await street.gateway.db.fetchval("SELECT claim IS NULL FROM payment")
        rows = await street.gateway.db.fetch(
            "SELECT body::jsonb->'data'->>'mismatch' AS of, body::jsonb->'data'->>'received_receipt' AS receipt "
            "FROM event WHERE kind = 'payment.mismatched' ORDER BY event_id"
        )
        assert sorted((row["of"], row["receipt"]) for row in rows) == sorted(told)


# -- the push, its record and its callback ----------------------------------------------------------------------------


async def test_a_callback_during_the_push_ends_the_payment_once(street: Street) -> None:
    pushing = asyncio.create_task(street.api.pay(PHONE, 500, key="a"))
    await street.daraja.pushing.wait()
    row = await street.gateway.db.fetchrow("SELECT payment_id AS id, merchant_id FROM payment")
    assert row is not None
    await street.call_back(dict(row), paid("ws_CO_1"))
    street.daraja.push.set()
    answer = await pushing
    assert (answer.status, answer.data["status"], answer.data["receipt"]) == (201, "completed", "TKN4A1B2C3")
    assert answer.data["provider_ref"] == "ws_CO_1"
    assert await street.events() == ["payment.completed"]


async def test_no_transaction_is_open_while_the_push_is_under_way(street: Street) -> None:
    pushing = asyncio.create_task(street.api.pay(PHONE, 500, key="a"))
    await street.daraja.pushing.wait()
    idle = await street.gateway.db.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND datname = current_database()"
    )
    street.daraja.push.set()
    assert ((await pushing).status, idle) == (201, 0)


async def test_a_caller_that_hangs_up_does_not_tear_the_push_from_its_record(street: Street) -> None:
    pushing = asyncio.create_task(
        street.payments.request(
            (await street.api.call("GET", "/v1/merchant/me")).data["id"],
            "sandbox",
            PaymentRequest(amount=Kes(500), phone=Msisdn.parse(PHONE)),
            idempotency_key="a",
        )
    )
    await street.daraja.pushing.wait()
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    street.daraja.push.set()
    await eventually(lambda: street.gateway.db.fetchval("SELECT true FROM payment WHERE charge = 'accepted'"))
    assert await street.gateway.db.fetchval("SELECT state FROM idempotency_key") == "settled"


async def test_a_payment_is_never_asked_for_inside_a_transaction(street: Street) -> None:
    merchant_id = (await street.api.call("GET", "/v1/merchant/me")).data["id"]
    request = PaymentRequest(amount=Kes(500), phone=Msisdn.parse(PHONE))
    with pytest.raises(ExternalCallInTransaction, match="after commit"):
        async with street.gateway.db.transaction():
            await street.payments.request(merchant_id, "sandbox", request, idempotency_key="a")
    assert street.daraja.pushed == 0


async def test_an_ack_with_a_handle_that_is_anothers_is_an_unknown_outcome(street: Street) -> None:
    street.daraja.handle = "ws_CO_same"
    await street.asks("a")
    second = await street.asks("b")
    assert (second["status"], second["provider_ref"]) == ("pending", None)
    assert [step["kind"] for step in (await street.find(second))["timeline"]] == ["requested", "unknown"]
    # Its callback's address says whose it is, whatever else is wrong with it.
    await street.call_back(second, paid(None))
    assert (await street.find(second))["status"] == "completed"
    again = await street.api.pay(PHONE, 500, key="b")
    assert (again.status, street.daraja.pushed) == (200, 2)


async def test_a_callback_that_waited_for_its_ack_is_applied_with_it_and_the_push_is_noted_once(
    values: dict[str, Any],
) -> None:
    values["callbacks"] = {"allowlist": ["127.0.0.0/8"]}
    async with on_street(values) as street:
        # At an address without a token, so that nothing but Daraja's id says whose it is.
        path = "/v1/webhooks/mpesa"
        pushing = asyncio.create_task(street.api.pay(PHONE, 500, key="a", callback_url=street.gateway.url(path)))
        await street.daraja.pushing.wait()
        answer = await street.api.call("POST", path, paid("ws_CO_1"))
        assert answer.status == 200
        street.daraja.push.set()
        payment = (await pushing).data
        assert payment["status"] == "completed"
        assert [step["kind"] for step in (await street.find(payment))["timeline"]] == ["requested", "sent", "completed"]


async def test_what_is_to_be_confirmed_is_asked_about_at_once_though_the_ack_comes_later(
    values: dict[str, Any],
) -> None:
    values["payments"] = {"confirm": "always"}
    async with on_street(values) as street:
        pushing = asyncio.create_task(street.api.pay(PHONE, 500, key="a"))
        await street.daraja.pushing.wait()
        row = await street.gateway.db.fetchrow("SELECT payment_id AS id, merchant_id FROM payment")
        assert row is not None
        await street.call_back(dict(row), paid("ws_CO_1"))
        street.daraja.push.set()
        assert (await pushing).data["status"] == "pending"
        assert await street.gateway.db.fetchval("SELECT due_at <= updated_at FROM payment WHERE claim IS NOT NULL")


async def test_one_shops_impossible_request_spoils_no_others(values: dict[str, Any]) -> None:
    values["http"] = {"wait": 60}
    async with on_street(values) as street:
        street.daraja.push.set()
        async with shop(street.gateway, street.base) as odd:
            merchant_id = (await odd.call("GET", "/v1/merchant/me")).data["id"]
            # As only a mistake of ours could store it.
            await street.gateway.db.execute("ALTER TABLE shortcode DROP CONSTRAINT shortcode_account_reference_check")
            await street.gateway.db.execute(
                "UPDATE shortcode SET account_reference = 'far too long for it' WHERE merchant_id = $1",
                merchant_id,
            )
            answers = await asyncio.gather(
                *((odd, street.api)[number % 2].pay(PHONE, 500, key=f"k{number}") for number in range(40))
            )
        assert [answer.error for answer in answers[1::2] if answer.status != 201] == []
        assert {answer.status for answer in answers[::2]} == {500}


async def test_create_whose_lock_does_not_come_fails_alone(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of its batch are committed by then: an error for them would leave their payments without a push."""
    insert = CreateSteps._insert_rows  # pyright: ignore[reportPrivateUsage] - what Postgres refuses

    async def insert_rows(steps: CreateSteps, wanted: Sequence[NewPayment]) -> list[Any]:
        if len(wanted) > 1:
            raise asyncpg.DeadlockDetectedError("two batches")
        if wanted[0].reference == "slow":
            raise asyncpg.QueryCanceledError("statement timeout")
        return await insert(steps, wanted)

    monkeypatch.setattr(CreateSteps, "_insert_rows", insert_rows)
    street.daraja.push.set()
    references = ["slow" if number == 5 else f"order {number}" for number in range(12)]
    answers = await asyncio.gather(*(street.api.pay(PHONE, 500, key=f"k {one}", reference=one) for one in references))
    assert [one for one, answer in zip(references, answers, strict=True) if answer.status != 201] == ["slow"]


# -- callbacks twice over ---------------------------------------------------------------------------------------------


async def test_what_valkey_remembers_and_postgres_has_lost_is_taken_again(street: Street) -> None:
    payment = await street.asks()
    await street.call_back(payment, paid("ws_CO_1"))
    # As after a failover to a replica that had not got the last transaction.
    await lose(street.gateway, "DELETE FROM callback", UNPAID)
    await street.call_back(payment, paid("ws_CO_1"))
    assert (await street.find(payment))["status"] == "completed"


async def test_a_copy_without_a_token_does_not_keep_the_one_with_a_token_waiting(values: dict[str, Any]) -> None:
    values["callbacks"] = {"enforce_allowlist": "never"}
    async with on_street(values, Daraja(handle="ws_CO_same")) as street:
        payment = await street.asks()
        await street.gateway.db.execute(UNACKNOWLEDGED)
        await street.call_back(payment, paid("ws_CO_same"), "/v1/webhooks/mpesa")
        assert (await street.find(payment))["status"] == "pending"
        await street.call_back(payment, paid("ws_CO_same"))
        assert (await street.find(payment))["status"] == "completed"


async def test_a_host_hears_of_an_odd_callback_once_and_of_a_refused_one_never(street: Street) -> None:
    @street.gateway.on(StkResulted)
    async def hear(_: StkResulted) -> None:
        raise AssertionError

    payment = await street.asks()
    await street.call_back(payment, paid("ws_CO_1", PhoneNumber=254722000002))
    refused = await street.api.call("POST", street.address(payment), result("ws_CO_another", 1032))
    assert refused.status == 403
    assert hear.__name__ == "hear"
    assert await street.events() == ["callback.stk_resulted", "payment.completed", "payment.mismatched"]


async def test_a_callback_that_cannot_be_read_any_more_keeps_no_other_waiting(street: Street) -> None:
    payment = await street.asks()
    await street.gateway.db.execute(UNACKNOWLEDGED)
    dispatcher, db = street.gateway.services.get(CallbackDispatcher), street.gateway.db
    await street.call_back(payment, paid("ws_CO_1"))
    await lose(street.gateway, UNPAID, UNACKNOWLEDGED)
    await db.execute("UPDATE callback SET verdict = 'waiting', applied_at = NULL, due_at = now() - interval '1 second'")
    await db.execute(
        "INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, subject_id, handle, result_code, "
        "body, due_at) VALUES ($2, 'stk', $1, now(), '127.0.0.1', NULL, 'x', '0', '{', "
        "now() - interval '2 seconds')",
        bytes(16),
        identifier("cbk"),
    )
    assert await dispatcher.sweep() == 2
    assert (await street.find(payment))["status"] == "completed"
    rows = await db.fetch("SELECT verdict FROM callback ORDER BY callback_id = $1", identifier("cbk"))
    assert [row["verdict"] for row in rows] == ["applied", "waiting"]


# -- credentials that change ------------------------------------------------------------------------------------------


async def test_a_payment_of_a_retired_shortcode_is_asked_about_with_its_own_credentials(street: Street) -> None:
    payment = await street.asks()
    other = SANDBOX | {"mpesa": SANDBOX["mpesa"] | {"shortcode": "600999"}}
    stored = await street.api.call("PUT", "/v1/merchant/providers", other)
    assert stored.status == 200
    street.daraja.query.set()
    assert await street.queries.ask(payment["id"], is_forced=True)
    (question,) = street.script.of("/mpesa/stkpushquery/v1/query")
    assert json.loads(question.body)["BusinessShortCode"] == SANDBOX["mpesa"]["shortcode"]
