"""Protects retention and erasure: the record of money stays, other rows expire, a payer's number can be erased."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest

from mpesa_gateway.clock import SetClock
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.erasure import ErasedNumber, ErasureCase
from mpesa_gateway.errors import InvalidFields, NotFound
from mpesa_gateway.ids import uuid_of
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.plugin import Eraser, Plugin
from mpesa_gateway.privacy import ErasureReport, Privacy
from mpesa_gateway.retention import Retention
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import INITIATED, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_transactions.api import ReportedTransaction, Transactions
from mpesa_gateway_webhooks import tables as webhook_tables
from tests.conftest import Harness
from tests.daraja import result, stk_callback
from tests.identifiers import identifier
from tests.ledger import broken_invariants
from tests.owner import as_owner

PAYER = Msisdn("254711000001")
OTHER = "254711000002"

MONEY = """
SELECT payment_id, merchant_id, amount, status, receipt, refunded, completed_at, created_at, updated_at, idempotency_key
FROM payment ORDER BY payment_id
"""
REFUNDS = "SELECT refund_id, payment_id, amount, status, receipt, reversal_receipt FROM refund ORDER BY refund_id"
TABLES = """
SELECT relname FROM pg_class
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'mpesa'::regnamespace
"""
LINES = "SELECT line_id, receipt, amount, finding, payment_id FROM statement ORDER BY line_id"


@pytest.fixture
def confirm() -> str:
    """Successes that are confirmed before they count."""
    return "never"


@pytest.fixture
async def harness(values: dict[str, Any], confirm: str) -> AsyncGenerator[Harness]:
    """A running gateway with the simulator and a clock set by the test."""
    values["simulator"] = {"callback_delay": 0}
    values["payments"] = {"confirm": confirm}
    async with (
        receiving() as receiver,
        running_gateway(values, clock=SetClock(datetime(2026, 11, 24, 8, 0, tzinfo=UTC))) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        assert (await api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
        yield Harness(gateway, base, api, receiver)


def advance_clock(harness: Harness, by: timedelta) -> None:
    """Advance the clock."""
    cast(SetClock, harness.gateway.clock).advance(by)


async def completed_payment(api: Api, phone: str, key: str, **more: Any) -> dict[str, Any]:
    """Return a completed payment."""
    return await api.settled((await api.pay(phone, 500, key=key, **more)).data["id"], "completed")


async def wait_for_deliveries(harness: Harness) -> None:
    """Wait until all webhooks are delivered."""

    async def are_delivered() -> bool:
        return not await harness.gateway.db.fetchval("SELECT EXISTS (SELECT 1 FROM delivery WHERE status = 'pending')")

    await eventually(are_delivered)


async def erase(harness: Harness, **options: Any) -> ErasureReport:
    """Run the erasure as the command does."""
    return await Privacy(harness.gateway).erase(PAYER, actor="test", **options)


async def rows_with_number(harness: Harness, *, but: str = "") -> list[str]:
    """Return the rows that contain the number, or Daraja's masked form of it."""
    db, found = harness.gateway.db, list[str]()
    others = str(UUID(bytes=uuid_of(but)))
    tables = await db.fetch(TABLES)
    for name in (row["relname"] for row in tables if not row["relname"].startswith("sim_")):
        rows = await db.fetch(f"SELECT t::text AS row FROM {name} t WHERE t::text ~ $1", f"{PAYER[3:]}|JANE")  # noqa: S608
        found += [f"{name}: {row['row']}" for row in rows if not but or others not in row["row"]]
    return found


