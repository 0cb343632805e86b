"""Evidence from statement lines, for the judge of payments."""

import re
from datetime import datetime
from typing import Any

from mpesa_gateway.daraja.wire import StatementLine, read_cents
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.money import Kes
from mpesa_gateway_payments.api import (
    Direction,
    Evidence,
    Proof,
    Receiver,
    Source,
    Zone,
    in_zone,
    is_negative,
    possible_times,
    read_amount,
    read_kind,
    without_sign,
)
from mpesa_gateway_reconciliation import matching_queries
from mpesa_gateway_transactions.api import ReportedTransaction


async def zone_of(db: Database, env: str, shortcode: str) -> Zone | None:
    """Return the zone of the latest proofs; None without proofs or if they contradict."""
    zones: set[Zone] = {row["zone"] for row in await db.fetch(matching_queries.ZONES, env, shortcode)}
    return zones.pop() if len(zones) == 1 else None


def possible_times_of(
    line: StatementLine, run: Row, zone: Zone | None, now: datetime
) -> tuple[tuple[datetime, ...], bool]:
    """Return a line's possible times, and False if none is possible.

    A line without a readable time has the end of the window and False: only its receipt or our own reference settles
    it.
    """
    readings = in_zone(line.moments, zone) or (run["window_end"],)
    if not line.moments:
        return readings, False
    found = possible_times(readings, now=now, since=run["window_start"], until=run["window_end"])
    return found or readings, bool(found)


def reported_transaction(run: Row, line: StatementLine, occurred_at: datetime) -> ReportedTransaction:
    direction, _ = read_kind(line.kind)
    is_out = direction is Direction.OUT or is_negative(line.amount_text)
    return ReportedTransaction(
        source="pull",
        env=run["env"],
        number=run["shortcode"],
        merchant_id=run["merchant_id"],
        direction="out" if is_out else "in",
        receipt=line.receipt,
        occurred_at=occurred_at,
        amount_cents=read_cents(without_sign(line.amount_text) if is_out else line.amount_text),
        payer=line.phone,
        account_number=line.reference,
        kind=line.kind,
    )


def is_of_unknown_direction(line: Row) -> bool:
    return read_kind(line["kind"])[0] is None and not is_negative(line["amount_text"])


def answered_transaction(line: Row) -> ReportedTransaction:
    """Return the money in of which a status answer names the receiver as the credit party."""
    return ReportedTransaction(
        source="status",
        env=line["env"],
        number=line["shortcode"],
        merchant_id=line["merchant_id"],
        direction="in",
        receipt=line["receipt"],
        occurred_at=line["paid_at"],
        amount_cents=None if line["amount"] is None else line["amount"] * 100,
    )


def evidence_of(row: Row, proof: Proof, zone: Zone | None = None) -> Evidence:
    direction, is_called_a_tills = read_kind(row["kind"])
    values: dict[str, Any] = {
        "source": Source.STATEMENT,
        "proof": Proof.ANSWER if proof is Proof.WINDOW and row["answered_at"] is not None else proof,
        "direction": Direction.OUT if row["is_to_us"] is False or is_negative(row["amount_text"]) else direction,
        "receiver": Receiver(row["env"], row["shortcode"], is_called_a_tills and row["is_of_till"]),
        "receipt": row["receipt"],
        "reference": row["reference"],
        "amount": read_amount(None if row["amount"] is None else Kes(row["amount"]), row["amount_text"]),
        "payer": row["phone"],
        "time": in_zone(tuple(row["moments"]), zone) if row["is_timed"] else (),
        # Contradicts every payment.
        "is_impossible": not row["is_timed"],
    }
    return Evidence(**values)


_RECEIPT = re.compile(r"(?<![A-Z0-9])[A-Z0-9]{6,20}(?![A-Z0-9])", re.ASCII)


def named_receipts(row: Row) -> list[str]:
    """Return possible receipts of the money that a reversal sent back."""
    kind = row["kind"] or ""
    if read_kind(kind)[0] is not Direction.OUT or "revers" not in kind.casefold():
        return []
    texts = (row["receipt"], row["reference"] or "", kind)
    return sorted({found for text in texts for found in _RECEIPT.findall(text.upper())})
