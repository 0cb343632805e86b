"""Protects races between callbacks, acknowledgements, retries, queries and expiry of one payment."""

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
from tests.kernel.scripted import ScriptedRequest, ScriptedServer, scripted, write, write_json

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
    """A Daraja that answers when the test sets an event."""

    pushed: int = 0
    pushing: asyncio.Event = field(default_factory=asyncio.Event)
    handle: str | None = None
    """The CheckoutRequestID of every acknowledgement; if None, each push gets its own."""
    push: asyncio.Event = field(default_factory=asyncio.Event)
    query: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    says: tuple[int, dict[str, Any]] = PAID
    is_busy: bool = False
    """If True, pushes are refused: nothing is sent."""

    async def answer(self, request: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        path = request.path.partition("?")[0]
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
            status, fields = self.says
            named: dict[str, Any] = {"CheckoutRequestID": msgspec.json.decode(request.body)["CheckoutRequestID"]}
            write_json(writer, status, named | fields)
        else:
            write(writer, 404)


@dataclass(frozen=True)
class Gate:
    """A gateway without a worker, in front of that Daraja."""

    gateway: Gateway
    base: str
    api: Api
    daraja: Daraja
    script: ScriptedServer

    @property
    def payments(self) -> PaymentService:
        return self.gateway.services.get(PaymentService)

    @property
    def queries(self) -> StkQueries:
        return self.gateway.services.get(StkQueries)

    async def create_payment(self, key: str = "a", **more: Any) -> dict[str, Any]:
        """Create a payment that Daraja has acknowledged."""
        self.daraja.push.set()
        made: dict[str, Any] = (await self.api.pay(PHONE, 500, key=key, **more)).data
        return made

    async def get_payment(self, payment: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = (await self.api.call("GET", f"/v1/payments/{payment['id']}")).data
        return found

    def address(self, payment: dict[str, Any]) -> str:
        """The path for callbacks about the payment."""
        dispatcher = self.gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"])
        return url.removeprefix(self.base)

    async def call_back(self, payment: dict[str, Any], content: dict[str, Any], path: str | None = None) -> None:
        assert (await self.api.call("POST", path or self.address(payment), content)).status == 200

    async def events(self) -> list[str]:
        """The types of all events, in order."""
        rows = await self.gateway.db.fetch("SELECT kind FROM event ORDER BY occurred_at, event_id")
        return [row["kind"] for row in rows]


async def execute_without_triggers(gateway: Gateway, *statements: str) -> None:
    """Execute statements without triggers, to reach the state after a failover to a lagging replica."""
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


def paid_callback(handle: str | None, amount: int = 500, receipt: str = "TKN4A1B2C3", **more: Any) -> dict[str, Any]:
    """A callback that reports a success."""
    return result(handle, Amount=amount, MpesaReceiptNumber=receipt, **more)


@asynccontextmanager
async def open_gate(values: dict[str, Any], daraja: Daraja | None = None) -> AsyncGenerator[Gate]:
    """A gateway with these settings, in front of a Daraja that waits for the test."""
    daraja = daraja or Daraja()
    async with scripted(daraja.answer) as script:
        values |= {"worker": {"in_process": False}, "daraja": {"sandbox_url": script.base, "timeout": 10.0}}
        values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
        values.pop("simulator", None)
        async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
            yield Gate(gateway, base, api, daraja, script)


@pytest.fixture
async def gate(values: dict[str, Any]) -> AsyncGenerator[Gate]:
    async with open_gate(values) as gate:
        yield gate


# -- mismatches -----------------------------------------------------------------------------------------------------


async def test_query_success_after_an_amount_mismatch_leaves_the_mismatch(gate: Gate) -> None:
    payment = await gate.create_payment()
    asking = asyncio.create_task(gate.queries.query_payment(payment["id"], is_forced=True))
    await gate.daraja.asked.wait()
    await gate.call_back(payment, paid_callback("ws_CO_1", 501))
    gate.daraja.query.set()
    assert await asking
    found = await gate.get_payment(payment)
    assert (found["status"], found["mismatch"]["of"], found["receipt"]) == ("pending", "amount", None)
    assert await gate.events() == ["payment.mismatched"]


@pytest.mark.parametrize(
    "later",
    [result("ws_CO_1"), result("ws_CO_1", MpesaReceiptNumber="TKN4A1B2C3"), result("ws_CO_1", Amount=500)],
)
async def test_callback_without_new_proof_leaves_the_mismatch(gate: Gate, later: dict[str, Any]) -> None:
    payment = await gate.create_payment()
    await gate.call_back(payment, paid_callback("ws_CO_1", 501))
    await gate.call_back(payment, later)
    found = await gate.get_payment(payment)
    assert (found["status"], found["mismatch"]["of"]) == ("pending", "amount")
    assert await gate.events() == ["payment.mismatched"]


async def test_callback_with_the_right_amount_after_a_mismatch_completes_payment(gate: Gate) -> None:
    payment = await gate.create_payment()
    await gate.call_back(payment, paid_callback("ws_CO_1", 501))
    await gate.call_back(payment, paid_callback("ws_CO_1", 500))
    assert (await gate.get_payment(payment))["status"] == "completed"
    assert await gate.events() == ["payment.mismatched", "payment.completed"]


async def test_callback_with_a_further_receipt_is_published_once(gate: Gate) -> None:
    payment = await gate.create_payment()
    # Paid from another phone, then twice more: three receipts for one push.
    await gate.call_back(payment, paid_callback("ws_CO_1", receipt="FIRST00001", PhoneNumber=254722000002))
    await gate.call_back(payment, paid_callback("ws_CO_1", receipt="SECOND0002"))
    await gate.call_back(payment, paid_callback("ws_CO_1", receipt="THIRD00003"))
    await gate.call_back(payment, paid_callback("ws_CO_1", receipt="SECOND0002", PhoneNumber="2547****001"))
    found = await gate.get_payment(payment)
    assert (found["status"], found["receipt"], found["mismatch"]) == (
        "completed",
        "FIRST00001",
        {"of": "receipt", "received_amount": "500.00", "received_receipt": "SECOND0002"},
    )
    details = [step["detail"] for step in found["timeline"] if step["kind"] == "mismatched"]
    assert len(details) == 2
    rows = await gate.gateway.db.fetch(
        "SELECT event.body::jsonb->'data'->>'received_receipt' AS receipt FROM event WHERE kind = 'payment.mismatched' "
        "ORDER BY occurred_at, event_id"
    )
    assert [row["receipt"] for row in rows] == ["FIRST00001", "SECOND0002", "THIRD00003"]


async def test_callback_from_another_phone_after_completion_is_a_mismatch(gate: Gate) -> None:
    payment = await gate.create_payment()
    gate.daraja.query.set()
    await gate.queries.query_payment(payment["id"], is_forced=True)
    assert (await gate.get_payment(payment))["status"] == "completed"
    await gate.call_back(payment, paid_callback("ws_CO_1", PhoneNumber=254722000002))
    found = await gate.get_payment(payment)
    assert (found["receipt"], found["mismatch"]["of"]) == ("TKN4A1B2C3", "phone")
    assert await gate.events() == ["payment.completed", "payment.mismatched"]


async def test_callback_without_receipt_after_a_failure_is_a_mismatch(gate: Gate) -> None:
    payment = await gate.create_payment()
    await gate.call_back(payment, result("ws_CO_1", 1037))
    await gate.call_back(payment, result("ws_CO_1"))
    found = await gate.get_payment(payment)
    assert (found["status"], found["mismatch"]["of"]) == ("failed", "unconfirmed")
    assert await gate.events() == ["payment.failed", "payment.mismatched"]
    await gate.call_back(payment, paid_callback("ws_CO_1"))
    assert (await gate.get_payment(payment))["status"] == "completed"


# -- expiry ---------------------------------------------------------------------------------------------------------


async def test_ask_while_the_push_is_resent_does_not_expire_the_payment(values: dict[str, Any]) -> None:
    values["database"] |= {"pool_max": 1}
    async with open_gate(values) as gate:
        payment = await gate.create_payment()
        db, now = gate.gateway.db, gate.gateway.clock.now()
        await db.execute(
            "UPDATE payment SET charge = 'released', checkout_request_id = NULL, merchant_request_id = NULL, "
            "due_at = $1, expires_at = $1",
            now,
        )
        giving_up = asyncio.create_task(gate.queries.query_payment(payment["id"]))
        await asyncio.sleep(0)
        # There is one connection: this statement gets it after the first step of expiry and before the second.
        later = now + timedelta(minutes=15)

        async def send_again() -> Row | None:
            async with db.transaction():
                await db.execute("UPDATE idempotency_key SET state = 'in_flight', leased_until = $1", later)
                return await db.fetchrow(tables.RESEND, payment["id"], now, later, later)

        sent_again = asyncio.create_task(send_again())
        assert await giving_up
        assert (await sent_again) is not None
        assert (await gate.get_payment(payment))["status"] == "pending"
        assert await db.fetchval("SELECT charge FROM payment") == "ready"
        assert await gate.events() == []


async def test_ask_right_after_the_ack_queries_and_does_not_expire_the_payment(values: dict[str, Any]) -> None:
    values["database"] |= {"pool_max": 1}
    async with open_gate(values) as gate:
        payment = await gate.create_payment()
        db, now = gate.gateway.db, gate.gateway.clock.now()
        await db.execute(
            "UPDATE payment SET charge = 'unknown', checkout_request_id = NULL, due_at = $1, expires_at = $1", now
        )
        giving_up = asyncio.create_task(gate.queries.query_payment(payment["id"]))
        await asyncio.sleep(0)
        learnt = asyncio.create_task(
            db.execute("UPDATE payment SET merchant_request_id = 'm-1', checkout_request_id = 'ws_CO_1'")
        )
        assert await giving_up
        assert await learnt == "UPDATE 1"
        assert (await gate.get_payment(payment))["status"] == "pending"
        # The next query is the last one, and it is sent.
        gate.daraja.query.set()
        await db.execute("UPDATE payment SET due_at = $1", now)
        assert await gate.queries.query_payment(payment["id"])
        assert (await gate.get_payment(payment))["status"] == "completed"


async def test_push_resent_late_has_its_whole_time(gate: Gate) -> None:
    gate.daraja.is_busy = True
    assert (await gate.api.pay(PHONE, 500, key="a")).status == 503
    db = gate.gateway.db
    payment = {"id": await db.fetchval("SELECT payment_id FROM payment WHERE charge = 'released'")}
    await db.execute(
        "UPDATE payment SET created_at = created_at - $1::interval, due_at = due_at - $1::interval, "
        "expires_at = expires_at - $1::interval",
        timedelta(seconds=800),
    )
    gate.daraja.is_busy = False
    gate.daraja.push.set()
    assert (await gate.api.pay(PHONE, 500, key="a")).status == 201
    # The acknowledgement, and with it updated_at, is a moment after the push.
    left = await db.fetchval("SELECT expires_at - updated_at FROM payment")
    assert timedelta(seconds=850) < left <= timedelta(seconds=900)
    assert await db.fetchval("SELECT due_at - updated_at FROM payment") == timedelta(seconds=30)
    gate.daraja.says = PROCESSING
    gate.daraja.query.set()
    await gate.queries.query_payment(payment["id"], is_forced=True)
    # The time counts from the push and not from the request.
    due = await db.fetchval("SELECT due_at - (expires_at - interval '900 seconds') FROM payment")
    assert due == timedelta(seconds=30)


async def test_callback_to_confirm_during_the_last_query_gets_its_own_time(
    values: dict[str, Any],
) -> None:
    values["payments"] = {"confirm": "always"}
    async with open_gate(values) as gate:
        payment = await gate.create_payment()
        await gate.gateway.db.execute("UPDATE payment SET expires_at = now() - interval '1 second'")
        gate.daraja.says = PROCESSING
        asking = asyncio.create_task(gate.queries.query_payment(payment["id"], is_forced=True))
        await gate.daraja.asked.wait()
        await gate.call_back(payment, paid_callback("ws_CO_1"))
        gate.daraja.query.set()
        await asking
        found = await gate.get_payment(payment)
        assert (found["status"], found["mismatch"]) == ("pending", None)
        gate.daraja.says = PAID
        await gate.queries.query_payment(payment["id"], is_forced=True)
        assert (await gate.get_payment(payment))["receipt"] == "TKN4A1B2C3"


async def settle_other_money(gate: Gate, payment: dict[str, Any], receipt: str, amount: int = 500) -> str:
    """Settle a statement line under the payment's own reference; returns the finding."""
    line = Evidence(
        source=Source.STATEMENT,
        proof=Proof.WINDOW,
        direction=Direction.IN,
        receiver=Receiver("sandbox", "174379"),
        receipt=receipt,
        reference=payment["reference"],
        amount=Kes(amount),
    )
    async with gate.gateway.db.transaction():
        return (await gate.gateway.services.get(StatementMatching).apply(line)).finding


@pytest.mark.parametrize(
    ("receipt", "amount", "status", "mismatch", "events"),
    [
        # Two receipts for one payment: the payer may have paid twice, and the first may be true.
        ("OTHER00001", 500, "completed", "unconfirmed", [("unconfirmed", "TKN4A1B2C3")]),
        # The unconfirmed receipt was proved.
        ("TKN4A1B2C3", 500, "completed", None, []),
        ("OTHER00001", 499, "pending", "amount", [("amount", "OTHER00001"), ("unconfirmed", "TKN4A1B2C3")]),
    ],
)
async def test_claim_overtaken_by_other_money_is_published_as_a_mismatch(
    values: dict[str, Any], receipt: str, amount: int, status: str, mismatch: str | None, events: list[tuple[str, str]]
) -> None:
    values["payments"] = {"confirm": "always"}
    async with open_gate(values) as gate:
        payment = await gate.create_payment()
        await gate.call_back(payment, paid_callback("ws_CO_1"))
        assert (await gate.get_payment(payment))["timeline"][-1]["kind"] == "confirming"
        await settle_other_money(gate, payment, receipt, amount)
        found = await gate.get_payment(payment)
        assert (found["status"], (found["mismatch"] or {}).get("of")) == (status, mismatch)
        assert await gate.gateway.db.fetchval("SELECT claim IS NULL FROM payment")
        rows = await gate.gateway.db.fetch(
            "SELECT event.body::jsonb->'data'->>'mismatch' AS of, "
            "event.body::jsonb->'data'->>'received_receipt' AS receipt "
            "FROM event WHERE kind = 'payment.mismatched' ORDER BY event_id"
        )
        assert sorted((row["of"], row["receipt"]) for row in rows) == sorted(events)


# -- the push, its record and its callback --------------------------------------------------------------------------


async def test_callback_during_the_push_completes_the_payment_once(gate: Gate) -> None:
    pushing = asyncio.create_task(gate.api.pay(PHONE, 500, key="a"))
    await gate.daraja.pushing.wait()
    row = await gate.gateway.db.fetchrow("SELECT payment_id AS id, merchant_id FROM payment")
    assert row is not None
    await gate.call_back(dict(row), paid_callback("ws_CO_1"))
    gate.daraja.push.set()
    answer = await pushing
    assert (answer.status, answer.data["status"], answer.data["receipt"]) == (201, "completed", "TKN4A1B2C3")
    assert answer.data["provider_ref"] == "ws_CO_1"
    assert await gate.events() == ["payment.completed"]


async def test_push_holds_no_open_transaction(gate: Gate) -> None:
    pushing = asyncio.create_task(gate.api.pay(PHONE, 500, key="a"))
    await gate.daraja.pushing.wait()
    idle = await gate.gateway.db.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND datname = current_database()"
    )
    gate.daraja.push.set()
    assert ((await pushing).status, idle) == (201, 0)


async def test_push_of_a_cancelled_request_is_recorded(gate: Gate) -> None:
    pushing = asyncio.create_task(
        gate.payments.request(
            (await gate.api.call("GET", "/v1/merchant/me")).data["id"],
            "sandbox",
            PaymentRequest(amount=Kes(500), phone=Msisdn.parse(PHONE)),
            idempotency_key="a",
        )
    )
    await gate.daraja.pushing.wait()
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    gate.daraja.push.set()
    await eventually(lambda: gate.gateway.db.fetchval("SELECT true FROM payment WHERE charge = 'accepted'"))
    assert await gate.gateway.db.fetchval("SELECT state FROM idempotency_key") == "settled"


async def test_request_inside_a_transaction_raises(gate: Gate) -> None:
    merchant_id = (await gate.api.call("GET", "/v1/merchant/me")).data["id"]
    request = PaymentRequest(amount=Kes(500), phone=Msisdn.parse(PHONE))
    with pytest.raises(ExternalCallInTransaction, match="after commit"):
        async with gate.gateway.db.transaction():
            await gate.payments.request(merchant_id, "sandbox", request, idempotency_key="a")
    assert gate.daraja.pushed == 0


async def test_ack_with_the_handle_of_another_payment_is_unknown(gate: Gate) -> None:
    gate.daraja.handle = "ws_CO_same"
    await gate.create_payment("a")
    second = await gate.create_payment("b")
    assert (second["status"], second["provider_ref"]) == ("pending", None)
    assert [step["kind"] for step in (await gate.get_payment(second))["timeline"]] == ["requested", "unknown"]
    # The callback's address identifies the payment, also without a CheckoutRequestID.
    await gate.call_back(second, paid_callback(None))
    assert (await gate.get_payment(second))["status"] == "completed"
    again = await gate.api.pay(PHONE, 500, key="b")
    assert (again.status, gate.daraja.pushed) == (200, 2)


async def test_callback_before_the_ack_is_applied_with_it(
    values: dict[str, Any],
) -> None:
    values["callbacks"] = {"allowlist": ["127.0.0.0/8"]}
    async with open_gate(values) as gate:
        # At an address without a token only Daraja's id identifies the payment.
        path = "/v1/webhooks/mpesa"
        pushing = asyncio.create_task(gate.api.pay(PHONE, 500, key="a", callback_url=gate.gateway.url(path)))
        await gate.daraja.pushing.wait()
        answer = await gate.api.call("POST", path, paid_callback("ws_CO_1"))
        assert answer.status == 200
        gate.daraja.push.set()
        payment = (await pushing).data
        assert payment["status"] == "completed"
        assert [step["kind"] for step in (await gate.get_payment(payment))["timeline"]] == [
            "requested",
            "sent",
            "completed",
        ]


async def test_callback_to_confirm_before_the_ack_is_due_at_once(
    values: dict[str, Any],
) -> None:
    values["payments"] = {"confirm": "always"}
    async with open_gate(values) as gate:
        pushing = asyncio.create_task(gate.api.pay(PHONE, 500, key="a"))
        await gate.daraja.pushing.wait()
        row = await gate.gateway.db.fetchrow("SELECT payment_id AS id, merchant_id FROM payment")
        assert row is not None
        await gate.call_back(dict(row), paid_callback("ws_CO_1"))
        gate.daraja.push.set()
        assert (await pushing).data["status"] == "pending"
        assert await gate.gateway.db.fetchval("SELECT due_at <= updated_at FROM payment WHERE claim IS NOT NULL")


async def test_request_failing_in_a_batch_fails_no_other_merchants(values: dict[str, Any]) -> None:
    values["http"] = {"wait": 60}
    async with open_gate(values) as gate:
        gate.daraja.push.set()
        async with shop(gate.gateway, gate.base) as failing:
            merchant_id = (await failing.call("GET", "/v1/merchant/me")).data["id"]
            # Only a bug could store this.
            await gate.gateway.db.execute("ALTER TABLE shortcode DROP CONSTRAINT shortcode_account_reference_check")
            await gate.gateway.db.execute(
                "UPDATE shortcode SET account_reference = 'far too long for it' WHERE merchant_id = $1",
                merchant_id,
            )
            answers = await asyncio.gather(
                *((failing, gate.api)[number % 2].pay(PHONE, 500, key=f"k{number}") for number in range(40))
            )
        assert [answer.error for answer in answers[1::2] if answer.status != 201] == []
        assert {answer.status for answer in answers[::2]} == {500}


async def test_create_without_its_lock_fails_alone(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of the batch are already committed: an error for them would leave their payments without a push."""
    insert = CreateSteps._insert_rows  # pyright: ignore[reportPrivateUsage] - replaced to raise Postgres' errors

    async def insert_rows(steps: CreateSteps, wanted: Sequence[NewPayment]) -> list[Any]:
        if len(wanted) > 1:
            raise asyncpg.DeadlockDetectedError("two batches")
        if wanted[0].reference == "slow":
            raise asyncpg.QueryCanceledError("statement timeout")
        return await insert(steps, wanted)

    monkeypatch.setattr(CreateSteps, "_insert_rows", insert_rows)
    gate.daraja.push.set()
    references = ["slow" if number == 5 else f"order {number}" for number in range(12)]
    answers = await asyncio.gather(*(gate.api.pay(PHONE, 500, key=f"k {one}", reference=one) for one in references))
    assert [one for one, answer in zip(references, answers, strict=True) if answer.status != 201] == ["slow"]


# -- repeated callbacks ---------------------------------------------------------------------------------------------


async def test_callback_known_to_valkey_and_lost_by_postgres_counts_again(gate: Gate) -> None:
    payment = await gate.create_payment()
    await gate.call_back(payment, paid_callback("ws_CO_1"))
    # As after a failover to a replica without the last transaction.
    await execute_without_triggers(gate.gateway, "DELETE FROM callback", UNPAID)
    await gate.call_back(payment, paid_callback("ws_CO_1"))
    assert (await gate.get_payment(payment))["status"] == "completed"


async def test_callback_with_a_token_is_applied_after_a_copy_without_one(values: dict[str, Any]) -> None:
    values["callbacks"] = {"enforce_allowlist": "never"}
    async with open_gate(values, Daraja(handle="ws_CO_same")) as gate:
        payment = await gate.create_payment()
        await gate.gateway.db.execute(UNACKNOWLEDGED)
        await gate.call_back(payment, paid_callback("ws_CO_same"), "/v1/webhooks/mpesa")
        assert (await gate.get_payment(payment))["status"] == "pending"
        await gate.call_back(payment, paid_callback("ws_CO_same"))
        assert (await gate.get_payment(payment))["status"] == "completed"


async def test_callback_event_exists_once_if_applied_and_never_if_refused(gate: Gate) -> None:
    @gate.gateway.on(StkResulted)
    async def receive(_: StkResulted) -> None:
        raise AssertionError

    payment = await gate.create_payment()
    await gate.call_back(payment, paid_callback("ws_CO_1", PhoneNumber=254722000002))
    refused = await gate.api.call("POST", gate.address(payment), result("ws_CO_another", 1032))
    assert refused.status == 403
    assert receive.__name__ == "receive"
    assert await gate.events() == ["callback.stk_resulted", "payment.completed", "payment.mismatched"]


async def test_sweep_with_an_unreadable_callback_applies_the_others(gate: Gate) -> None:
    payment = await gate.create_payment()
    await gate.gateway.db.execute(UNACKNOWLEDGED)
    dispatcher, db = gate.gateway.services.get(CallbackDispatcher), gate.gateway.db
    await gate.call_back(payment, paid_callback("ws_CO_1"))
    await execute_without_triggers(gate.gateway, UNPAID, UNACKNOWLEDGED)
    await db.execute("UPDATE callback SET verdict = 'waiting', applied_at = NULL, due_at = now() - interval '1 second'")
    await db.execute(
        "INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, subject_id, handle, result_code, "
        "stored_body, due_at) VALUES ($2, 'stk', $1, now(), '127.0.0.1', NULL, 'x', '0', '{', "
        "now() - interval '2 seconds')",
        bytes(16),
        identifier("cbk"),
    )
    assert await dispatcher.sweep() == 2
    assert (await gate.get_payment(payment))["status"] == "completed"
    rows = await db.fetch("SELECT verdict FROM callback ORDER BY callback_id = $1", identifier("cbk"))
    assert [row["verdict"] for row in rows] == ["applied", "waiting"]


# -- changed credentials --------------------------------------------------------------------------------------------


async def test_query_of_a_retired_shortcode_uses_its_own_credentials(gate: Gate) -> None:
    payment = await gate.create_payment()
    other = SANDBOX | {"mpesa": SANDBOX["mpesa"] | {"shortcode": "600999"}}
    stored = await gate.api.call("PUT", "/v1/merchant/providers", other)
    assert stored.status == 200
    gate.daraja.query.set()
    assert await gate.queries.query_payment(payment["id"], is_forced=True)
    (question,) = gate.script.of("/mpesa/stkpushquery/v1/query")
    assert json.loads(question.body)["BusinessShortCode"] == SANDBOX["mpesa"]["shortcode"]
