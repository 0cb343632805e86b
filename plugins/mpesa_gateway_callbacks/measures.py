"""What is counted of callbacks, and how many wait."""

from collections.abc import Iterable, Sequence

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.env import ENVS
from mpesa_gateway.meter import OTHER, Counter, Gauge, Value
from mpesa_gateway.readings import Reading
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks import tables

REASONS = ("kind", "size", "source", "token", "signature", "shape", "doubled", "subject")

CALLBACKS = Counter(
    "mpesa_callbacks_total",
    "Callbacks by what became of them: accepted, repeated, or refused with a reason.",
    ("kind", "verdict", "reason"),
)


def combinations(kinds: Iterable[str]) -> list[tuple[str, ...]]:
    """The labels of ``CALLBACKS`` for callbacks of these kinds."""
    verdicts = (("accepted", ""), ("repeated", ""), *(("refused", reason) for reason in REASONS))
    return [(kind, *verdict) for kind in (*kinds, OTHER) for verdict in verdicts]


WAITING = Gauge(
    "mpesa_callbacks_waiting",
    "Callbacks for payments that are not known yet; 10,000 at most. One whose env is not known counts in both.",
    ("env",),
)
OLDEST = Gauge(
    "mpesa_callbacks_oldest_waiting_seconds", "For how long the oldest of them waits; 0 where none does.", ("env",)
)
UNMATCHED = Gauge(
    "mpesa_callbacks_unmatched",
    "Callbacks that matched nothing in all the time they were kept waiting. One whose env is not known counts in both.",
    ("env",),
)


async def read_waiting(gateway: Runtime) -> Sequence[Value]:
    """Callbacks of each env that match nothing, yet or for good."""
    values: list[Value] = []
    for env in ENVS:
        row = await gateway.db.fetchrow(tables.COUNT_WAITING, env)
        count, oldest = (0, None) if row is None else (row["waiting"], row["oldest"])
        values += [
            (WAITING, (env,), count),
            (OLDEST, (env,), seconds_since(oldest, gateway.clock)),
            (UNMATCHED, (env,), await gateway.db.fetchval(tables.COUNT_UNMATCHED, env)),
        ]
    return values


COUNTS = (CALLBACKS,)
READINGS = (Reading((WAITING, OLDEST, UNMATCHED), read_waiting),)
