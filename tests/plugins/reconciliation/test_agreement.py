"""Protects the comparison of statements with payments: "agrees" only where both show the same money."""

import json
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.db.engine import Database
from mpesa_gateway.ids import Ids
from mpesa_gateway.testing.serving import INITIATED, running_gateway, shop
from mpesa_gateway_reconciliation.agreement import MISSING_ON_STATEMENT, Agreement, read_agreements
from tests.conftest import Harness
from tests.daraja import Daraja
from tests.identifiers import expression, identifier, identifiers
from tests.plugins.payments.test_lists_at_size import FILL, steps
from tests.plugins.reconciliation.test_reconciliation import call_back, create_payment, row, run

RECEIPT, OTHER = "TKN4A1B2C3", "TKN0000002"

MANY = 5_000
"""So many that Postgres does not read them all for a few minutes of payments."""

TRANSACTIONS = f"""
INSERT INTO transaction (transaction_id, merchant_id, env, receiver_id, direction, receipt, amount_cents, occurred_at,
    first_source, subject_kind, subject_id)
SELECT {expression("txn", "completed_at", "row_number() OVER ()")}, payment.merchant_id, payment.env, receiver_id, 'in',
    receipt, amount * 100, completed_at, 'stk', 'payment', payment_id
FROM payment JOIN shortcode USING (shortcode_id) WHERE receipt IS NOT NULL
"""  # noqa: S608 - ids that the test chose


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only, and pages are requested again without a pause."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "reconciliation": {"pause": 0.01, "tries": 2, "page_pause": 0},
    }


