"""Operators' search of payments. No number is in a URL: texts that may be numbers are sealed."""

import re
from contextlib import suppress
from urllib.parse import urlencode

import msgspec

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.daraja.wire import read_receipt
from mpesa_gateway.errors import InvalidFields, Problem
from mpesa_gateway.ids import Ids
from mpesa_gateway.local_time import UNTIL, parse_local
from mpesa_gateway.ops_contract import PageRequest, Permission, Redirect
from mpesa_gateway.phone import NUMBER_IN_TEXT, Msisdn, mask_phones
from mpesa_gateway_payments.operator_service import OperatorPaymentFilters, PaymentOperatorService

TEXTS = ("status", "since", "until", "min_amount", "max_amount", "reference", "shortcode", "search", "merchant")
SEALED = ("search", "reference")
"""Texts that may hold a number."""

_LONGEST = 100
_BY_FORM = "phone numbers are not allowed in a URL: use the search form"
_NOT_BY_PHONE = (
    "your role does not show phone numbers, so you cannot search by one: search by receipt, reference or id, or find "
    "the last three digits in the list"
)
_FEWEST_DIGITS = 4
_MANY_DIGITS = re.compile(r"[0-9]{7}", re.ASCII)
"""No receipt has so many in a row."""


def read_filters(visit: PageRequest) -> OperatorPaymentFilters:
    """Return the filters with the sealed ones opened. Raises InvalidFields for a payer's number in the query.

    Viewers may not search by number: guesses would reveal it.
    """
    filters = visit.read_query(OperatorPaymentFilters)
    if filters.phone is not None:
        raise InvalidFields.field_error("phone", _BY_FORM)
    if filters.search is not None and _phone(filters.search) is not None:
        raise InvalidFields.field_error("search", _BY_FORM if sees_numbers_of(visit) else _NOT_BY_PHONE)
    if filters.terms is not None:
        opened = visit.gateway.port(PaymentOperatorService).terms.open(filters.terms)
        filters = msgspec.structs.replace(filters, **{name: opened.get(name) for name in SEALED})
    for name, value in (("search", filters.search), ("reference", filters.reference)):
        if value:
            _refuse_number(visit, name, value)
    return filters


def sees_numbers_of(visit: PageRequest) -> bool:
    return visit.visitor.may(Permission.NUMBERS)


def filter_value(visit: PageRequest, name: str) -> str:
    return visit.text(name) or "".join(visit.query.get(name, ()))


def _refuse_number(visit: PageRequest, field: str, text: str) -> None:
    """Raise InvalidFields for a viewer's search by a number, also within a key or handle."""
    has_number = _phone(text) is not None or NUMBER_IN_TEXT.search(text) is not None
    is_hidden = has_number or any(mask_phones(spelt) != spelt for spelt in (text, text.upper()))
    if is_hidden and not sees_numbers_of(visit):
        raise InvalidFields.field_error(field, _NOT_BY_PHONE)


async def search(visit: PageRequest) -> Redirect:
    """Redirect to the filtered list; texts that may be numbers are sealed."""
    query = {name: visit.text(name) for name in TEXTS if visit.text(name)}
    for name in {"since", UNTIL} & query.keys():
        # The list names a text that is no time.
        with suppress(ValueError):
            query[name] = rfc3339(parse_local(query[name], is_end=name == UNTIL))
    service = visit.gateway.port(PaymentOperatorService)
    phone, text = visit.text("phone"), query.get("search", "")
    for name, typed in (("phone", phone), ("search", text), ("reference", query.get("reference", ""))):
        _refuse_number(visit, name, typed)
    if phone:
        try:
            query["payer"] = service.seal_payer(Msisdn.parse(phone))
        except ValueError as problem:
            raise InvalidFields([Problem(code="VALIDATION_ERROR", field="phone", message=str(problem))]) from None
    elif text and (number := _phone(text)) is not None:
        del query["search"]
        query["payer"] = service.seal_payer(number)
    if visit.text("held"):
        query["held"] = "true"
    return Redirect(_address(service, query))


async def find(visit: PageRequest, text: str) -> str | None:
    _refuse_number(visit, "text", text)
    service = visit.gateway.port(PaymentOperatorService)
    phone = _phone(text)
    if phone is not None:
        return _address(service, {"payer": service.seal_payer(phone)})
    return _address(service, {"search": text[:_LONGEST]}) if text else None


def _address(service: PaymentOperatorService, query: dict[str, str]) -> str:
    terms = {name: query[name] for name in SEALED if name in query}
    if any(may_be_number(text) for text in terms.values()):
        query = {name: text for name, text in query.items() if name not in SEALED}
        query["terms"] = service.terms.seal(terms)
    return f"payments?{urlencode(query)}" if query else "payments"


def may_be_number(text: str) -> bool:
    """Return True for four digits or more, except in a payment id or receipt."""
    if sum(letter.isdigit() for letter in text) < _FEWEST_DIGITS or Ids.range_of_start(text.strip(), "pay") is not None:
        return False
    receipt = read_receipt(text)
    return receipt is None or receipt.isdigit() or _MANY_DIGITS.search(receipt) is not None


def _phone(text: str) -> Msisdn | None:
    if read_receipt(text) is not None and not text.strip().isdigit():
        return None
    try:
        return Msisdn.parse(text)
    except ValueError:
        return None