async def payment_with_every_row(harness: Harness) -> dict[str, Any]:
    """Return a payment with queries, a statement line and a partial refund, and the number in every free field."""
    payment = await completed_payment(
        harness.api,
        PAYER,
        "order 1",
        reference="0711000001",
        description="711000001",
        metadata={"phone": "+254711000001", "note": "Call 0711000001 after five", "other": OTHER},
    )
    query = (await harness.api.call("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")).data
    body = {"payment_id": payment["id"], "amount": 100, "reason": "Back to 0711000001"}
    refund = (await harness.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": "back"})).data
    assert (await harness.api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["already_known"] == 1

    async def is_done() -> bool:
        check = (await harness.api.call("GET", f"/v1/payments/mpesa/checks/{query['check_id']}")).data
        found = (await harness.api.call("GET", f"/v1/refunds/{refund['id']}")).data
        return (check["state"], found["status"]) == ("answered", "completed")

    await eventually(is_done)
    await wait_for_deliveries(harness)
    # The merchant's answer to the webhook.
    await harness.gateway.db.execute("UPDATE delivery SET answer = 'thanks, 254711000001' WHERE ms IS NOT NULL")
    found: dict[str, Any] = (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data
    return found


async def set_checkout_id(harness: Harness, payment: dict[str, Any]) -> str:
    """Set a checkout id that ends in the payer's number, as Daraja's do, and a callback address with it."""
    name, db = f"ws_CO_24112026110000123{PAYER[3:]}", harness.gateway.db
    for change in (
        "UPDATE payment SET callback_url = 'https://duka.example/' || right($2, 9) WHERE checkout_request_id = $1",
        "UPDATE payment SET checkout_request_id = $2 WHERE checkout_request_id = $1",
        "UPDATE callback SET handle = replace(handle, $1, $2), stored_body = replace(stored_body, $1, $2)",
        "UPDATE event SET stored_body = replace(stored_body, $1, $2)",
    ):
        await db.execute(change, payment["provider_ref"], name)
    return name


async def receive_unmatched(harness: Harness, days: int) -> None:
    """Store an unmatched callback of this many days ago that names the payer."""
    at = harness.gateway.clock.now() - timedelta(days=days)
    await harness.gateway.db.execute(
        "INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, subject_id, handle, result_code, "
        "stored_body, verdict) VALUES ($1, 'stk', substr(sha256(uuid_send($1)), 1, 16), $2, '127.0.0.1', NULL, "
        "'ws_CO_0', '0', $3, 'unmatched')",
        identifier("cbk", days, at=at),
        at,
        f'{{"PhoneNumber": {PAYER}, "Amount": 1.00}}',
    )


async def failed_payment(harness: Harness, key: str) -> dict[str, Any]:
    """Return a payment failed by a result "no answer" while its prompt is still open."""
    await harness.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 86_400})
    payment = (await harness.api.pay(PAYER, 500, key=key)).data
    await harness.gateway.db.execute("UPDATE sim_push SET ends_at = '2030-01-01' WHERE state = 'open'")
    body = stk_callback(payment["provider_ref"], 1037)
    assert (await harness.api.call("POST", await address(harness, payment), body)).status == 200
    await harness.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 0})
    return await harness.api.settled(payment["id"], "failed")


async def address(harness: Harness, payment: dict[str, Any]) -> str:
    """Return the address that Daraja posts a payment's callback to."""
    callbacks = harness.gateway.services.get(Callbacks)
    url = callbacks.url_for("stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"])
    return url.removeprefix(harness.base)


async def post_rejected_callbacks(harness: Harness, payment: dict[str, Any]) -> None:
    """Post two rejected callbacks: one to an unknown address, one to a payment's own without a usable body."""
    address: str = await harness.gateway.db.fetchval(
        "SELECT callback_url FROM sim_push WHERE checkout_request_id = $1", payment["provider_ref"]
    )
    body = {"Body": {"PhoneNumber": int(PAYER)}}
    assert (await harness.api.call("POST", "/v1/cb/stk/nobody", body)).status == 404
    assert (await harness.api.call("POST", address.removeprefix(harness.base), body)).status == 422


async def count_rows(harness: Harness) -> dict[str, int]:
    """Return the number of rows in each table."""
    tables = await harness.gateway.db.fetch(TABLES)
    return {
        row["relname"]: await harness.gateway.db.fetchval(f"SELECT count(*) FROM {row['relname']}")  # noqa: S608
        for row in tables
        if not row["relname"].startswith("sim_")
    }


