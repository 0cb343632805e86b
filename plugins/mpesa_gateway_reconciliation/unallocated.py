"""Unallocated money on statements."""

from collections.abc import Sequence

from mpesa_gateway.db.engine import Database
from mpesa_gateway_payments.api import (
    Proof,
    Transaction,
    WantedMoney,
    Zone,
)
from mpesa_gateway_reconciliation import matching_queries
from mpesa_gateway_reconciliation.line_evidence import evidence_of, zone_of


class UnallocatedMoneyReader:
    """The port through which payments find unallocated money."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def find(self, env: str, wanted: Sequence[WantedMoney]) -> Sequence[Transaction]:
        rows = await self._db.fetch(
            matching_queries.UNALLOCATED,
            env,
            [one.number for one in wanted],
            [one.amount for one in wanted],
            [one.likely for one in wanted],
        )
        found: dict[str, Transaction] = {}
        zones: dict[str, Zone | None] = {}
        for number in {row["shortcode"] for row in rows}:
            zones[number] = await zone_of(self._db, env, number)
        for row in rows:
            report = evidence_of(row, Proof.WINDOW, zones[row["shortcode"]])
            found[row["receipt"]] = Transaction(
                receipt=row["receipt"],
                direction=report.direction,
                receiver=report.receiver,
                amount=row["amount"],
                payer=report.payer,
                reference=report.reference,
                time=report.time,
            )
        return list(found.values())
