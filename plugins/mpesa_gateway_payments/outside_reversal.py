"""Records what M-Pesa says it reversed and we did not: on its portal, by its support, or by another system."""

from typing import TYPE_CHECKING, Literal

import structlog

from mpesa_gateway.daraja.codes import TransactionState
from mpesa_gateway.db.engine import Row
from mpesa_gateway.money import Kes
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.events import PaymentReversed
from mpesa_gateway_payments.states import Cause
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.views import event_fields

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)


class OutsideReversals:
    """The way to ``reversed`` without a refund of ours. Each call needs an open transaction and a locked payment."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._moves = Transitions(gateway)

    async def take(
        self, row: Row, state: TransactionState, cause: Cause, text: str, reversal_receipt: str | None = None
    ) -> bool:
        """Record that M-Pesa calls a payment reversed; ``row`` is locked. False where nothing changes.

        A payment of which a refund of ours has gone back, or is under way, is left to the refunds: M-Pesa's word does
        not say whose reversal it means. Of a part M-Pesa does not say how much: the payment stays completed, takes no
        refund any more, and waits for a person as one that was reversed in full does.
        """
        of: Literal["whole", "part"] = "part" if state == "partially_reversed" else "whole"
        now = self._gateway.clock.now()
        reversed_ = await self._db.fetchrow(tables.REVERSED_OUTSIDE, row["payment_id"], of, now)
        if reversed_ is None:
            return False
        kind = "reversed" if of == "whole" else "reversal_seen"
        detail = text if reversal_receipt is None else f"{text}, by {reversal_receipt}"
        await self._moves.step(row["payment_id"], now, kind, cause, None, detail)
        amount = Kes(reversed_["amount"]).wire if of == "whole" else None
        await self._gateway.outbox.publish(
            PaymentReversed(
                **event_fields(reversed_),
                refund_id=None,
                refund_amount=amount,
                refunded_amount=Kes(reversed_["refunded"]).wire,
                reversal_receipt=reversal_receipt,
                origin="mpesa",
            )
        )
        log.error("payment_reversed_outside", payment_id=row["payment_id"], of=of)
        return True