async def test_retention_after_ten_years_keeps_only_the_record_of_money(harness: Harness) -> None:
    db = harness.gateway.db
    payment = await payment_with_every_row(harness)
    # A second attempt is stored in a row of its own, and so is the first one then.
    delivery_id = await db.fetchval("SELECT delivery_id FROM delivery ORDER BY delivery_id LIMIT 1")
    assert (await harness.api.call("POST", f"/v1/webhooks/logs/{delivery_id}/replay")).data["status"] == "pending"
    await wait_for_deliveries(harness)
    await post_rejected_callbacks(harness, payment)
    await harness.api.call("PATCH", "/simulator/control/habits", {"pullquery": "partial_msisdn"})
    await harness.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 600})
    for phone in ("254711000018", "254711999018"):
        await harness.api.pay(phone, 60, key=phone, reference="table 4")
    money = {"phone": "254711000018", "amount": 60, "shortcode": "174379", "reference": "table 4"}
    await harness.api.call("POST", "/simulator/control/ledger", money)
    # Unmatched money: its note is deleted, the transaction stays.
    await harness.api.call("POST", "/simulator/control/ledger", money | {"amount": 61, "reference": "table 5"})
    await harness.api.call("PATCH", "/simulator/control/habits", {"transactionstatus": "never"})
    assert (await harness.api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["ambiguous"] == 1
    # A webhook that is delivered later would store its answer again.
    await eventually(lambda: db.fetchval("SELECT NOT EXISTS (SELECT 1 FROM delivery WHERE status = 'pending')"))
    before = await count_rows(harness)
    assert min(before[name] for name in GOES) > 0

    # The two unanswered prompts stay pending.
    await db.execute("UPDATE sim_push SET ends_at = '2050-01-01' WHERE state = 'open'")
    await db.execute("UPDATE payment SET due_at = '2050-01-01', expires_at = '2050-01-01' WHERE status = 'pending'")
    assert not any((await Retention(harness.gateway).delete_expired()).values())
    now = await count_rows(harness)
    assert [name for name in before if now[name] < before[name]] == []
    advance_clock(harness, timedelta(days=3653))
    async with as_owner(harness.gateway) as owner:
        # The audit log expires by Postgres' clock, which the test does not move.
        await owner.execute("SET session_replication_role = replica")
        await owner.execute("UPDATE audit_entry SET recorded_at = recorded_at - interval '3653 days'")
    await Retention(harness.gateway).delete_expired()
    after = await count_rows(harness)
    assert set(await broken_invariants(harness.gateway)) <= {"payments.nothing_overdue"}
    assert {name for name in before if after[name] < before[name]} == GOES
    assert await db.fetchval("SELECT count(answer) FROM delivery") == 0
    assert {name: after[name] for name in GOES} == dict.fromkeys(GOES, 0) | {"statement_note": 1, "audit_entry": 1}
    assert await harness.gateway.audit.verify() == 1
    assert await db.fetchval("SELECT finding FROM statement_note") == "ambiguous"

    # The keys are deleted, and a repeated request still makes no second payment.
    again = await harness.api.pay(
        PAYER,
        500,
        key="order 1",
        reference="0711000001",
        description="711000001",
        metadata={"phone": "+254711000001", "note": "Call 0711000001 after five", "other": OTHER},
    )
    assert (again.status, again.data["id"], again.headers["Idempotent-Replayed"]) == (200, payment["id"], "true")
    other = await harness.api.pay(OTHER, 500, key="order 1")
    assert (other.status, other.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    body = {"payment_id": payment["id"], "amount": 100, "reason": "Back to 0711000001"}
    headers = {"Idempotency-Key": "back"}
    refund = await harness.api.call("POST", "/v1/refunds", body, headers=headers)
    assert (refund.status, refund.headers["Idempotent-Replayed"]) == (200, "true")
    refused = await harness.api.call("POST", "/v1/refunds", body | {"amount": 50}, headers=headers)
    assert (refused.status, refused.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    now = await count_rows(harness)
    assert (now["payment"], now["refund"], now["idempotency_key"]) == (after["payment"], after["refund"], 0)


GOES = {
    "callback",
    "refused_callback",
    "attempt",
    "idempotency_key",
    "status_check",
    "reconciliation_run",
    "reconciliation_line",
    "statement_note",
    "audit_entry",
}


async def test_erasure_removes_the_number_everywhere_and_keeps_the_money(harness: Harness) -> None:
    db = harness.gateway.db
    payment = await payment_with_every_row(harness)
    await completed_payment(harness.api, PAYER, "order 2", metadata={"a": "b"})
    await completed_payment(harness.api, OTHER, "order 3")
    money = {"phone": PAYER, "amount": 60, "shortcode": "174379", "reference": "0711000001"}
    await harness.api.call("POST", "/simulator/control/ledger", money)
    assert (await harness.api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["not_found"] == 1
    await wait_for_deliveries(harness)
    await post_rejected_callbacks(harness, payment)
    await set_checkout_id(harness, payment)
    advance_clock(harness, timedelta(hours=60))
    await receive_unmatched(harness, 8)
    await receive_unmatched(harness, 9)
    before = [await db.fetch(sql) for sql in (MONEY, REFUNDS, LINES)]
    tables = {line.partition(":")[0] for line in await rows_with_number(harness)}
    assert tables == {
        "payment",
        "callback",
        "refused_callback",
        "event",
        "refund",
        "transaction",
        "delivery",
    }

    rehearsed = await erase(harness, is_rehearsal=True)
    assert (await harness.gateway.audit.page(10, None, "privacy.erasing", None)).rows == []
    assert {line.partition(":")[0] for line in await rows_with_number(harness)} == tables
    done = await erase(harness)
    assert (done.erased, done.cases, done.left) == (rehearsed.erased, 6, [])
    assert done.erased == {
        "payments": 2,
        "callbacks": 6,
        "refused callbacks": 2,
        "events": 3,
        "refunds": 1,
        "transactions": 3,
        "attempts at delivery": 2,
    }
    assert await rows_with_number(harness) == []
    assert [await db.fetch(sql) for sql in (MONEY, REFUNDS, LINES)] == before

    shown = (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (shown["phone"], shown["reference"], shown["description"]) == ("erased", "erased", "erased")
    assert shown["provider_ref"] == f"ws_CO_24112026110000123erased{payment['id'][-8:]}"
    told_of = {callback["handle"] for callback in await db.fetch("SELECT handle FROM callback WHERE kind = 'stk'")}
    assert shown["provider_ref"] in told_of
    assert shown["metadata"] == {"phone": "erased", "note": "Call erased after five", "other": OTHER}
    assert (shown["amount"], shown["receipt"]) == ("500.00", payment["receipt"])
    events = (await harness.api.call("GET", "/v1/events")).data
    assert {event["data"]["phone"] for event in events if "phone" in event["data"]} == {"erased", OTHER}
    for_all, for_merchant = (await harness.gateway.audit.page(10, None, "privacy.erased", None)).rows
    assert (for_all.detail["payments"], for_all.detail["left"], for_all.actor) == (2, 0, "test")
    assert (for_merchant.merchant_id, for_merchant.detail) == (payment["merchant_id"], for_all.detail)
    (intent,) = (await harness.gateway.audit.page(10, None, "privacy.erasing", None)).rows
    assert intent.number < for_merchant.number < for_all.number
    assert await broken_invariants(harness.gateway) == {}
    # A second run has nothing to delete.
    assert (await erase(harness)).cases == 0


async def test_erasure_skips_and_names_pending_and_recent_rows(harness: Harness) -> None:
    db = harness.gateway.db
    settled = await completed_payment(harness.api, PAYER, "settled")
    refunding = await completed_payment(harness.api, PAYER, "refunding")
    undelivered = await completed_payment(harness.api, PAYER, "owed")
    await harness.api.call("PATCH", "/simulator/control/habits", {"reversal": "never"})
    refund = (await harness.api.call("POST", "/v1/refunds", {"payment_id": refunding["id"]})).data
    await wait_for_deliveries(harness)
    await harness.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 86_400})
    pending = (await harness.api.pay(PAYER, key="pending")).data
    await db.execute("UPDATE sim_push SET ends_at = '2030-01-01' WHERE state = 'open'")
    await db.execute("UPDATE payment SET due_at = due_at + interval '10 days' WHERE status = 'pending'")
    await db.execute("UPDATE refund SET due_at = due_at + interval '10 days'")
    await db.execute(
        "UPDATE delivery SET status = 'pending', delivered_at = NULL, due_at = '2030-01-01' WHERE payment_id = $1",
        undelivered["id"],
    )
    advance_clock(harness, timedelta(hours=60))
    await harness.api.call("PATCH", "/simulator/control/knobs", {"callback_delay": 0})
    recent = await completed_payment(harness.api, PAYER, "recent")

    done = await erase(harness)
    why = {left.subject_id: left.why for left in done.left}
    assert done.cases == 1
    assert set(why) == {refunding["id"], undelivered["id"], pending["id"], recent["id"]}
    assert why[pending["id"]] == "the payment is pending"
    assert why[refunding["id"]] == "a refund is under way"
    assert "has not been delivered yet" in why[undelivered["id"]]
    assert "too recent" in why[recent["id"]]
    rows = await db.fetch("SELECT payment_id, phone FROM payment")
    assert {row["payment_id"] for row in rows if row["phone"] == "erased"} == {settled["id"]}
    # Pending work ends as without the erasure.
    assert refund["status"] == "pending"
    with pytest.raises(InvalidFields, match="at least 48 hours ago"):
        await erase(harness, before=harness.gateway.clock.now())


def loose_money(merchant_id: str, receipt: str) -> ReportedTransaction:
    """Return a report of the payer's money without a payment."""
    return ReportedTransaction(
        source="status",
        env="sandbox",
        number="174379",
        merchant_id=merchant_id,
        direction="in",
        receipt=receipt,
        occurred_at=datetime(2026, 11, 24, 8, 0, tzinfo=UTC),
        amount_cents=6000,
        payer=PAYER,
    )


async def record(harness: Harness, report: ReportedTransaction) -> None:
    """Record a report of money."""
    async with harness.gateway.db.transaction():
        assert None not in await harness.gateway.port(Transactions).record([report])


async def test_report_after_the_erasure_does_not_restore_the_number(harness: Harness) -> None:
    payment = await completed_payment(harness.api, PAYER, "order")
    loose = loose_money(payment["merchant_id"], "TKN0000001")
    await record(harness, loose)
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(hours=60))
    assert (await erase(harness)).erased["transactions"] == 2
    for report in (loose, replace(loose, receipt=payment["receipt"], amount_cents=50_000)):
        await record(harness, replace(report, source="pull"))
    assert await rows_with_number(harness) == []
    payers = await harness.gateway.db.fetch("SELECT payer FROM transaction")
    assert [row["payer"] for row in payers] == ["erased", "erased"]
    assert (await erase(harness)).cases == 0


async def answer_about(harness: Harness, line_id: str, receipt: str) -> None:
    """Post M-Pesa's answer to a status query about a statement line, which shows the payer's whole number."""
    merchant_id = await harness.gateway.db.fetchval("SELECT merchant_id FROM webhook_endpoint")
    url = harness.gateway.services.get(Callbacks).url_for(
        "status", env="sandbox", merchant_id=merchant_id, subject_id=line_id
    )
    says = {
        "ReceiptNo": receipt,
        "TransactionStatus": "Completed",
        "DebitPartyName": f"{PAYER} - JANE DOE",
        "CreditPartyName": "174379 - SHOP",
    }
    answer = await harness.api.call("POST", url.removeprefix(harness.base), result(0, says=says))
    assert answer.status == 200, answer.body


NOTE = """
INSERT INTO statement_note (transaction_id, receiver_id, merchant_id, env, moments, amount, amount_text, payer, finding,
    is_timed, is_of_till, created_at, asked_at, dismissed_at, dismissed_by, dismissal_reason)
SELECT transaction_id, receiver_id, merchant_id, env, ARRAY[occurred_at], 60, '60', $1, 'ambiguous', true, false,
    occurred_at, occurred_at, occurred_at, 'a person', 'known' FROM transaction
"""


@pytest.mark.parametrize(
    ("on_statement", "answered"),
    [(PAYER, None), (PAYER, PAYER), (None, PAYER), (sha256(PAYER.encode()).hexdigest(), None)],
    ids=["shown on the statement", "shown by both", "shown by an answer", "shown as a digest"],
)
async def test_answer_about_a_line_after_the_erasure_does_not_restore_the_number(
    harness: Harness, on_statement: str | None, answered: str | None
) -> None:
    """The line was dismissed while a status query about it was open."""
    merchant_id = await harness.gateway.db.fetchval("SELECT merchant_id FROM webhook_endpoint")
    await record(harness, replace(loose_money(merchant_id, "TKN0000001"), payer=on_statement))
    await harness.gateway.db.execute(NOTE, answered)
    advance_clock(harness, timedelta(hours=60))
    assert (await erase(harness)).cases == 1
    line_id = await harness.gateway.db.fetchval("SELECT transaction_id FROM transaction")
    await answer_about(harness, line_id, "TKN0000001")
    assert {row.partition(":")[0] for row in await rows_with_number(harness)} == {"callback"}
    row = await harness.gateway.db.fetchrow(
        "SELECT note.payer AS noted, transaction.payer, answered_at FROM transaction JOIN statement_note AS note "
        "USING (transaction_id)"
    )
    assert row is not None
    assert "erased" in {row["noted"], row["payer"]}
    assert row["answered_at"] is not None


@pytest.mark.parametrize("shown", [PAYER, None], ids=["payer shown", "payer hidden"])
async def test_status_answer_about_an_erased_payment_does_not_restore_the_number(
    harness: Harness, shown: str | None
) -> None:
    payment = await completed_payment(harness.api, PAYER, "order")
    await harness.gateway.db.execute("UPDATE transaction SET payer = $1", shown)
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(hours=60))
    assert (await erase(harness)).cases == 1
    late = replace(loose_money(payment["merchant_id"], payment["receipt"]), amount_cents=50_000)
    await record(harness, replace(late, payer_name="JANE DOE", account_number=PAYER))
    assert await rows_with_number(harness) == []


FORMS = ("254711000001", "+254711000001", "0711000001", "711000001", "0711 000 001", "254-711-000-001")


async def queried_by_receipt(harness: Harness, payment: dict[str, Any], receipt: str, text: str) -> None:
    """Send a status query by receipt and post M-Pesa's answer with this text."""
    started = await harness.api.call("POST", f"/v1/payments/mpesa/check-status/{receipt}")
    url = harness.gateway.services.get(Callbacks).url_for(
        "status", env="sandbox", merchant_id=payment["merchant_id"], subject_id=started.data["check_id"]
    )
    body = result(0, says={"ReceiptNo": receipt, "TransactionStatus": f"Completed by {text}"})
    body["Result"]["ResultDesc"] = f"Paid by {text}"
    assert (await harness.api.call("POST", url.removeprefix(harness.base), body)).status == 200


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("is_late", [False, True], ids=["before the payment", "after the erasure"])
async def test_status_query_by_receipt_keeps_no_number_of_an_erased_payer(
    harness: Harness, text: str, is_late: bool
) -> None:
    """The query by receipt was sent before a payment had the receipt, or its answer comes after the erasure."""
    payment = await completed_payment(harness.api, PAYER, "order")
    await wait_for_deliveries(harness)
    if not is_late:
        await queried_by_receipt(harness, payment, payment["receipt"], text)
        # A host may state the reference that it expects. Callbacks are deleted earlier than queries.
        await harness.gateway.db.execute("UPDATE status_check SET payment_id = NULL, reference = '0711000001'")
        await harness.gateway.db.execute("UPDATE callback SET form_id = NULL, stored_body = '{}'")
    advance_clock(harness, timedelta(hours=60))
    assert (await erase(harness)).left == []
    if is_late:
        await queried_by_receipt(harness, payment, payment["receipt"], text)
    assert {one for one in await rows_with_number(harness) if not one.startswith("callback:")} == set()


async def test_late_mismatch_of_an_erased_payment_does_not_restore_the_number(harness: Harness) -> None:
    payment = await completed_payment(harness.api, PAYER, "order")
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(hours=60))
    assert (await erase(harness)).cases == 1
    body = stk_callback(payment["provider_ref"], amount=7, receipt="TKN0000009", phone=int(PAYER))
    body["Body"]["stkCallback"]["ResultDesc"] = f"Paid by {PAYER}"
    assert (await harness.api.call("POST", await address(harness, payment), body)).status == 200
    row = await harness.gateway.db.fetchrow("SELECT mismatch, received_phone FROM payment")
    assert row is not None
    assert (row["mismatch"], row["received_phone"]) == ("amount", "erased")
    assert {one.partition(":")[0] for one in await rows_with_number(harness)} == {"callback"}


