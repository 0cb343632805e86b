"""The cost of lists in Postgres: each filter alone and in common combinations, first page and page 1,000."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from bench.speed.seed import Shop, connect
from mpesa_gateway.db.keyset import Conditions, KeysetList
from mpesa_gateway.http.validation import read_query
from mpesa_gateway_payments.listing import PAYMENTS, conditions
from mpesa_gateway_payments.schemas import PaymentFilters
from mpesa_gateway_transactions.listing import TransactionList
from mpesa_gateway_transactions.schemas import TransactionFilters

_SHOWN = 101
"""Rows read for a page of 100: one more shows whether there is a next page."""

_DEEP = 99_900
"""Rows on the 999 pages before page 1,000."""

_TRIES = 3

_SOME_PAYMENT = """
SELECT payment_id, receipt, phone, reference, checkout_request_id, idempotency_key, created_at FROM payment
WHERE merchant_id = $1 AND receipt IS NOT NULL ORDER BY payment_id LIMIT 1 OFFSET 1000
"""

_SOME_MONEY = """
SELECT receipt, payer, account_number, occurred_at FROM transaction
WHERE merchant_id = $1 AND account_number IS NOT NULL AND payer NOT LIKE '%*%' ORDER BY transaction_id
LIMIT 1 OFFSET 10
"""


def cases(known: Any) -> dict[str, dict[str, str]]:
    """Return filters by name, for an existing payment."""
    week = {"since": _text(known["created_at"]), "until": _text(known["created_at"] + timedelta(days=7))}
    searches = {
        f"search: {name}": {"search": known[name]}
        for name in ("payment_id", "receipt", "checkout_request_id", "reference", "idempotency_key", "phone")
    }
    return {
        "no filter": {},
        "provider": {"provider": "mpesa"},
        "status: completed (80 %)": {"status": "completed"},
        "status: failed (15 %)": {"status": "failed"},
        "status: partially_reversed (none)": {"status": "partially_reversed"},
        "since": {"since": week["since"]},
        "until": {"until": week["until"]},
        "since and until": week,
        "min_amount: 5000 (half)": {"min_amount": "5000"},
        "min_amount: 100000 (2 %)": {"min_amount": "100000"},
        "min_amount: 200000 (none)": {"min_amount": "200000"},
        "max_amount: 10 (0.1 %)": {"max_amount": "10"},
        "min_amount and max_amount": {"min_amount": "5000", "max_amount": "5010"},
        "phone": {"phone": known["phone"]},
        "reference": {"reference": "ORDER77"},
        **searches,
        "search: nothing": {"search": "nosuchthing"},
        "status, since and until": {"status": "failed"} | week,
        "status and min_amount": {"status": "completed", "min_amount": "100000"},
        "min_amount, since and until": {"min_amount": "100000"} | week,
        "phone and status": {"phone": known["phone"], "status": "completed"},
        "search and status": {"search": known["phone"], "status": "completed"},
    }


def transaction_cases(known: Any) -> dict[str, dict[str, str]]:
    """Return filters of transactions by name, for an existing unallocated one."""
    week = {"since": _text(known["occurred_at"]), "until": _text(known["occurred_at"] + timedelta(days=7))}
    loose = {"allocated": "false"}
    return {
        "no filter": {},
        "direction: in (99 %)": {"direction": "in"},
        "direction: out (1 %)": {"direction": "out"},
        "kind: stk (92 %)": {"kind": "stk"},
        "kind: c2b (7 %)": {"kind": "c2b"},
        "kind: fee (none)": {"kind": "fee"},
        "allocated: true (92 %)": {"allocated": "true"},
        "allocated: false (8 %)": loose,
        "shortcode (all)": {"shortcode": "174379"},
        "shortcode (none)": {"shortcode": "600000"},
        "account_number": {"account_number": known["account_number"]},
        "phone": {"phone": known["payer"]},
        "receipt": {"receipt": known["receipt"]},
        "since": {"since": week["since"]},
        "until": {"until": week["until"]},
        "since and until": week,
        "min_amount: 5000 (half)": {"min_amount": "5000"},
        "min_amount: 100000 (2 %)": {"min_amount": "100000"},
        "min_amount: 200000 (none)": {"min_amount": "200000"},
        "max_amount: 10 (0.1 %)": {"max_amount": "10"},
        "allocated: false, since and until": loose | week,
        "allocated: false and min_amount": loose | {"min_amount": "9000"},
        "allocated: false, direction and kind": loose | {"direction": "in", "kind": "c2b"},
        "kind and min_amount": {"kind": "stk", "min_amount": "100000"},
        "direction: out and min_amount: none": {"direction": "out", "min_amount": "200000"},
        "shortcode and allocated: false": {"shortcode": "174379"} | loose,
        "phone, since and until": {"phone": known["payer"]} | week,
    }


async def explain(url: str, shop: Shop) -> list[dict[str, Any]]:
    """Return for each case the milliseconds of the first page and of page 1,000 (or None), and the indexes."""
    connection = await connect(url, "mpesa")
    try:
        known = await connection.fetchrow(_SOME_PAYMENT, shop.merchant_id)
        costs: list[dict[str, Any]] = []
        for name, query in cases(known).items():
            filters = read_query({key: [value] for key, value in query.items()}, PaymentFilters)
            found = conditions(shop.merchant_id, "sandbox", filters)
            costs.append(await _costs(connection, name, PAYMENTS, found))
        return costs
    finally:
        await connection.close()


async def explain_transactions(url: str, shop: Shop) -> list[dict[str, Any]]:
    """Return the same of transactions, and the milliseconds of number and sum."""
    connection = await connect(url, "mpesa")
    try:
        known = await connection.fetchrow(_SOME_MONEY, shop.merchant_id)
        listing: Any = TransactionList(connection)
        costs: list[dict[str, Any]] = []
        for name, query in transaction_cases(known).items():
            filters = read_query({key: [value] for key, value in query.items()}, TransactionFilters)
            listed, found = await listing.conditions(shop.merchant_id, "sandbox", filters)
            total, _ = await _cost(connection, *listed.select_total(found))
            costs.append(await _costs(connection, name, listed, found) | {"total_ms": total})
        return costs
    finally:
        await connection.close()


async def _costs(connection: Any, name: str, listed: KeysetList, found: Conditions) -> dict[str, Any]:
    first, indexes = await _cost(connection, *listed.select(found, _SHOWN))
    deep = None
    # Page 1,000 of 100 rows, or none with fewer rows.
    sql, *values = listed.select(found, _DEEP)
    after = await connection.fetchval(
        f"SELECT {listed.key} FROM ({sql}) AS before OFFSET {_DEEP - 1}",  # noqa: S608 - our clause
        *values,
    )
    if after is not None:
        deep, _ = await _cost(connection, *listed.select(found, _SHOWN, after))
    return {"filters": name, "first_ms": first, "page_1000_ms": deep, "indexes": indexes}


async def _cost(connection: Any, sql: str, *values: Any) -> tuple[float, list[str]]:
    """Return the least milliseconds of a few executions, and the indexes used."""
    best, indexes = float("inf"), list[str]()
    for _ in range(_TRIES):
        explained = await connection.fetchval("EXPLAIN (ANALYZE, FORMAT JSON) " + sql, *values)
        plan = json.loads(explained)[0]
        if plan["Execution Time"] < best:
            best, indexes = plan["Execution Time"], sorted(set(_indexes(plan["Plan"])))
    return best, indexes


def _indexes(node: dict[str, Any]) -> Iterator[str]:
    if "Index Name" in node:
        yield node["Index Name"]
    elif node["Node Type"] == "Seq Scan":
        yield f"(all of {node['Relation Name']})"
    for inner in node.get("Plans", ()):
        yield from _indexes(inner)


def _text(moment: datetime) -> str:
    return moment.isoformat()
