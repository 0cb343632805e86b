"""Protects the payment list at size: each page reads a bounded number of rows for every filter."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.http.validation import read_query
from mpesa_gateway_payments.listing import PAYMENTS, conditions
from mpesa_gateway_payments.schemas import PaymentFilters
from mpesa_gateway_payments.states import Status
from mpesa_gateway_payments.tables import READ_BY_CHECKOUT
from tests.identifiers import expression, identifier, literal

pytestmark = pytest.mark.as_owner

MANY = 80_000
SHOWN = 101
"""Rows that a page of 100 reads: one more shows whether there is a next page."""

DEEP = 20_000
"""Rows before the deep page."""

MOST = 6_000
"""The most rows, in tables and indexes, that a page may read: a filter that one row in fifty matches needs so many.

A filter that half of the rows match needs many times more if all of them are read or sorted.
"""

STARTS = "search for the start of a reference"
MOST_OF_STARTS = 15_000
"""One row in 120 starts so: the newest are read until the page is full."""

# One payment a minute, the newest last; our references are in another order. One in 50 is over 100,000; 80 % are
# completed, 15 % failed, 2 % pending.
FILL = f"""
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, idempotency_key, status, charge, merchant_request_id, checkout_request_id, receipt,
    failure_reason, refunded, due_at, expires_at, created_at, updated_at, completed_at, metadata)
SELECT {expression("pay", "at", "n")}, $1, 'sandbox', 'mpesa', '174379',
    $3::uuid,
    amount, 'KES',
    '2547' || lpad(((n * 7919) % 8000)::text, 8, '0'),
    CASE WHEN n % 10 < 7 THEN 'OWN' || translate(reverse(lpad(n::text, 9, '0')), '0123456789', 'ABCDEFGHIJ')
        ELSE 'ORDER' || n % 4000 END, n % 10 < 7, 'Payment',
    'key-' || n, status, 'accepted', 'm-' || n, 'ws_CO_' || lpad(n::text, 20, '0'),
    CASE WHEN status IN ('completed', 'reversed') THEN 'S' || lpad(n::text, 9, '0') END,
    CASE WHEN status = 'failed' THEN 'expired' END,
    CASE WHEN status = 'reversed' THEN amount ELSE 0 END,
    CASE WHEN status = 'pending' THEN at END, at, at, at,
    CASE WHEN status IN ('completed', 'reversed') THEN at END,
    CASE WHEN n % 50 = 0 THEN jsonb_build_object('cart', 'Cart ' || n, 'channel', 'web') ELSE '{{}}' END
FROM (SELECT n, timestamptz '2026-01-01T00:00:00Z' + n * interval '1 minute' AS at,
    CASE WHEN n % 100 < 80 THEN 'completed' WHEN n % 100 < 95 THEN 'failed' WHEN n % 100 < 98 THEN 'reversed'
        ELSE 'pending' END AS status,
    (1 + (n * 104729) % 10000 + CASE WHEN n % 50 = 0 THEN 100000 ELSE 0 END)::integer AS amount
    FROM generate_series(1, $2::bigint) AS n) AS made
