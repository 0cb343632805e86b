"""Finds payments: one by its id, or a list by any filters, each served by an index, newest first."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec

from mpesa_gateway.cursors import decode_position
from mpesa_gateway.db.asking import Asking
from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.lists import Conditions, Listing, Position
from mpesa_gateway.env import Env
from mpesa_gateway.errors import NotFound, checking
from mpesa_gateway.http.csv import keyset_pages
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.schemas import PaymentFilters, PaymentQuery, PaymentView

_LONGEST_SEARCH = 100

PAYMENTS = Listing("payment", "created_at", "payment_id")


async def find_payment(db: Asking, merchant_id: str, env: Env, payment_id: str) -> Row:
    """Return a payment of this merchant in ``env``. Raises NotFound."""
    row = await db.fetchrow(tables.FIND, merchant_id, env, payment_id)
    if row is None:
        raise NotFound("there is no such payment")
    return row


def conditions(merchant_id: str | None, env: Env | None, filters: PaymentFilters) -> Conditions:
    """The filters as SQL; None for a merchant or an env that the list adds by itself.

    Raises Invalid with every filter that cannot be read.
    """
    found = Conditions()
    if merchant_id is not None:
        found.add("merchant_id = {}", merchant_id)
    if env is not None:
        found.add("env = {}", env)
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
    # There is one provider: a filter on it lets everything through.
    for value, clause in (
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
    """What a person has in hand: a receipt, our id, Daraja's, their own reference or key, or a phone number.

    The whole of it. Receipts and ids that begin alike are of one time: whoever looked for a beginning from newest to
    oldest would pass over all that has come since (126 ms with 200,000 payments).
    """
    upper = text.upper()
    parts = [
        "payment_id = {}",
        "checkout_request_id = {}",
        "receipt = {}",
        "idempotency_key = {}",
    ]
    values = [text, text, upper, text]
    for spelt in sorted({text, upper}):
        parts.append("reference = {}")
        values.append(spelt)
    try:
        values.append(str(Msisdn.parse(text)))
        parts.append("phone = {}")
    except ValueError:
        pass
    found.add("(" + " OR ".join(parts) + ")", *values)


async def list_payments(
    reads: Asking, merchant_id: str, env: Env, filters: PaymentQuery, view: Callable[[Row], PaymentView]
) -> Page[PaymentView]:
    """One page. ``meta.total`` counts only when asked to. Raises Invalid."""
    found = conditions(merchant_id, env, filters)
    total: int | None = None
    if filters.count:
        # The clause is ours; every value in it is a parameter.
        total = await reads.fetchval(f"SELECT count(*) FROM payment WHERE {found.where}", *found.values)  # noqa: S608
    after = None if filters.cursor is None else decode_position(filters.cursor, env)
    sql, values = page_sql(merchant_id, env, filters, after, filters.limit + 1)
    return page_of(
        await reads.fetch_planned(sql, *values), filters.limit, env=env, view=view, position=_position, total=total
    )


def export_payments(
    reads: Asking, merchant_id: str, env: Env, filters: PaymentFilters, row: Callable[[Row], Sequence[Any]]
) -> AsyncGenerator[list[Sequence[Any]]]:
    """All payments that the filters let through, newest first, in pages. Raises Invalid."""
    # Before the first page is asked for, so that who asks is told at once.
    conditions(merchant_id, env, filters)

    async def read(after: Position | None, limit: int) -> list[Row]:
        sql, values = page_sql(merchant_id, env, filters, after, limit)
        return await reads.fetch_planned(sql, *values)

    return keyset_pages(read, _position, row)


def page_sql(
    merchant_id: str, env: Env, filters: PaymentFilters, after: Position | None, limit: int
) -> tuple[str, list[Any]]:
    """The statement for one page of ``limit`` rows after a position, and its parameters. Raises Invalid.

    Only the rows that are shown are read: which these are, the index alone says.
    """
    # ``until`` is a position too. Two ends side by side, and Postgres would begin at the later one and pass over all
    # that earlier pages have shown.
    until = None if filters.until is None else (filters.until, "")
    start = min(filter(None, (after, until)), default=None)
    found = conditions(merchant_id, env, msgspec.structs.replace(filters, until=None))
    if start is not None:
        found.add("(created_at, payment_id) < ({}, {})", *start)
    # The clause is ours, its values are parameters.
    shown = (
        f"SELECT created_at AS at, payment_id AS id FROM payment WHERE {found.where} "  # noqa: S608
        f"ORDER BY created_at DESC, payment_id DESC LIMIT {limit}"
    )
    sql = f"SELECT payment.* FROM ({shown}) AS shown JOIN payment ON payment_id = id ORDER BY at DESC, id DESC"  # noqa: S608
    return sql, found.values


def _position(row: Row) -> Position:
    return row["created_at"], row["payment_id"]
