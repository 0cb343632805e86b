"""Operators' list of transactions, with its search. No number is in a URL: filters that may hold one are sealed."""

from contextlib import suppress
from datetime import timedelta
from typing import Any, get_args
from urllib.parse import urlencode

import msgspec
from litestar import Response

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.daraja.provider_text import provider_text
from mpesa_gateway.daraja.wire import read_receipt
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.csv import stream_csv
from mpesa_gateway.local_time import UNTIL, parse_local
from mpesa_gateway.ops_contract import PageRequest, Permission, Redirect, Rendered
from mpesa_gateway.phone import Msisdn, mask_phones
from mpesa_gateway_transactions.listing import owner_of
from mpesa_gateway_transactions.money_kinds import MoneyKind
from mpesa_gateway_transactions.operator_service import (
    OPERATORS_EXPORTED,
    SEALED,
    OperatorTransactionFilters,
    TransactionOperatorService,
    audited,
)
from mpesa_gateway_transactions.page_words import KINDS

LIST = "transactions"
RECENT = timedelta(days=7)
_A_PAGE = 50
_FIRST = 5
"""Rows of unallocated money above the list."""

_TEXTS = (
    *("open", "direction", "kind", "allocated", "shortcode", "receipt", "since", "until", "min_amount", "max_amount"),
    "merchant",
)

_BY_FORM = "phone numbers are not allowed in a URL: use the form"
_HIDDEN = "your role does not show phone numbers, so you cannot search by one: search by receipt, amount or time"


def _is_number(text: str) -> bool:
    try:
        Msisdn.parse(text)
    except ValueError:
        return mask_phones(text) != text or provider_text(text) != " ".join(text.split())
    return True


def _refuse_number(visit: PageRequest, field: str, text: str) -> None:
    """Raise InvalidFields for a search by number without the permission: guesses would reveal it."""
    if text and not visit.visitor.may(Permission.NUMBERS) and (field == "phone" or _is_number(text)):
        raise InvalidFields.field_error(field, _HIDDEN)


def read_filters(visit: PageRequest) -> OperatorTransactionFilters:
    """Return the filters of the query with the sealed ones opened. Raises InvalidFields."""
    filters = visit.read_query(OperatorTransactionFilters)
    if filters.phone is not None:
        raise InvalidFields.field_error("phone", _BY_FORM)
    if filters.terms is not None:
        opened = visit.gateway.port(TransactionOperatorService).terms.open(filters.terms)
        filters = msgspec.structs.replace(filters, **{name: opened.get(name) for name in SEALED})
    for name in SEALED:
        _refuse_number(visit, name, getattr(filters, name) or "")
    return filters


def waiting(visit: PageRequest) -> OperatorTransactionFilters:
    """Return the filters of recent money that needs a decision."""
    since = (visit.gateway.clock.now() - RECENT).replace(hour=0, minute=0, second=0, microsecond=0)
    return OperatorTransactionFilters(open=True, since=since)


def waiting_query(visit: PageRequest) -> str:
    filters = waiting(visit)
    return urlencode({"open": "true", "since": "" if filters.since is None else rfc3339(filters.since)})


