"""The source of a refund: a payment, or a transaction without one."""

from dataclasses import dataclass

from piccolo.columns.combination import Where

from mpesa_gateway.db.engine import Found
from mpesa_gateway.errors import InvalidFields, Problem
from mpesa_gateway_refunds.schemas import CreateRefund
from mpesa_gateway_refunds.tables import RefundRow

_ONE = "send payment_id or transaction_id, and not both: a payment is refunded by its payment_id"


@dataclass(frozen=True)
class RefundSource:
    """Exactly one is not None."""

    payment_id: str | None
    transaction_id: str | None

    @property
    def condition(self) -> Where:
        if self.payment_id is not None:
            return RefundRow.payment_id == self.payment_id
        return RefundRow.transaction_id == self.transaction_id

    @property
    def named(self) -> dict[str, str]:
        """Return its id by the name of its field."""
        both = {"payment_id": self.payment_id, "transaction_id": self.transaction_id}
        return {name: value for name, value in both.items() if value is not None}

    @property
    def noun(self) -> str:
        return "payment" if self.payment_id is not None else "transaction"


def source_of(row: Found) -> RefundSource:
    return RefundSource(row["payment_id"], row["transaction_id"])


def read_source(body: CreateRefund) -> RefundSource:
    """Raises InvalidFields unless the body has exactly one source."""
    if (body.payment_id is None) == (body.transaction_id is None):
        raise InvalidFields(
            [Problem(code="VALIDATION_ERROR", field=name, message=_ONE) for name in ("payment_id", "transaction_id")]
        )
    return RefundSource(body.payment_id, body.transaction_id)
