"""Protects the list of transactions at size: each filter alone reads a bounded number of rows."""

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway.http.validation import read_query
from mpesa_gateway_transactions.listing import TransactionList
from mpesa_gateway_transactions.schemas import TransactionFilters
from tests.identifiers import expression, identifier, literal

pytestmark = pytest.mark.as_owner

MANY = 30_000
SHOWN = 101
"""Rows that a page of 100 reads: one more shows whether there is a next page."""

DEEP = 5_000
"""Rows before the deep page."""

MOST = 6_000
"""The most rows, in tables and indexes, that a page may read, for a filter that one row in fifty matches."""

STRANGERS = 15_000
"""Rows without a subject of another merchant at its own receiver, among the others."""

# One a minute, the newest last. 92 % are of pushes, 7 % C2B and 1 % out; one in 50 is over 100,000. Half of C2B shows
# the digest of a number. One in 3,000 is of another receiver.
FILL = f"""
INSERT INTO transaction (transaction_id, receiver_id, merchant_id, occurred_at, amount_cents, subject_id, env,
    direction, kind, receipt, payer, payer_digest, account_number, subject_kind, first_source, category)
SELECT {expression("txn", "at", "n")},
    (CASE WHEN n > $2 THEN {literal("rcv", 3)} WHEN n % 3000 = 1 THEN {literal("rcv", 2)} ELSE {literal("rcv")} END
    )::uuid,
    CASE WHEN n > $2 THEN $5::uuid WHEN n % 7 < 5 THEN $1::uuid ELSE $3::uuid END, at, amount_cents,
    CASE WHEN n % 100 < 92 AND n <= $2 THEN {expression("pay", "at", "n")} END, $4,
    CASE WHEN n % 100 = 99 THEN 'out' ELSE 'in' END, CASE WHEN n % 100 = 99 THEN 'Business Payment' END,
    'S' || lpad(n::text, 9, '0'), CASE WHEN n % 100 < 95 THEN '2547' || lpad(((n * 7919) % 8000)::text, 8, '0') END,
    CASE WHEN n % 100 >= 95 THEN encode(sha256(('2547' || lpad(((n * 7919) % 8000)::text, 8, '0'))::bytea), 'hex') END,
    CASE WHEN n % 100 BETWEEN 92 AND 98 THEN 'ORDER' || n % 500 END,
    CASE WHEN n % 100 < 92 AND n <= $2 THEN 'payment' END, CASE WHEN n % 100 < 92 THEN 'stk' ELSE 'c2b' END,
    CASE WHEN n % 100 < 92 THEN 'stk' WHEN n % 100 = 99 THEN 'b2c' ELSE 'c2b' END
FROM (SELECT n, timestamptz '2026-01-01T00:00:00Z'
        + CASE WHEN n > $2 THEN 2 * (n - $2) ELSE n END * interval '1 minute' AS at,
    (1 + (n * 104729) % 10000 + CASE WHEN n % 50 = 0 THEN 100000 ELSE 0 END) * 100 AS amount_cents
    FROM generate_series(1, $2::bigint + $6) AS n) AS made
"""  # noqa: S608 - ids that the test chose

RECEIVER = """
INSERT INTO receiver (receiver_id, env, number, kind, owner_id, created_at)
VALUES ($1, $3, '174379', 'paybill', $4, now()), ($2, $3, '600000', 'till', $4, now()),
    ($5, $3, '600002', 'paybill', NULL, now())
"""

SHORTCODE = """
INSERT INTO shortcode (shortcode_id, merchant_id, env, receiver_id, is_default, created_at, updated_at, retired_at,
    wiped_at) VALUES ($1, $2, 'live', $3, false, now(), now(), now(), now())
"""

WEEK = {"since": "2026-01-08T00:00:00Z", "until": "2026-01-15T00:00:00Z"}
KNOWN = 15_092
"""Money of C2B in the middle."""
PHONE = f"2547{(KNOWN * 7919) % 8000:08}"
LOOSE = {"allocated": "false"}

