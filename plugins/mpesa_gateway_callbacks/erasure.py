"""Erases a payer's phone number, and the name that Daraja puts beside it, from the callbacks about their payments."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mpesa_gateway.plugin import Eraser
from mpesa_gateway.privacy import Case, Number
from mpesa_gateway_callbacks import tables

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

_PAGE = 100


async def _find(gateway: "Gateway", merchant_id: str, number: Number, after: str) -> Sequence[str]:
    """Refused callbacks about nothing that we know: whoever sent them, the number is to go."""
    pattern = f"%{number.forms[-1]}%"
    rows = await gateway.db.fetch(tables.LOOSE_REFUSED, merchant_id, pattern, after, _PAGE)
    return [row["refused_id"] for row in rows]


async def _objects(gateway: "Gateway", case: Case) -> str | None:
    callback_id = await gateway.db.fetchval(tables.WAITING_OF_CASE, case.named)
    if callback_id is not None:
        return f"{callback_id} has been received and could not be used yet"
    for row in await gateway.db.fetch(tables.REFUSED_OF_CASE, case.named):
        if row["at"] >= case.before:
            return f"{row['refused_id']}, which was refused, is too recent"
    return None


async def _erase(gateway: "Gateway", case: Case) -> Mapping[str, int]:
    count = 0
    for row in await gateway.db.fetch(tables.OF_CASE, case.named):
        body = case.number.without_in_json(row["body"])
        if body != row["body"]:
            # From the old fingerprint the number could be found again, by trying all that there are.
            await gateway.db.execute(tables.ERASE, row["callback_id"], body, gateway.ids.token(32))
            count += 1
    refused = 0
    for row in await gateway.db.fetch(tables.REFUSED_OF_CASE, case.named):
        if case.number.without_in_json(row["original"]) != row["original"]:
            # It cannot be replayed any more; what is shown of it has been masked from the beginning.
            await gateway.db.execute(tables.ERASE_REFUSED, row["refused_id"])
            refused += 1
    return {"callbacks": count, "refused callbacks": refused}


CALLBACKS = Eraser(find=_find, objects=_objects, erase=_erase)
