"""What is counted of callbacks, and how many wait."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.meter import Counter, Gauge, Reading, Value
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.api import Kind

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

REASONS = ("source", "token", "signature", "shape", "subject")

CALLBACKS = Counter(
    "mpesa_callbacks_total",
    "Callbacks by what became of them: accepted, repeated, or refused with a reason.",
    ("kind", "verdict", "reason"),
    begins=tuple(
        (kind, *rest)
        for kind in get_args(Kind)
        for rest in (("accepted", ""), ("repeated", ""), *(("refused", reason) for reason in REASONS))
    ),
)

WAITING = Gauge("mpesa_callbacks_waiting", "Callbacks for payments that are not known yet; 10,000 at most.")
OLDEST = Gauge("mpesa_callbacks_oldest_waiting_seconds", "For how long the oldest of them waits; 0 where none does.")
UNMATCHED = Gauge(
    "mpesa_callbacks_unmatched", "Callbacks that nobody could use in all the time they were kept waiting."
)


async def read_waiting(gateway: "Gateway") -> Sequence[Value]:
    """Callbacks that nobody could use, yet or at all."""
    row = await gateway.db.fetchrow(tables.COUNT_WAITING)
    unmatched = await gateway.db.fetchval(tables.COUNT_UNMATCHED)
    count, oldest = (0, None) if row is None else (row["waiting"], row["oldest"])
    return [
        (WAITING, (), count),
        (OLDEST, (), seconds_since(oldest, gateway.clock)),
        (UNMATCHED, (), unmatched),
    ]


COUNTS = (CALLBACKS,)
READINGS = (Reading((WAITING, OLDEST, UNMATCHED), read_waiting),)
