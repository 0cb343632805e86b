"""Search of payments by whole values, and by the start or end of some. Each way has an index and a bound."""

import re

from mpesa_gateway.db.keyset import Conditions
from mpesa_gateway.ids import Ids
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments import tables

# raw SQL: join - bounded ranges of several indexes, for operators of each merchant, in one statement.

OWN_REFERENCE = re.compile("[A-Z2-7]{12}")
"""The form of our own references; a merchant's may have it too."""

MOST_FOUND = 200
"""Payments found in each way by a part of a value. More characters narrow a search."""

_MOST_NEAR = 2000
"""Receipts of all merchants that are read for one merchant's."""

_RECEIPT_START = re.compile("[A-Z0-9]{4,20}", re.ASCII)
_OWN_START = re.compile("[A-Z2-7]{4,12}")
_REFERENCE_START = re.compile("[ -~]{3,12}")
_LAST_DIGITS = re.compile("[0-9]{4,6}", re.ASCII)
_LONGEST_VALUE = 100


def reference_parts(reference: str) -> list[str]:
    """Our references and merchants' references have an index each."""
    parts = ["reference = {} AND NOT reference_is_ours"]
    if OWN_REFERENCE.fullmatch(reference):
        parts.append("reference = {} AND reference_is_ours")
    return parts


def add_search(found: Conditions, text: str, *, sees_numbers: bool) -> None:
    """Find a whole receipt, id, reference, key, phone number or value of the metadata, or a part of some.

    Without ``sees_numbers``, no part of a phone number is found.
    """
    upper = text.upper()
    values: list[str | None]
    parts = [
        "payment_id = {}",
        tables.HAS_HANDLE,
        "receipt = {}",
    ]
    values = [text, text, upper]
    if found.merchant_id is None:
        parts.append(tables.HAS_KEY_OF_ANY)
        values += [found.env, text]
    else:
        parts.append(tables.HAS_KEY)
        values += [found.merchant_id, found.env, text]
    for spelt in sorted({text, upper}):
        alike = reference_parts(spelt)
        parts += alike
        values += [spelt] * len(alike)
    try:
        values.append(str(Msisdn.parse(text)))
        parts.append(tables.HAS_PHONE)
    except ValueError:
        pass
    in_part = _in_part(found, text, sees_numbers=sees_numbers)
    parts.append(f"payment_id = ANY(ARRAY({' UNION ALL '.join(sql for sql, _ in in_part)}))" if in_part else "false")
    values += [value for _, more in in_part for value in more]
    found.add("(" + " OR ".join(parts) + ")", *values)


def _in_part(found: Conditions, text: str, *, sees_numbers: bool) -> list[tuple[str, list[str | None]]]:
    """Return queries of ids with their values. Each reads a range of an index, up to a limit."""
    ways: list[tuple[str, list[str | None]]] = []
    upper = text.upper()

    def add(condition: str, order: str, *values: str) -> None:
        ways.append(_of_merchants(found, condition, order, values))

    for spelt in sorted({text, upper}):
        if _REFERENCE_START.fullmatch(spelt):
            query, values = _of_merchants(found, tables.REFERENCE_STARTS, "reference", _range(spelt))
            ways.append((query if sees_numbers else f"({tables.WITHOUT_NUMBERS.format(query)})", values))
    if _OWN_START.fullmatch(upper):
        ways.append((f"({tables.OWN_REFERENCE_STARTS} LIMIT {MOST_FOUND})", [*_range(upper)]))
    if _RECEIPT_START.fullmatch(upper):
        near = f"({tables.RECEIPT_STARTS} LIMIT {MOST_FOUND if found.merchant_id is None else _MOST_NEAR})"
        ways.append((near, [found.env, *_range(upper)]))
    if (ids := Ids.range_of_start(text, "pay")) is not None:
        add("payment_id BETWEEN {} AND {}", "payment_id DESC", *ids)
    digits = re.sub(r"[ -]", "", text)
    if sees_numbers and _LAST_DIGITS.fullmatch(digits):
        add(tables.PHONE_ENDS, "reverse(phone)", *_range(digits[::-1]))
    if 0 < len(text) <= _LONGEST_VALUE:
        if found.merchant_id is None:
            add(tables.HAS_METADATA_OF_EACH, "", str(found.env), text)
        else:
            add(tables.HAS_METADATA, "", found.merchant_id, str(found.env), text)
    return ways


def _of_merchants(
    found: Conditions, condition: str, order: str, values: tuple[str, ...]
) -> tuple[str, list[str | None]]:
    ordered = f"{condition} ORDER BY {order}" if order else condition
    query = f"(SELECT payment_id FROM payment WHERE merchant_id = {{}} AND env = {{}} AND {ordered} LIMIT {MOST_FOUND})"  # noqa: S608 - our own clauses; each value is a parameter
    if found.merchant_id is not None:
        return query, [found.merchant_id, found.env, *values]
    each = query.replace("merchant_id = {}", "merchant_id = merchant.merchant_id", 1)
    query = f"(SELECT each.payment_id FROM merchant CROSS JOIN LATERAL {each} AS each LIMIT {MOST_FOUND})"  # noqa: S608 - as above
    return query, [found.env, *values]


def _range(start: str) -> tuple[str, str]:
    """Return the bounds of all texts with this start, in the collation "C"."""
    return start, start[:-1] + chr(ord(start[-1]) + 1)
