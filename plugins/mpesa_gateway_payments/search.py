"""Search of payments by whole values, and by the start or end of some. Each way has an index."""

import re
from contextlib import suppress

from mpesa_gateway.db.keyset import Conditions
from mpesa_gateway.ids import Ids
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.references import OWN_REFERENCE

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
    parts = ["payment_id = {}", tables.HAS_HANDLE, "receipt = {}"]
    values = [text, text, upper]
    if found.merchant_id is None:
        parts.append(tables.HAS_KEY_OF_ANY)
        values += [str(found.env), text]
    else:
        parts.append(tables.HAS_KEY)
        values += [found.merchant_id, str(found.env), text]
    for spelt in sorted({text, upper}):
        alike = reference_parts(spelt)
        parts += alike
        values += [spelt] * len(alike)
    with suppress(ValueError):
        values.append(str(Msisdn.parse(text)))
        parts.append(tables.HAS_PHONE)
    found.add_way(" OR ".join(parts), *values)
    _add_parts(found, text, sees_numbers=sees_numbers)


def _add_parts(found: Conditions, text: str, *, sees_numbers: bool) -> None:
    upper = text.upper()
    starts: list[str] = []
    bounds: list[str] = []
    for spelt in sorted({text, upper}):
        if _REFERENCE_START.fullmatch(spelt):
            starts.append(tables.REFERENCE_STARTS + ("" if sees_numbers else f" AND {tables.WITHOUT_NUMBERS}"))
            bounds += _range(spelt)
    if _OWN_START.fullmatch(upper):
        starts.append(tables.OWN_REFERENCE_STARTS)
        bounds += _range(upper)
    if starts:
        # One way: Postgres knows how many references have a start, but not how many of those are ours.
        found.add_way(" OR ".join(starts), *bounds)
    if _RECEIPT_START.fullmatch(upper):
        found.add_way(tables.RECEIPT_STARTS, *_range(upper))
    if (ids := Ids.range_of_start(text, "pay")) is not None:
        found.add_way("payment_id BETWEEN {} AND {}", *ids)
    digits = re.sub(r"[ -]", "", text)
    if sees_numbers and _LAST_DIGITS.fullmatch(digits):
        found.add_way(tables.PHONE_ENDS, *_range(digits[::-1]))
    if 0 < len(text) <= _LONGEST_VALUE:
        if found.merchant_id is None:
            found.add_way(tables.HAS_METADATA_OF_EACH, *[str(found.env), text] * 2)
        else:
            found.add_way(tables.HAS_METADATA, *[found.merchant_id, str(found.env), text] * 2)


def _range(start: str) -> tuple[str, str]:
    """Return the bounds of all texts with this start, in the collation "C"."""
    return start, start[:-1] + chr(ord(start[-1]) + 1)
