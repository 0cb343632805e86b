"""Erasure of a payer's phone number from transactions; amounts stay."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpesa_gateway.erasure import ERASED, ErasedNumber, ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_transactions.tables import TransactionRow

_PAGE = 100

_TEXTS = ("payer_name", "account_number")

# raw SQL: array
_OF_CASE = """
SELECT * FROM transaction
WHERE transaction_id = ANY($1::uuid[]) OR conflict_id = ANY($1::uuid[])
    OR (subject_kind IN ('payment', 'refund', 'payout') AND subject_id = ANY($1::uuid[]))
FOR UPDATE NOWAIT
"""


async def _find(gateway: Runtime, merchant_id: str, number: ErasedNumber, after: str) -> Sequence[str]:
    """Other transactions are found through their subjects."""
    rows: list[dict[str, Any]] = await gateway.db.run(
        TransactionRow.select(TransactionRow.transaction_id)
        .where(
            TransactionRow.merchant_id == merchant_id,
            TransactionRow.payer.is_in(list(number.forms)) | (TransactionRow.payer_digest == number.forms[0]),
            TransactionRow.subject_id.is_null() | TransactionRow.subject_kind.not_in(["payment", "refund", "payout"]),
            TransactionRow.transaction_id > after,
        )
        .order_by(TransactionRow.transaction_id)
        .limit(_PAGE)
    )
    return [row["transaction_id"] for row in rows]


async def _widen(gateway: Runtime, case: ErasureCase) -> set[str]:
    rows = await gateway.db.fetch(_OF_CASE, case.named)
    return {row["transaction_id"] for row in rows}


async def _objects(gateway: Runtime, case: ErasureCase) -> str | None:
    # By the time of recording, which is in the id: M-Pesa's own time may be unreadable or wrong.
    least = gateway.ids.least("txn", case.before)
    for row in await gateway.db.fetch(_OF_CASE, case.named):
        if row["transaction_id"] >= least:
            return f"{row['transaction_id']} is too recent"
    return None


async def _erase(gateway: Runtime, case: ErasureCase) -> Mapping[str, int]:
    count = 0
    for row in await gateway.db.fetch(_OF_CASE, case.named):
        cleaned: dict[Any, Any] = {name: row[name] and case.number.without(row[name]) for name in _TEXTS}
        # A NULL would be filled by the next report of the receipt. Money of the case's payments is the payer's.
        is_hidden = row["payer"] is None and row["direction"] == "in" and row["subject_id"] in case.ids
        cleaned["payer"] = ERASED if is_hidden or case.number.is_in(row["payer"]) else row["payer"]
        is_digest = row["payer_digest"] == case.number.forms[0]
        if is_digest or cleaned["payer"] == ERASED:
            cleaned |= {"payer": ERASED, "payer_name": None}
        cleaned["payer_digest"] = None if is_digest or cleaned["payer"] == ERASED else row["payer_digest"]
        if any(cleaned[name] != row[name] for name in cleaned):
            await gateway.db.run(
                TransactionRow.update(cleaned).where(TransactionRow.transaction_id == row["transaction_id"])
            )
            count += 1
    return {"transactions": count}


TRANSACTIONS = Eraser(find=_find, widen=_widen, objects=_objects, erase=_erase)