async def test_erasure_keeps_money_recorded_in_the_last_48_hours(harness: Harness) -> None:
    merchant_id = await harness.gateway.db.fetchval("SELECT merchant_id FROM webhook_endpoint")
    await record(harness, loose_money(merchant_id, "TKN0000001"))
    advance_clock(harness, timedelta(hours=60))
    await record(harness, loose_money(merchant_id, "TKN0000002"))
    done = await erase(harness)
    assert (done.erased["transactions"], [left.why for left in done.left]) == (
        1,
        [f"{done.left[0].subject_id} is too recent"],
    )
    rows = await harness.gateway.db.fetch("SELECT receipt FROM transaction WHERE payer = $1", PAYER)
    assert [row["receipt"] for row in rows] == ["TKN0000002"]


async def test_erasure_with_a_replay_between_its_reads_leaves_no_answer(
    harness: Harness, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = harness.gateway.db
    payment = await payment_with_every_row(harness)
    advance_clock(harness, timedelta(hours=60))
    delivery_id = await db.fetchval("SELECT delivery_id FROM delivery WHERE answer IS NOT NULL LIMIT 1")
    schema = {"search_path": harness.gateway.config.database.schema, "lock_timeout": "100ms"}
    other: asyncpg.Connection[Any] = await asyncpg.connect(database_url, server_settings=schema)
    await read_ids(other)
    fetch, waited = db.fetch, list[bool]()

    async def fetch_then_replay(sql: str, *values: Any) -> Any:
        rows = await fetch(sql, *values)
        if sql == webhook_tables.ATTEMPTS_OF_CASE:
            try:
                now = harness.gateway.clock.now()
                await other.fetch(webhook_tables.REPLAY_ONE, payment["merchant_id"], "sandbox", now, delivery_id)
            except asyncpg.LockNotAvailableError:
                waited.append(True)
        return rows

    monkeypatch.setattr(db, "fetch", fetch_then_replay)
    await erase(harness)
    monkeypatch.undo()
    await other.close()
    answers = await db.fetch("SELECT answer FROM attempt UNION ALL SELECT answer FROM delivery")
    assert [row["answer"] for row in answers if row["answer"] and PAYER in row["answer"]] == []
    assert waited == [True]


async def test_erasure_skips_locked_rows(harness: Harness, database_url: str) -> None:
    busy, free = (
        await completed_payment(harness.api, PAYER, "busy"),
        await completed_payment(harness.api, PAYER, "free"),
    )
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(hours=60))
    schema = {"search_path": harness.gateway.config.database.schema}
    other: asyncpg.Connection[Any] = await asyncpg.connect(database_url, server_settings=schema)
    await read_ids(other)
    async with other.transaction():
        await other.execute("SELECT FROM callback WHERE subject_id = $1 FOR UPDATE", busy["id"])
        done = await erase(harness)
        assert (done.cases, done.erased["payments"]) == (1, 1)
        assert {left.why for left in done.left} == {"another session is changing it"}
        assert busy["id"] in {left.subject_id for left in done.left}
        phones = await other.fetch("SELECT payment_id FROM payment WHERE phone = 'erased'")
        assert [row["payment_id"] for row in phones] == [free["id"]]
    await other.close()
    assert ((await erase(harness)).cases, await rows_with_number(harness)) == (1, [])