@pytest.fixture
async def harness(harness: Harness) -> Harness:
    """The shop's credentials have an initiator and a nominated number."""
    assert (await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    return harness


async def compared(harness: Harness) -> Agreement:
    """Today's only comparison."""
    (merchant_id,) = await harness.gateway.db.fetch("SELECT merchant_id FROM merchant")
    now = harness.gateway.clock.now()
    ((found,),) = (await read_agreements(harness.gateway.db, [merchant_id["merchant_id"]], "sandbox", now)).values()
    return found


async def complete_without_a_receipt(harness: Harness, payment: Any, at: str = "now()") -> None:
    """Complete a payment as an answer to an STK query does."""
    await harness.gateway.db.execute(
        "UPDATE payment SET status = 'completed', completed_by = 'stk_query', due_at = NULL, "  # noqa: S608
        f"completed_at = {at} WHERE payment_id = $1",
        payment["id"],
    )


async def test_statement_with_the_amount_of_the_callback_agrees(harness: Harness, daraja: Daraja) -> None:
    await call_back(harness, await create_payment(harness), receipt=RECEIPT)
    await run(harness, daraja, row(RECEIPT))
    found = await compared(harness)
    assert (found.state, found.statement, found.gateway) == ("agrees", 500, 500)


async def test_statement_with_another_amount_than_the_callback_differs(harness: Harness, daraja: Daraja) -> None:
    await call_back(harness, await create_payment(harness), receipt=RECEIPT)
    await run(harness, daraja, row(RECEIPT, 300))
    found = await compared(harness)
    assert (found.state, found.statement, found.gateway) == ("differs", 300, 500)


async def test_unreadable_amount_of_a_paid_line_is_not_known(harness: Harness, daraja: Daraja) -> None:
    await call_back(harness, await create_payment(harness), receipt=RECEIPT)
    await run(harness, daraja, row(RECEIPT, "five hundred"))
    found = await compared(harness)
    assert (found.state, found.unreadable, found.statement, found.gateway) == ("not known", 1, 0, 500)


async def test_dismissed_line_counts_with_the_amount_of_the_statement(harness: Harness, daraja: Daraja) -> None:
    await run(harness, daraja, row(RECEIPT, 300))
    await harness.gateway.db.execute(
        "UPDATE statement_note SET amount = 200, dismissed_at = now(), dismissed_by = 'test', dismissal_reason = 'till'"
    )
    found = await compared(harness)
    assert (found.state, found.statement, found.dismissed_amount) == ("explained", 200, 200)


async def test_paid_payment_without_a_receipt_is_missing_on_the_statement(harness: Harness, daraja: Daraja) -> None:
    await call_back(harness, await create_payment(harness), receipt=RECEIPT)
    payment = await create_payment(harness, 700, key="b")
    before = await create_payment(harness, 900, key="c")
    await complete_without_a_receipt(harness, payment)
    await complete_without_a_receipt(harness, before, "now() - interval '2 days'")
    await run(harness, daraja, row(RECEIPT))
    found = await compared(harness)
    assert (found.state, found.missing, found.statement, found.gateway) == ("differs", 1, 500, 1200)


@pytest.mark.parametrize("kind", ["Organisation Settlement", None])
async def test_line_of_an_unknown_type_is_counted_and_not_added_up(harness: Harness, daraja: Daraja, kind: Any) -> None:
    await call_back(harness, await create_payment(harness), receipt=RECEIPT)
    await run(harness, daraja, row(RECEIPT), row(OTHER, 300, transactiontype=kind))
    found = await compared(harness)
    assert (found.state, found.unproven, found.unmatched) == ("not known", 1, 0)
    assert (found.statement, found.gateway) == (500, 500)
    # M-Pesa's answer to a status query shows the direction.
    for is_to_us, state, statement in ((True, "differs", 800), (False, "not known", 500)):
        await harness.gateway.db.execute("UPDATE statement_note SET answered_at = now(), is_to_us = $1", is_to_us)
        found = await compared(harness)
        assert (found.state, found.statement) == (state, statement)
    await harness.gateway.db.execute(
        "UPDATE statement_note SET dismissed_at = now(), dismissed_by = 'test', dismissal_reason = 'settlement'"
    )
    found = await compared(harness)
    assert (found.state, found.dismissed, found.dismissed_amount, found.unproven) == ("explained", 1, 0, 0)


async def test_line_of_an_unknown_type_with_the_receipt_of_a_payment_agrees(harness: Harness, daraja: Daraja) -> None:
    await call_back(harness, await create_payment(harness), receipt=RECEIPT)
    await run(harness, daraja, row(RECEIPT, transactiontype="Merchant Till Purchase"))
    assert (await compared(harness)).state == "agrees"


async def test_agreements_of_many_merchants_are_read_with_the_statements_of_one(
    harness: Harness, daraja: Daraja, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, now = harness.gateway.db, harness.gateway.clock.now()
    await call_back(harness, await create_payment(harness), receipt=RECEIPT)
    await run(harness, daraja, row(RECEIPT), row(OTHER, 300))
    (first,) = [row["merchant_id"] for row in await db.fetch("SELECT merchant_id FROM merchant")]
    others = identifiers("mer", range(5))
    for number, merchant_id in enumerate(others):
        await db.execute(
            "INSERT INTO merchant (merchant_id, name, created_at, updated_at) VALUES ($1, 'Other', $2, $2)",
            merchant_id,
            now,
        )
        # The same window of another merchant, whose statement has no lines.
        await db.execute(COPIED_RUN, merchant_id, identifier("run", number, at=now))
    sent: list[str] = []
    for name in ("fetch", "fetch_planned", "run"):
        read = getattr(Database, name)

        async def record(own: Database, query: Any, *args: Any, read: Any = read) -> Any:
            sent.append(str(query))
            return await read(own, query, *args)

        monkeypatch.setattr(Database, name, record)
    found = await read_agreements(db, [first, *others], "sandbox", now)
    assert len(sent) == 3
    ((own,), *rest) = found.values()
    assert (own.state, own.statement, own.gateway, own.unmatched) == ("differs", 800, 500, 1)
    assert [(each.merchant_id, each.statement, each.gateway, each.missing) for (each,) in rest] == [
        (merchant_id, 0, 0, 0) for merchant_id in others
    ]
    assert await read_agreements(db, [], "sandbox", now) == {}
    assert await read_agreements(db, [others[0], first], "live", now) == {others[0]: [], first: []}


COPIED_RUN = """
INSERT INTO reconciliation_run (run_id, merchant_id, env, receiver_id, shortcode, cause, window_start, window_end,
    status, pages, lines, malformed, already_known, recovered, not_found, mismatched, ambiguous, started_at,
    finished_at)
SELECT $2, $1, env, receiver_id, shortcode, cause, window_start, window_end, status, pages, lines,
    malformed, already_known, recovered, not_found, mismatched, ambiguous, started_at, finished_at
FROM reconciliation_run WHERE merchant_id <> $1 ORDER BY run_id LIMIT 1
"""


@pytest.mark.as_owner
async def test_payments_missing_on_a_statement_are_read_with_the_index_of_subjects(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        db, merchant_id = gateway.db, (await api.pay("254708374149", key="first")).data["merchant_id"]
        given = await db.fetchrow("SELECT shortcode_id, receiver_id FROM shortcode")
        assert given is not None
        await db.execute(FILL, merchant_id, MANY, given["shortcode_id"])
        await db.execute(TRANSACTIONS)
        await db.execute("ANALYZE payment, transaction, reconciliation_line")
        until = await db.fetchval("SELECT max(completed_at) FROM payment")
        since = until - timedelta(minutes=15)
        oldest = Ids.least("pay", since)
        receiver = given["receiver_id"]
        asked: Any = ([merchant_id], "sandbox", [receiver], [since], [until], oldest, oldest)
        (plan,) = await db.fetch_planned("EXPLAIN (FORMAT JSON) " + MISSING_ON_STATEMENT, *asked)
        read = [step for step in steps(json.loads(plan[0])[0]["Plan"]) if step.get("Relation Name") == "transaction"]
        assert [step.get("Index Name") for step in read] == ["transaction_subject"]
        found = await db.fetchrow(MISSING_ON_STATEMENT, *asked)
        # Three of the last fifteen are reversed, the others failed.
        assert found is not None
        assert found["payments"] == 3
