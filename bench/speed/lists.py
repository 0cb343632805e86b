"""What lists cost Postgres: each filter alone and in the combinations that people use, first page and page 1,000."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from bench.speed.seed import Shop, connect
from mpesa_gateway.http.validation import read_query
from mpesa_gateway_payments.listing import PAYMENTS, conditions
from mpesa_gateway_payments.schemas import PaymentFilters

_SHOWN = 101
"""Rows that a page of 100 reads: one more tells whether there is a next one."""

_DEEP = 99_900
"""Rows on the 999 pages before page 1,000."""

_TRIES = 3

_SOME_PAYMENT = """
SELECT payment_id, receipt, phone, reference, checkout_request_id, idempotency_key, created_at FROM payment
WHERE merchant_id = $1 AND receipt IS NOT NULL ORDER BY payment_id LIMIT 1 OFFSET 1000
"""


def cases(known: Any) -> dict[str, dict[str, str]]:
    """Filters by what they stand for, about a payment that exists."""
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


async def explain(url: str, shop: Shop) -> list[dict[str, Any]]:
    """For each case: milliseconds of the first page and of page 1,000 (None where there is none), and the indexes."""
    connection = await connect(url, "mpesa")
    try:
        known = await connection.fetchrow(_SOME_PAYMENT, shop.merchant_id)
        costs: list[dict[str, Any]] = []
        for name, query in cases(known).items():
            filters = read_query({key: [value] for key, value in query.items()}, PaymentFilters)
            found = conditions(shop.merchant_id, "sandbox", filters)
            first, indexes = await _cost(connection, *PAYMENTS.select(found, _SHOWN))
            deep = None
            # As deep as page 1,000 of 100, or not at all where there is less.
            sql, *values = PAYMENTS.select(found, _DEEP)
            after = await connection.fetchval(
                f"SELECT payment_id FROM ({sql}) AS before OFFSET {_DEEP - 1}",  # noqa: S608 - our clause
                *values,
            )
            if after is not None:
                deep, _ = await _cost(connection, *PAYMENTS.select(found, _SHOWN, after))
            costs.append({"filters": name, "first_ms": first, "page_1000_ms": deep, "indexes": indexes})
        return costs
    finally:
        await connection.close()


async def _cost(connection: Any, sql: str, *values: Any) -> tuple[float, list[str]]:
    """The least milliseconds of a few executions, and the indexes that served them."""
    best, indexes = float("inf"), list[str]()
    for _ in range(_TRIES):
        said = await connection.fetchval("EXPLAIN (ANALYZE, FORMAT JSON) " + sql, *values)
        plan = json.loads(said)[0]
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
