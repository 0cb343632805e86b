"""Erasure: a case has the confirmations of its transactions, and the reverse, by their receipts."""

from collections.abc import Mapping, Sequence

from mpesa_gateway.erasure import ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b import account_tables


async def _widen(gateway: Runtime, case: ErasureCase) -> set[str]:
    rows = await gateway.db.fetch(account_tables.OF_CASE, case.named, case.named, case.merchant_id)
    return {name for row in rows for name in (row["transaction_id"], row["receipt"])}


async def _keeps(gateway: Runtime, case: ErasureCase) -> Sequence[str]:
    """An account number is the merchant's; it may be the payer's phone number."""
    rows = await gateway.db.fetch(account_tables.NUMBERS_OF_CASE, case.named)
    return [
        f"the account number {row['account_id']} is this phone number: delete it, or PUT another one"
        for row in rows
        if case.number.is_in(row["number"])
    ]


async def _erase(_: Runtime, __: ErasureCase) -> Mapping[str, int]:
    # Transactions and callbacks are erased by their plugins.
    return {}


CONFIRMATIONS = Eraser(widen=_widen, erase=_erase, keeps=_keeps)
