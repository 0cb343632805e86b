"""What the judge knows of payments and transactions, by which rules it decides, and its verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.json_codec import loads
from mpesa_gateway_payments.evidence import Direction, Receiver, ReportedMoney
from mpesa_gateway_payments.states import Charge, Status

_OPEN = frozenset({Status.PENDING.value, Status.FAILED.value})


@dataclass(frozen=True, kw_only=True)
class Payment:
    """A payment as far as it matters to evidence. ``amount`` is in KES; ``phone`` is None once it has been erased."""

    payment_id: str
    merchant_id: str
    env: str
    shortcode: str
    amount: int
    phone: str | None
    reference: str
    reference_is_ours: bool
    created_at: datetime
    status: str
    failure_reason: str | None = None
    outcome_is_final: bool = False
    receipt: str | None = None
    received_receipt: str | None = None
    checkout_request_id: str | None = None
    mismatch: str | None = None
    charge: str = Charge.ACCEPTED.value
    claim: ReportedMoney | None = None
    """A reported success that waits for M-Pesa's own answer."""

    @property
    def is_open(self) -> bool:
        """Return True if the payment is pending or failed."""
        return self.status in _OPEN


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """Money that is known and allocated to no payment, or (``direction`` OUT) money of ours that went out."""

    receipt: str
    direction: Direction | None = Direction.IN
    receiver: Receiver | None = None
    amount: int | None = None
    payer: str | None = None
    reference: str | None = None
    time: tuple[datetime, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Settings of the judge.

    ``match_within`` is how long after a payment was made money can be matched to it, ``confirm_within`` how long
    M-Pesa is asked to confirm a reported success.
    """

    match_within: timedelta = timedelta(minutes=15)
    confirm: Literal["never", "mismatch", "always"] = "never"
    confirm_within: timedelta = timedelta(minutes=15)


By = Literal["push", "receipt", "reference", "rule", "hand"]
"""By what a payment was identified."""


@dataclass(frozen=True)
class PaidBy:
    """The money is this payment's. ``is_other_payer``: the number shown is not the one that was asked."""

    payment_id: str
    by: By
    is_other_payer: bool = False


@dataclass(frozen=True)
class AlreadyKnown:
    """The money is this payment's, and the payment has it."""

    payment_id: str


@dataclass(frozen=True)
class Mismatch:
    """The money names this payment and is not what was asked for; ``is_new`` unless a person waits for it already."""

    payment_id: str
    of: str
    by: By = "push"
    is_new: bool = True


@dataclass(frozen=True)
class Confirm:
    """M-Pesa is to be asked by STK query whether this payment was paid before the report counts."""

    payment_id: str


@dataclass(frozen=True)
class Ask:
    """M-Pesa is to be asked about the receipt: the report shows too little to choose between these payments."""

    payment_ids: tuple[str, ...]


@dataclass(frozen=True)
class Ambiguous:
    """The money may be that of one of these payments; only a person can say."""

    payment_ids: tuple[str, ...]


@dataclass(frozen=True)
class NotFound:
    """No payment can have this money."""


@dataclass(frozen=True)
class NotIncoming:
    """The report is not of money that came in to our receiver, or speaks of another push."""


@dataclass(frozen=True)
class NotAssignable:
    """A person chose a payment that the money cannot be assigned to, and why."""

    payment_id: str
    why: Literal["not_ours", "receiver", "paid", "another", "merchant", "differs"]


Verdict = PaidBy | AlreadyKnown | Mismatch | Confirm | Ask | Ambiguous | NotFound | NotIncoming


_COLUMNS = tuple(name for name in Payment.__dataclass_fields__ if name not in {"phone", "claim"})


def payment_of(row: Row | Mapping[str, Any]) -> Payment:
    """The payment in a row of its table."""
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    values["phone"] = None if row["erased_at"] is not None else row["phone"]
    values["claim"] = None if row["claim"] is None else loads(row["claim"], ReportedMoney)
    return Payment(**values)