async def test_erasure_in_a_lock_cycle_yields_before_the_deadlock_timeout(
    values: dict[str, Any],
) -> None:
    async def find(_: Runtime, __: str, ___: ErasedNumber, after: str) -> list[str]:
        return [] if after else ["own_1"]

    async def yields(gateway: Runtime, _: ErasureCase) -> str:
        sql = "SELECT setting::integer FROM pg_settings WHERE name = $1"
        ours, postgres = [await gateway.db.fetchval(sql, name) for name in ("lock_timeout", "deadlock_timeout")]
        return f"gives way: {0 < ours < postgres}"

    async def erases(_: Runtime, __: ErasureCase) -> dict[str, int]:
        return {}

    own = Plugin(name="own", summary="A host's own.", erasers=(Eraser(erase=erases, find=find, objects=yields),))
    async with running_gateway(values, plugins=(own,)) as (gateway, _):
        await gateway.merchants.create("Duka", actor="test")
        done = await Privacy(gateway).erase(PAYER, actor="test")
    assert [(left.subject_id, left.why) for left in done.left] == [("own_1", "gives way: True")]


async def test_erasure_keeps_a_recent_unmatched_callback(harness: Harness) -> None:
    await receive_unmatched(harness, 1)
    await receive_unmatched(harness, 3)
    done = await erase(harness)
    assert (done.erased["callbacks"], len(done.left)) == (1, 1)
    assert "is too recent" in done.left[0].why
    assert len(await rows_with_number(harness)) == 1


