"""Finds the payment that money on a statement belongs to, and completes it: never by a guess."""

from datetime import timedelta
from typing import TYPE_CHECKING

from mpesa_gateway.phone import may_be
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.api import Finding, Match, Statement
from mpesa_gateway_payments.states import Cause
from mpesa_gateway_payments.transitions import Told, Transitions

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

_BEFORE = timedelta(minutes=2)
"""How much earlier than our record of the payment M-Pesa's clock may put the money."""

_AFTER = timedelta(hours=24)
"""How much later than the request a payer may still have paid."""


class PaymentRecovery:
    """The port that reconciliation and status checks complete payments through."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._moves = Transitions(gateway)

    async def match(self, merchant_id: str, env: Env, shortcode: str, line: Statement) -> Match:
        """See the port."""
        known = await self._db.fetchval(tables.FIND_ID_BY_RECEIPT, merchant_id, env, line.receipt)
        if known is not None:
            return Match("receipt", (known,))
        reference = (line.reference or "").strip()
        if reference:
            own = await self._db.fetchval(tables.FIND_BY_OWN_REFERENCE, merchant_id, env, reference.upper())
            if own is not None:
                return Match("reference", (own,))
        if line.amount is None or not line.moments:
            return Match("rule", ())
        rows = await self._db.fetch(
            tables.CANDIDATES,
            merchant_id,
            env,
            int(line.amount),
            shortcode,
            min(line.moments) - _AFTER,
            max(line.moments) + _BEFORE,
        )
        return Match(
            "rule",
            tuple(
                row["payment_id"]
                for row in rows
                if (line.phone is None or may_be(line.phone, row["phone"]))
                and (not reference or reference.upper() == row["reference"].upper())
                and any(-_BEFORE <= moment - row["created_at"] <= _AFTER for moment in line.moments)
            ),
        )

    async def settle(self, payment_id: str, line: Statement) -> Finding:
        """See the port."""
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK, payment_id)
            if row is None:
                return "not_found"
            if row["receipt"] == line.receipt:
                return "already_known" if row["amount"] == line.amount else "mismatched"
            if row["receipt"] is not None and row["received_receipt"] == line.receipt:
                return "mismatched"
            if row["receipt"] is not None:
                # Another payment by the same payer under the same reference: money that nobody asked for through us.
                return "ambiguous"
            told = Told(
                receipt=line.receipt,
                amount=line.amount,
                amount_text=line.amount_text,
                phone=line.phone,
                text="found on M-Pesa's statement",
            )
            outcome = await self._moves.take_money(row, told, Cause.STATEMENT)
        findings: dict[str, Finding] = {"completed": "recovered", "known": "already_known"}
        return findings.get(outcome, "mismatched")
