"""The judge's inputs and verdicts."""

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
    """A payment's facts for the judge. ``amount`` is in KES; ``phone`` is None after an erasure."""

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
    """A reported success that awaits confirmation."""

    @property
    def is_open(self) -> bool:
        return self.status in _OPEN


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """Unallocated money, or (``direction`` OUT) our own outgoing money."""

    receipt: str
    direction: Direction | None = Direction.IN
    receiver: Receiver | None = None
    amount: int | None = None
    payer: str | None = None
    reference: str | None = None
    time: tuple[datetime, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rules:
    """``match_within``: time from a payment's creation in which money can match it.

    ``confirm_within``: time for M-Pesa to confirm a reported success.
    """

    match_within: timedelta = timedelta(minutes=15)
    confirm: Literal["never", "mismatch", "always"] = "never"
    confirm_within: timedelta = timedelta(minutes=15)


By = Literal["push", "receipt", "reference", "rule", "hand"]
"""The fact that identified a payment."""


@dataclass(frozen=True)
class PaidBy:
    """The money is this payment's. ``is_other_payer``: from another number than requested."""

    payment_id: str
    by: By
    is_other_payer: bool = False


@dataclass(frozen=True)
class AlreadyKnown:
    """The payment already has this money."""

    payment_id: str


@dataclass(frozen=True)
class Mismatch:
    """The money names this payment and differs from the request."""

    payment_id: str
    of: str
    by: By = "push"
    is_new: bool = True


@dataclass(frozen=True)
class Confirm:
    """The report needs confirmation by an STK query."""

    payment_id: str


@dataclass(frozen=True)
class NeedsQuery:
    """A status query about the receipt must decide between these payments."""

    payment_ids: tuple[str, ...]


@dataclass(frozen=True)
class Ambiguous:
    """A person has to decide between these payments."""

    payment_ids: tuple[str, ...]


@dataclass(frozen=True)
class NotFound:
    """No payment can have this money."""


@dataclass(frozen=True)
class NotIncoming:
    """The money was not received by our receiver, or names another push."""


@dataclass(frozen=True)
class NotAssignable:
    """The money cannot be assigned to the chosen payment."""

    payment_id: str
    reason: Literal["not_ours", "receiver", "paid", "another", "merchant", "differs"]


Verdict = PaidBy | AlreadyKnown | Mismatch | Confirm | NeedsQuery | Ambiguous | NotFound | NotIncoming


_COLUMNS = tuple(name for name in Payment.__dataclass_fields__ if name not in {"phone", "claim"})


def payment_of(row: Row | Mapping[str, Any]) -> Payment:
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    values["phone"] = None if row["erased_at"] is not None else row["phone"]
    values["claim"] = None if row["claim"] is None else loads(row["claim"], ReportedMoney)
    return Payment(**values)