async def transactions(visit: PageRequest) -> Rendered:
    service, filters, problems = visit.gateway.port(TransactionOperatorService), None, visit.problems
    try:
        filters = read_filters(visit)
        page = await service.page(visit.env, filters, _A_PAGE, within=visit.merchant_id)
    except InvalidFields as refused:
        problems = (*problems, *refused.problems)
        page = await service.page(visit.env, OperatorTransactionFilters(), _A_PAGE, within=visit.merchant_id)
    chosen = {name: value for name in _TEXTS if (value := visit.text(name) or "".join(visit.query.get(name, ())))}
    if visit.merchant_id is not None:
        chosen.pop("merchant", None)
    kept = chosen if filters is None or filters.terms is None else chosen | {"terms": filters.terms}
    typed = {name: (filters and getattr(filters, name)) or visit.text(name) for name in SEALED}
    is_first = filters is None or filters.cursor is None
    first = (
        await service.page(visit.env, waiting(visit), _FIRST, within=visit.merchant_id)
        if is_first and not kept
        else None
    )
    return Rendered(
        "transactions.html",
        {
            "problems": problems,
            "rows": page.rows,
            "waiting": first.rows if first else (),
            "waiting_total": f"{waiting_query(visit)}&{urlencode({'env': visit.env})}",
            "numbers": await service.numbers([*page.rows, *(first.rows if first else ())]),
            "own": visit.merchant_id,
            "next": page.next_cursor and urlencode(kept | {"cursor": page.next_cursor}),
            "newer": urlencode(kept | {"cursor": page.first or "", "env": visit.env}) if is_first else None,
            "here": urlencode(kept),
            "totalled": urlencode(kept | {"env": visit.env}) if kept and filters is not None else "",
            "fields": dict.fromkeys(_TEXTS, "") | chosen | typed,
            "kinds": {kind: KINDS[kind] for kind in get_args(MoneyKind)},
        }
        | await visit.merchant_names([*page.rows, *(first.rows if first else ())]),
    )


async def total(visit: PageRequest) -> Rendered:
    service = visit.gateway.port(TransactionOperatorService)
    found = await service.total(visit.env, read_filters(visit), within=visit.merchant_id)
    return Rendered("transactions_total.html", {"total": found})


async def newer(visit: PageRequest) -> Rendered:
    filters = read_filters(visit)
    count = await visit.gateway.port(TransactionOperatorService).count_newer(
        visit.env, filters, within=visit.merchant_id
    )
    left_out = {"cursor", "env"}
    kept = {name: text for name, texts in visit.query.items() if name not in left_out and (text := "".join(texts))}
    return Rendered("transactions_newer.html", {"count": count, "here": urlencode(kept)})


async def export(visit: PageRequest) -> Response[Any]:
    filters = read_filters(visit)
    merchant_id: str | None = None
    if filters.merchant is not None:
        merchant_id = (await visit.gateway.merchants.require(filters.merchant)).merchant_id
    await visit.gateway.audit.record(
        "transactions.exported",
        merchant_id=merchant_id,
        actor=visit.visitor.actor,
        subject_id=merchant_id,
        env=visit.env,
        detail={"filters": audited(filters)},
    )
    rows = visit.gateway.port(TransactionOperatorService).export(visit.env, filters, within=visit.merchant_id)
    return await stream_csv("transactions.csv", OPERATORS_EXPORTED, rows)


async def search(visit: PageRequest) -> Redirect:
    query = {name: visit.text(name) for name in _TEXTS if visit.text(name)}
    if visit.merchant_id is not None:
        query.pop("merchant", None)
    for name in {"since", UNTIL} & query.keys():
        # The list names a text that is no time.
        with suppress(ValueError):
            query[name] = rfc3339(parse_local(query[name], is_end=name == UNTIL))
    terms = {name: visit.text(name) for name in SEALED if visit.text(name)}
    for name, text in terms.items():
        _refuse_number(visit, name, text)
    if terms:
        query["terms"] = visit.gateway.port(TransactionOperatorService).terms.seal(terms)
    return Redirect(f"{LIST}?{urlencode(query)}" if query else LIST)


async def find(visit: PageRequest, text: str) -> str | None:
    """Return the page of money that pays no payment, by its receipt."""
    receipt = read_receipt(text)
    if receipt is None or receipt.isdigit():
        return None
    row = await visit.gateway.port(TransactionOperatorService).of_receipt(visit.env, receipt)
    if row is None or row["subject_kind"] == "payment" or visit.merchant_id not in {None, owner_of(row)}:
        return None
    return f"{LIST}/{row['transaction_id']}"