@pytest.mark.parametrize("confirm", ["never", "always"])
async def test_late_money_for_an_erased_payment_counts(harness: Harness) -> None:
    payment = await failed_payment(harness, "late")
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(hours=60))
    assert ((await erase(harness)).cases, await rows_with_number(harness)) == (1, [])
    assert (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data["phone"] == "erased"
    prompt = payment["provider_ref"]
    assert (
        await harness.api.call("POST", f"/simulator/control/pushes/{prompt}/answer", {"answer": "pay"})
    ).status == 200
    shown = await harness.api.settled(payment["id"], "completed")
    assert (shown["phone"], shown["mismatch"]) == ("erased", None)
    await wait_for_deliveries(harness)
    assert await broken_invariants(harness.gateway) == {}
    # The callback has stored the number again, also in Daraja's checkout id: it is erased once it is old enough.
    assert (await erase(harness)).cases == 0
    assert {row.partition(":")[0] for row in await rows_with_number(harness)} == {
        "callback",
        "event",
        "payment",
    }
    advance_clock(harness, timedelta(hours=60))
    assert ((await erase(harness)).cases, await rows_with_number(harness)) == (1, [])


async def test_late_success_is_matched_by_the_hashed_checkout_id(harness: Harness) -> None:
    payment = await failed_payment(harness, "late")
    name = await set_checkout_id(harness, payment)
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(hours=60))
    assert ((await erase(harness)).cases, await rows_with_number(harness)) == (1, [])
    path = await address(harness, payment)
    for other in (f"ws_CO_24112026110000124{PAYER[3:]}", name + "x", "ws_CO_24112026110000123"):
        # Money reported at the payment's own address is never rejected: it needs review.
        assert (await harness.api.call("POST", path, stk_callback(other))).status == 200, other
        assert (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data["status"] == "failed", other
    assert (await harness.api.call("POST", path, stk_callback(name, 1032))).status == 200
    shown = (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (shown["status"], shown["provider_ref"]) == ("failed", f"{name[:23]}erased{payment['id'][-8:]}")
    assert (await harness.api.call("POST", path, stk_callback(name))).status == 200
    shown = (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (shown["status"], shown["receipt"], shown["provider_ref"]) == ("completed", "TKN4A1B2C3", name)


async def test_erasure_is_limited_to_one_merchant_and_a_day(harness: Harness) -> None:
    mine = await completed_payment(harness.api, PAYER, "mine")
    async with shop(harness.gateway, harness.base) as api:
        theirs = await completed_payment(api, PAYER, "theirs")
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(days=10))
    early = harness.gateway.clock.now() - timedelta(days=11)
    assert (await erase(harness, before=early)).cases == 0
    assert (await erase(harness, merchant_id=mine["merchant_id"])).cases == 1
    assert await rows_with_number(harness, but=theirs["merchant_id"]) == []
    assert (await erase(harness)).cases == 1
    with pytest.raises(NotFound):
        await erase(harness, merchant_id="mer_nobody")


async def test_idempotency_key_survives_erasure_and_repeats_no_payment(harness: Harness) -> None:
    key = "order of 0711000001"
    payment = await completed_payment(harness.api, PAYER, key)
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(hours=60))
    (left,) = (await erase(harness)).left
    assert left.subject_id == payment["id"]
    assert "Idempotency-Key" in left.why
    again = await harness.api.pay(PAYER, 500, key=key)
    assert (again.status, again.data["id"], again.headers["Idempotent-Replayed"]) == (200, payment["id"], "true")
    other = await harness.api.pay(PAYER, 501, key=key)
    assert (other.status, other.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    assert len((await harness.api.call("GET", "/simulator/control/pushes")).data) == 1


async def test_late_callback_for_an_erased_payment_is_no_mismatch(harness: Harness) -> None:
    payment = await completed_payment(harness.api, PAYER, "order")
    await wait_for_deliveries(harness)
    advance_clock(harness, timedelta(hours=60))
    assert (await erase(harness)).cases == 1
    prompt = payment["provider_ref"]
    again = await harness.api.call("POST", f"/simulator/control/pushes/{prompt}/callback")
    assert again.data == {"status": 200}
    shown = (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (shown["phone"], shown["mismatch"], shown["receipt"]) == ("erased", None, payment["receipt"])


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("254711000001", "erased"),
        ("+254711000001", "erased"),
        ("254711000001 - JANE DOE", "erased"),
        ("2547****001 - JANE DOE", "erased"),
        ("2547****002 - JOHN DOE", "2547****002 - JOHN DOE"),
        ("paid by 0711000001, thanks", "paid by erased, thanks"),
        ("174379 - Shop", "174379 - Shop"),
        (sha256(b"254711000001").hexdigest(), "erased"),
        (sha256(b"254711000002").hexdigest(), sha256(b"254711000002").hexdigest()),
        ("1254711000001", "1254711000001"),
        ("7110000011", "7110000011"),
        ("000001", "000001"),
        ("order 42", "order 42"),
        ("ws_CO_24112026110000123711000001", "ws_CO_24112026110000123erased-1"),
        ("ws_CO_24112026110000123711000002", "ws_CO_24112026110000123711000002"),
        ("about ws_CO_24112026110000123711000001.", "about ws_CO_24112026110000123erased-1."),
    ],
)
def test_number_is_found_in_every_form_and_only_the_number(text: str, cleaned: str) -> None:
    assert ErasedNumber(PAYER, "-1").without(text) == cleaned


def test_json_with_the_number_removed_is_otherwise_unchanged() -> None:
    body = '{"a":[{"Name":"Amount","Value":500.00},{"Name":"PhoneNumber","Value":254711000001}],"b":null,"c":"x"}'
    expected = '{"a":[{"Name":"Amount","Value":500.00},{"Name":"PhoneNumber","Value":"erased"}],"b":null,"c":"x"}'
    assert ErasedNumber(PAYER).without_in_json(body) == expected
    untouched = '{"a": 1.50,  "b": "254711000002"}'
    assert ErasedNumber(PAYER).without_in_json(untouched) == untouched
    assert ErasedNumber(PAYER).without_in_json("not JSON 0711000001") == "not JSON erased"
    names = '{"0711000001":1,"+254711000001":254711000001.0,"order":254711000002.0}'
    assert ErasedNumber(PAYER).without_in_json(names) == '{"erased":1,"erased_":"erased","order":254711000002.0}'
