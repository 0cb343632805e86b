"""Money that went back to its payer and may be the money of a payment without a receipt."""

from collections.abc import Mapping
from typing import Any

from mpesa_gateway.db.engine import Database
from mpesa_gateway.money import Kes
from mpesa_gateway_payments.evidence import Direction, Evidence, Proof, Receiver, Source
from mpesa_gateway_payments.matching import may_pay
from mpesa_gateway_payments.verdicts import payment_of

# raw SQL: join
RETURNED = """
SELECT receipt, account_number, payer, payer_digest, occurred_at FROM transaction JOIN receiver USING (receiver_id, env)
WHERE env = $1 AND number = $2 AND amount_cents = $3::bigint * 100 AND conflict_id IS NULL
    AND (refund_reserved_cents + refunded_cents > 0 OR reversed_outside IS NOT NULL)
"""


async def is_money_returned(db: Database, row: Mapping[str, Any]) -> bool:
    """Return True if money that may be the payment's was refunded without it, or is being refunded."""
    payment, receiver = payment_of(row), Receiver(row["env"], row["shortcode"])
    return any(
        may_pay(
            Evidence(
                source=Source.STATUS_QUERY,
                proof=Proof.ANSWER,
                direction=Direction.IN,
                receiver=receiver,
                receipt=one["receipt"],
                reference=one["account_number"],
                amount=Kes(row["amount"]),
                payer=one["payer_digest"] or one["payer"],
                time=(one["occurred_at"],),
            ),
            payment,
        )
        for one in await db.read_unlocked(RETURNED, row["env"], row["shortcode"], row["amount"])
    )