"""  # noqa: S608 - ids that the test chose

WEEK = {"since": "2026-02-01T00:00:00Z", "until": "2026-02-08T00:00:00Z"}
KNOWN = 31_000
"""A completed payment in the middle, over 100,000."""
KNOWN_ID = identifier("pay", KNOWN, at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=KNOWN))
OWN = f"OWN{f'{KNOWN:09}'[::-1]}".translate(str.maketrans("0123456789", "ABCDEFGHIJ"))
PHONE = f"2547{(KNOWN * 7919) % 8000:08}"

FILTERS: dict[str, dict[str, str]] = {
    "none": {},
    "provider": {"provider": "mpesa"},
    "status of most": {"status": "completed"},
    "status of some": {"status": "failed"},
    "status of few": {"status": "pending"},
    "status of none": {"status": "partially_reversed"},
    "shortcode of all": {"shortcode": "174379"},
    "shortcode of none": {"shortcode": "600000"},
    "shortcode and status": {"shortcode": "174379", "status": "failed"},
    "shortcode and window": {"shortcode": "174379"} | WEEK,
    "since": {"since": WEEK["since"]},
    "until": {"until": WEEK["until"]},
    "since and until": WEEK,
    "min_amount of half": {"min_amount": "5000"},
    "min_amount of few": {"min_amount": "100000"},
    "min_amount of none": {"min_amount": "200000"},
    "max_amount of half": {"max_amount": "5000"},
    "max_amount of few": {"max_amount": "10"},
    "min_amount and max_amount": {"min_amount": "5000", "max_amount": "5010"},
    "one amount": {"min_amount": "700", "max_amount": "700"},
    "phone": {"phone": PHONE},
    "phone of nobody": {"phone": "254799999999"},
    "reference": {"reference": "ORDER77"},
    "reference of none": {"reference": "ORDER-X"},
    "search for a payment's id": {"search": KNOWN_ID},
    "search for M-Pesa's id": {"search": f"ws_CO_{KNOWN:020}"},
    "search for a receipt": {"search": f"S{KNOWN:09}"},
    "search for a receipt in small letters": {"search": f"s{KNOWN:09}"},
    "search for a reference": {"search": OWN},
    "a reference of ours": {"reference": OWN},
    "search for a reference of several": {"search": "order77"},
    "search for a pattern": {"search": "ORDER%"},
    "search for a key": {"search": f"key-{KNOWN}"},
    "search for a phone": {"search": PHONE},
    "search for nothing that is there": {"search": "nosuchthing"},
    "search for little": {"search": "S"},
    "search for the start of a reference of many": {"search": "ORD"},
    STARTS: {"search": "ORDER77"[:6]},
    "search for the start of our reference": {"search": OWN[:8]},
    "search for the start of all our references": {"search": "OWNA"},
    "search for the start of a receipt": {"search": f"S{KNOWN:09}"[:8]},
    "search for the start of all receipts": {"search": "S000"},
    "search for the start of an id": {"search": KNOWN_ID[:14]},
    "search for the start of all ids": {"search": KNOWN_ID[:8]},
    "search for last digits": {"search": PHONE[-4:]},
    "search for last digits of nobody": {"search": "999999"},
    "search for a value of the metadata": {"search": f"cart {KNOWN}"},
    "search for a value of the metadata of many": {"search": "web"},
    "search for a part and status": {"search": "ORD", "status": "failed"},
    "search for a part and window": {"search": "ORD"} | WEEK,
    "status and window": {"status": "failed"} | WEEK,
    "status and min_amount": {"status": "completed", "min_amount": "100000"},
    "status and min_amount of none": {"status": "failed", "min_amount": "200000"},
    "status, min_amount and window": {"status": "completed", "min_amount": "100000"} | WEEK,
    "min_amount and window": {"min_amount": "100000"} | WEEK,
    "max_amount and until": {"max_amount": "5000", "until": WEEK["until"]},
    "phone and status": {"phone": PHONE, "status": "completed"},
    "phone and window": {"phone": PHONE} | WEEK,
    "phone and min_amount": {"phone": PHONE, "min_amount": "5000"},
    "reference and status": {"reference": "ORDER77", "status": "completed"},
    "search and status": {"search": "ORDER77", "status": "completed"},
    "search and min_amount": {"search": "ORDER77", "min_amount": "5000"},
    "search and window": {"search": "ORDER77"} | WEEK,
    "search, status and min_amount": {"search": "ORDER77", "status": "completed", "min_amount": "5000"},
    "search for nothing, status and min_amount": {"search": "nosuch", "status": "completed", "min_amount": "5000"},
}


TOTALLED = {
    "search for a receipt",
    "search for a reference of several",
    STARTS,
    "search for the start of our reference",
    "search for the start of a receipt",
    "search for last digits",
    "search for a value of the metadata",
    "search for nothing that is there",
}
"""Searches that match at most one row in fifty: their total reads no more than those."""


async def page_plan(db: Database, merchant_id: str, filters: PaymentFilters, after: str | None) -> dict[str, Any]:
    """The plan with which Postgres read a page."""
    sql, *values = PAYMENTS.select(conditions(merchant_id, "sandbox", filters), SHOWN, after)
    (row,) = await db.fetch_planned("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + sql, *values)
    plan: dict[str, Any] = json.loads(row[0])[0]["Plan"]
    return plan


async def deep_in(db: Database, merchant_id: str, filters: PaymentFilters) -> str | None:
    """The id of a row 20,000 rows down the list, or of the middle row of a shorter list; None for an empty one."""
    sql, *values = PAYMENTS.select(conditions(merchant_id, "sandbox", filters), DEEP)
    rows = await db.fetch_planned(f"SELECT payment_id FROM ({sql}) AS listed", *values)  # noqa: S608
    if not rows:
        return None
    found: str = (rows[-1] if len(rows) == DEEP else rows[len(rows) // 2])["payment_id"]
    return found


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a plan, nested ones included."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from steps(inner)


def rows_read(step: dict[str, Any]) -> float:
    """Rows that a step read, discarded ones included."""
    passed = sum(step.get(f"Rows Removed by {how}", 0) for how in ("Filter", "Index Recheck", "Join Filter"))
    return float((step["Actual Rows"] + passed) * step["Actual Loops"])


def complaints(plan: dict[str, Any], most: int = MOST) -> list[str]:
    """The faults of a page's plan."""
    found: list[str] = []
    for step in steps(plan):
        kind = step["Node Type"]
        if kind == "Seq Scan" and step["Relation Name"] == "payment":
            found.append("reads the whole table")
        if (rows := rows_read(step)) > most:
            found.append(f"{kind} {step.get('Index Name', '')} reads {rows:.0f} rows")
    return found


