"""Look-ups and lists of payments, newest first, served by indexes."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions, KeysetList
from mpesa_gateway.env import Env
from mpesa_gateway.errors import check_fields, require_found
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.ids import Ids
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.api import Similar
from mpesa_gateway_payments.evidence import CLOCKS_DIFFER
from mpesa_gateway_payments.matching import SHOWN_FOR
from mpesa_gateway_payments.schemas import PaymentFilters, PaymentQuery, PaymentView
from mpesa_gateway_payments.search import add_search, reference_parts

_LONGEST_SEARCH = 100

PAYMENTS = KeysetList(table="payment", key="payment_id", prefix="pay", by_index=True)


async def find_payment(db: Database, merchant_id: str, env: Env, payment_id: str) -> Row:
    """Raises NotFound."""
    return require_found(await db.fetchrow(tables.FIND, merchant_id, env, payment_id), "there is no such payment")


async def find_similar(db: Database, merchant_id: str, env: Env, wanted: Similar) -> list[Row]:
    first, last = Ids.least("pay", wanted.before - SHOWN_FOR), Ids.least("pay", wanted.before + CLOCKS_DIFFER)
    return await db.fetch(tables.SIMILAR, merchant_id, env, first, last, wanted.amount, wanted.phone, wanted.reference)


def conditions(merchant_id: str | None, env: Env, filters: PaymentFilters, *, sees_numbers: bool = True) -> Conditions:
    """Raises InvalidFields with all unreadable filters."""
    found = Conditions(env, merchant_id, filters.since, filters.until)
    with check_fields() as checks:
        for name, column, operator, parse in (
            ("min_amount", "amount", ">=", Kes.parse),
            ("max_amount", "amount", "<=", Kes.parse),
            ("phone", "", "", Msisdn.parse),
        ):
            text: Any = getattr(filters, name)
            if text is None:
                continue
            read: Callable[[Any], Any] = parse
            value = checks.take(name, read, text)
            if isinstance(value, Kes):
                # Beyond the column's range the result is the same.
                found.add(f"{column} {operator} {{}}", min(int(value), 2**31 - 1))
            elif value is not None:
                found.add(tables.HAS_PHONE, str(value))
        if filters.search is not None and (len(filters.search) > _LONGEST_SEARCH or "\x00" in filters.search):
            checks.fail("search", f"must be at most {_LONGEST_SEARCH} characters, none of them NUL")
        if filters.reference is not None and "\x00" in filters.reference:
            checks.fail("reference", "must not contain NUL")
    # There is one provider.
    found.equal(status=None if filters.status is None else filters.status.value, shortcode=filters.shortcode)
    if filters.reference is not None:
        parts = reference_parts(filters.reference)
        found.add(f"({' OR '.join(parts)})", *[filters.reference] * len(parts))
    if filters.search is not None:
        add_search(found, filters.search.strip(), sees_numbers=sees_numbers)
    return found


async def list_payments(
    db: Database, merchant_id: str, env: Env, filters: PaymentQuery, view: Callable[[Row], PaymentView]
) -> Page[PaymentView]:
    """Raises InvalidFields."""
    found = conditions(merchant_id, env, filters)
    page = await PAYMENTS.page(db, found, filters.cursor, filters.limit, count=filters.count)
    return page_of(page.map(view))


def export_payments(
    db: Database, merchant_id: str, env: Env, filters: PaymentFilters, row: Callable[[Row], Sequence[Any]]
) -> AsyncGenerator[list[Sequence[Any]]]:
    """Raises InvalidFields."""
    return PAYMENTS.export(db, conditions(merchant_id, env, filters), row)
