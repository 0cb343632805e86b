"""The list of payments: every filter alone or together, each served by an index, newest first."""

from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from typing import Any

from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.lists import Conditions, Listing
from mpesa_gateway.errors import checking
from mpesa_gateway.http.csv import keyset_pages
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import decode_position, page_of
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments.schemas import PaymentFilters, PaymentQuery, PaymentView

_LONGEST_SEARCH = 100

PAYMENTS = Listing("payment", "created_at", "payment_id")


def conditions(merchant_id: str | None, filters: PaymentFilters) -> Conditions:
    """The filters as SQL. Raises Invalid with every filter that cannot be read."""
    found = Conditions()
    if merchant_id is not None:
        found.add("merchant_id = {}", merchant_id)
    with checking() as checks:
        for name, column, operator, parse in (
            ("min_amount", "amount", ">=", Kes.parse),
            ("max_amount", "amount", "<=", Kes.parse),
            ("phone", "phone", "=", Msisdn.parse),
        ):
            given: Any = getattr(filters, name)
            if given is None:
                continue
            read: Callable[[Any], Any] = parse
            value = checks.take(name, read, given)
            if isinstance(value, Kes):
                # Beyond the column's range the answer is the same as at its end.
                found.add(f"{column} {operator} {{}}", min(int(value), 2**31 - 1))
            elif value is not None:
                found.add(f"{column} {operator} {{}}", str(value))
        if filters.search is not None and (len(filters.search) > _LONGEST_SEARCH or "\x00" in filters.search):
            checks.fail("search", f"must be at most {_LONGEST_SEARCH} characters, none of them NUL")
        if filters.reference is not None and "\x00" in filters.reference:
            checks.fail("reference", "must not contain NUL")
    for value, clause in (
        (filters.provider, "provider = {}"),
        (None if filters.status is None else filters.status.value, "status = {}"),
        (filters.since, "created_at >= {}"),
        (filters.until, "created_at < {}"),
        (filters.reference, "reference = {}"),
    ):
        if value is not None:
            found.add(clause, value)
    if filters.search is not None:
        _add_search(found, filters.search.strip())
    return found


def _add_search(found: Conditions, text: str) -> None:
    """What a person has in hand: a receipt, our id, Daraja's, their own reference or key, or a phone number."""
    parts = [
        "payment_id = {}",
        "checkout_request_id = {}",
        "receipt = {}",
        "reference = {}",
        "reference = {}",
        "idempotency_key = {}",
    ]
    values = [text, text, text.upper(), text, text.upper(), text]
    try:
        values.append(str(Msisdn.parse(text)))
        parts.append("phone = {}")
    except ValueError:
        pass
    found.add("(" + " OR ".join(parts) + ")", *values)


async def list_payments(
    db: Database, merchant_id: str, filters: PaymentQuery, view: Callable[[Row], PaymentView]
) -> Page[PaymentView]:
    """One page. ``meta.total`` counts only when asked to. Raises Invalid."""
    found = conditions(merchant_id, filters)
    total: int | None = None
    if filters.count:
        # The clause is ours; every value in it is a parameter.
        total = await db.fetchval(f"SELECT count(*) FROM payment WHERE {found.where}", *found.values)  # noqa: S608
    after = None if filters.cursor is None else decode_position(filters.cursor)
    rows = await _read(db, found, after, filters.limit + 1)
    return page_of(rows, filters.limit, view=view, position=_position, total=total)


def export_payments(
    db: Database, merchant_id: str, filters: PaymentFilters, row: Callable[[Row], Sequence[Any]]
) -> AsyncGenerator[list[Sequence[Any]]]:
    """All payments that the filters let through, newest first, in pages. Raises Invalid."""
    found = conditions(merchant_id, filters)
    return keyset_pages(lambda after, limit: _read(db, found, after, limit), _position, row)


def _position(row: Row) -> tuple[datetime, str]:
    return row["created_at"], row["payment_id"]


async def _read(db: Database, found: Conditions, after: tuple[datetime, str] | None, limit: int) -> list[Row]:
    page = found.copy()
    if after is not None:
        page.add("(created_at, payment_id) < ({}, {})", *after)
    return await db.fetch(
        f"SELECT * FROM payment WHERE {page.where} "  # noqa: S608 - the clause is ours, its values are parameters
        f"ORDER BY created_at DESC, payment_id DESC LIMIT {limit}",
        *page.values,
    )