SHORTCODE = f"""
WITH received AS (
    INSERT INTO receiver (receiver_id, env, number, kind, created_at)
    VALUES ({literal("rcv")}, 'sandbox', '174379', 'paybill', now()) RETURNING receiver_id
)
INSERT INTO shortcode (shortcode_id, merchant_id, env, receiver_id, consumer_key, consumer_secret, passkey,
    is_default, created_at, updated_at)
SELECT {literal("shc")}, $1, 'sandbox', receiver_id, 'v1.a', 'v1.a', 'v1.a', true, now(), now() FROM received
"""  # noqa: S608 - ids that the test chose


async def test_list_page_reads_and_sorts_a_bounded_number_of_rows(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        db = gateway.db
        merchant_id = (await gateway.merchants.create("Large", actor="test")).merchant_id
        await db.execute(SHORTCODE, merchant_id)
        await db.execute(FILL, merchant_id, MANY, identifier("shc"))
        await db.execute("VACUUM (ANALYZE) payment")
        found: dict[str, list[str]] = {}
        deep_pages = 0
        for name, query in FILTERS.items():
            filters = read_query({key: [value] for key, value in query.items()}, PaymentFilters)
            most = MOST_OF_STARTS if name == STARTS else MOST
            found[name] = complaints(await page_plan(db, merchant_id, filters, None), most)
            after = await deep_in(db, merchant_id, filters)
            if after is not None:
                deep_pages += 1
                found[f"{name}, deep"] = complaints(await page_plan(db, merchant_id, filters, after), most)
            if name in TOTALLED:
                sql, *more = PAYMENTS.select_total(conditions(None, "sandbox", filters))
                (row,) = await db.fetch("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + sql, *more)
                found[f"{name}, total"] = complaints(json.loads(row[0])[0]["Plan"])
        handles = [f"ws_CO_{number:020}" for number in range(1, 33)]
        (row,) = await db.fetch_planned("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + READ_BY_CHECKOUT, handles)
        found["a batch of callbacks"] = complaints(json.loads(row[0])[0]["Plan"], len(handles))
        assert {name: wrong for name, wrong in found.items() if wrong} == {}
        assert deep_pages > len(FILTERS) / 2
        # Counter-test: the check reports a query that no index serves.
        (row,) = await db.fetch(
            "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) SELECT * FROM payment ORDER BY description LIMIT 1"
        )
        assert len(complaints(json.loads(row[0])[0]["Plan"])) == 2


# Another merchant, with nearly no completed payment.
UNLUCKY = (
    FILL.replace("2026-01-01", "2025-01-01")
    .replace("'OWN'", "'ODD'")
    .replace("'S' ||", "'R' ||")
    .replace("'ws_CO_'", "'ws_XX_'")
    .replace("n % 100 < 80 THEN", "n % 20000 = 0 THEN")
)


async def test_list_page_of_a_rare_status_reads_a_bounded_number_of_rows(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        db = gateway.db
        lucky, unlucky = [
            (await gateway.merchants.create(name, actor="test")).merchant_id for name in ("Lucky", "Unlucky")
        ]
        await db.execute(SHORTCODE, lucky)
        await db.execute(FILL, lucky, MANY, identifier("shc"))
        await db.execute(UNLUCKY, unlucky, MANY, identifier("shc"))
        await db.execute("VACUUM (ANALYZE) payment")
        paid = PaymentFilters(status=Status.COMPLETED)
        assert complaints(await page_plan(db, unlucky, paid, None)) == []
        assert complaints(await page_plan(db, lucky, paid, None)) == []
