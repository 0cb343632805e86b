"""Finds the payment that money on a statement belongs to, and completes it: never by a guess."""

from typing import TYPE_CHECKING

from mpesa_gateway.phone import Msisdn, visible_pattern
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.api import Candidate, Finding, Match, Statement
from mpesa_gateway_payments.states import Cause
from mpesa_gateway_payments.transitions import Told, Transitions

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


class PaymentRecovery:
    """The port that reconciliation and status checks complete payments through."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._moves = Transitions(gateway)

    async def match(self, merchant_id: str, env: Env, shortcode: str, line: Statement) -> Match:
        """See the port."""
        known = await self._db.fetchrow(tables.FIND_ANYBODYS_BY_RECEIPT, env, line.receipt, merchant_id)
        if known is not None:
            # Where it is another merchant's, who has the same shortcode, it is nobody's here.
            return Match("receipt", (known["payment_id"],) if known["merchant_id"] == merchant_id else ())
        reference = (line.reference or "").strip().upper()
        if reference:
            own = await self._db.fetchrow(tables.FIND_ANYBODYS_BY_OWN_REFERENCE, reference, env, shortcode)
            if own is not None:
                return Match("reference", (own["payment_id"],) if own["merchant_id"] == merchant_id else ())
        if line.amount is None or not line.moments:
            return Match("rule")
        rows = await self._db.fetch(
            tables.CANDIDATES,
            env,
            shortcode,
            int(line.amount),
            min(line.moments) - Match.AFTER,
            max(line.moments) + Match.BEFORE,
            list(line.moments),
            Match.AFTER,
            Match.BEFORE,
            None if line.phone is None else visible_pattern(line.phone),
            reference,
            merchant_id,
        )
        own_rows = [row for row in rows if row["merchant_id"] == merchant_id]
        payment_ids = tuple(row["payment_id"] for row in own_rows)
        if len(rows) != 1 or not own_rows:
            return Match("rule", payment_ids, is_ambiguous=bool(own_rows))
        (row,) = own_rows
        candidate = Candidate(
            payment_id=row["payment_id"],
            phone=Msisdn(row["phone"]),
            reference=row["reference"],
            created_at=row["created_at"],
        )
        return Match("rule", payment_ids, candidate)

    async def settle(self, merchant_id: str, env: Env, payment_id: str, line: Statement) -> Finding:
        """See the port."""
        cause = Cause.STATEMENT if line.source == "statement" else Cause.STATUS_QUERY
        told = Told(
            receipt=line.receipt,
            amount=line.amount,
            amount_text=line.amount_text,
            phone=line.phone,
            text="found on M-Pesa's statement",
        )
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK, payment_id)
            if row is None or (row["merchant_id"], row["env"]) != (merchant_id, env):
                return "not_found"
            if row["receipt"] == line.receipt:
                if row["amount"] == line.amount:
                    return "already_known"
                # A callback said that this receipt brought what was asked for, and the statement says otherwise.
                await self._moves.hold(row, "amount", told, cause)
                return "mismatched"
            if row["receipt"] is not None and row["received_receipt"] == line.receipt:
                return "mismatched"
            if row["receipt"] is not None:
                # Another payment by the same payer under the same reference: money that nobody asked for through us.
                return "ambiguous"
            outcome = await self._moves.take_money(row, told, cause)
        findings: dict[str, Finding] = {"completed": "recovered", "known": "already_known"}
        return findings.get(outcome, "mismatched")