FILTERS: dict[str, dict[str, str]] = {
    "none": {},
    "direction of most": {"direction": "in"},
    "direction of few": {"direction": "out"},
    "kind of most": {"kind": "stk"},
    "kind of some": {"kind": "c2b"},
    "kind of none": {"kind": "fee"},
    "allocated": {"allocated": "true"},
    "unallocated": LOOSE,
    "shortcode of all": {"shortcode": "174379"},
    "shortcode of few": {"shortcode": "600000"},
    "shortcode of none": {"shortcode": "600001"},
    "shortcode of few and allocated": {"shortcode": "600000", "allocated": "true"},
    "account number": {"account_number": f"order{KNOWN % 500}"},
    "account number of none": {"account_number": "RENT"},
    "phone": {"phone": PHONE},
    "phone of none": {"phone": "254799999999"},
    "receipt": {"receipt": f"S{KNOWN:09}"},
    "since": {"since": WEEK["since"]},
    "until": {"until": WEEK["until"]},
    "since and until": WEEK,
    "min_amount of half": {"min_amount": "5000"},
    "min_amount of few": {"min_amount": "100000"},
    "min_amount of none": {"min_amount": "200000"},
    "max_amount of few": {"max_amount": "10"},
    "min_amount and max_amount": {"min_amount": "5000", "max_amount": "5010"},
    "unallocated and window": LOOSE | WEEK,
    "unallocated of a kind": LOOSE | {"kind": "c2b", "direction": "in"},
    "unallocated and shortcode": LOOSE | {"shortcode": "174379"},
    "unallocated and min_amount": LOOSE | {"min_amount": "9000"},
    "unallocated and min_amount of few": LOOSE | {"min_amount": "100000"},
    "unallocated and min_amount of none": LOOSE | {"min_amount": "200000"},
    "unallocated and max_amount of few": LOOSE | {"max_amount": "10"},
    "unallocated and account number of none": LOOSE | {"account_number": "RENT"},
    "unallocated and phone of none": LOOSE | {"phone": "254799999999"},
    "unallocated and direction of few": LOOSE | {"direction": "out"},
    "phone and window": {"phone": PHONE} | WEEK,
}

TOTALLED = {"direction of few", "kind of some", "kind of none", "unallocated", "account number", "phone", "receipt"}
"""Filters that match at most `MOST` rows: their total reads each of them once."""


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a plan, nested ones included."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from steps(inner)


def complaints(plan: dict[str, Any]) -> list[str]:
    """The faults of a plan."""
    found: list[str] = []
    for step in steps(plan):
        kind = step["Node Type"]
        if kind == "Seq Scan" and step["Relation Name"] == "transaction":
            found.append("reads the whole table")
        passed = sum(step.get(f"Rows Removed by {how}", 0) for how in ("Filter", "Index Recheck", "Join Filter"))
        if (rows := (step["Actual Rows"] + passed) * step["Actual Loops"]) > MOST:
            found.append(f"{kind} {step.get('Index Name', '')} reads {rows:.0f} rows")
    return found


async def explained(db: Database, sql: str, *values: Any) -> list[str]:
    (row,) = await db.fetch_planned("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + sql, *values)
    return complaints(json.loads(row[0])[0]["Plan"])


@asynccontextmanager
async def filled(values: dict[str, Any], env: Env) -> AsyncGenerator[tuple[Database, str]]:
    """Yield the database and a merchant, in live the owner of receivers with money of another merchant too."""
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        db = gateway.db
        names = ("One", "Other", "Stranger")
        one, other, stranger = [(await gateway.merchants.create(name, actor="test")).merchant_id for name in names]
        owner = one if env == "live" else None
        await db.execute(RECEIVER, identifier("rcv"), identifier("rcv", 2), env, owner, identifier("rcv", 3))
        if owner is not None:
            await db.execute(SHORTCODE, identifier("shc"), other, identifier("rcv"))
            await db.execute(SHORTCODE, identifier("shc", 2), other, identifier("rcv", 2))
        await db.execute(FILL, other if owner else one, MANY, one, env, stranger, STRANGERS)
        await db.execute("VACUUM (ANALYZE) transaction")
        yield db, one


@pytest.mark.parametrize("env", ["sandbox", "live"], ids=["own money", "money of shared receivers"])
async def test_transactions_page_and_total_read_a_bounded_number_of_rows(values: dict[str, Any], env: Env) -> None:
    async with filled(values, env) as (db, merchant_id):
        found: dict[str, list[str]] = {}
        deep_pages = 0
        for name, query in FILTERS.items():
            filters = read_query({key: [value] for key, value in query.items()}, TransactionFilters)
            listed, chosen = await TransactionList(db).conditions(merchant_id, env, filters)
            found[name] = await explained(db, *listed.select(chosen, SHOWN))
            sql, *bound = listed.select(chosen, DEEP)
            rows = await db.fetch_planned(f"SELECT transaction_id FROM ({sql}) AS listed", *bound)  # noqa: S608
            if len(rows) == DEEP:
                deep_pages += 1
                after = rows[-1]["transaction_id"]
                found[f"{name}, deep"] = await explained(db, *listed.select(chosen, SHOWN, after))
            if name in TOTALLED:
                found[f"{name}, total"] = await explained(db, *listed.select_total(chosen))
        assert {name: wrong for name, wrong in found.items() if wrong} == {}
        assert deep_pages >= 8
        # Counter-test: the check reports a query that no index serves.
        assert len(await explained(db, "SELECT * FROM transaction ORDER BY payer_name LIMIT 1")) == 2
