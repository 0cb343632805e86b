"""What is counted of payments as they end, and how they do of late: by the tally, which is kept beside them."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.meter import LONG, Counter, Gauge, Histogram, Meter, Value
from mpesa_gateway.readings import Reading
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments import tables, tally_sql
from mpesa_gateway_payments.result_codes import FAILURE_REASONS
from mpesa_gateway_payments.states import Status

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_WINDOWS = {"2h": _HOUR, "24h": _DAY - _HOUR}
"""How far before the present hour a window begins."""

ENDED = Counter(
    "mpesa_payments_ended_total",
    "Payments that came to an end in this process: completed, or failed with a reason.",
    ("env", "outcome", "reason"),
    begins=tuple(
        (env, *rest) for env in ENVS for rest in (("completed", ""), *(("failed", why) for why in FAILURE_REASONS))
    ),
)
RESULT_SECONDS = Histogram(
    "mpesa_payment_result_seconds",
    "From asking for a payment to knowing how it ended.",
    ("env", "outcome"),
    bounds=LONG,
)

PAYMENTS = Gauge(
    "mpesa_payments",
    "Payments by the time they were asked for (24h; 2h: this hour and the one before): asked, paid, failed.",
    ("env", "window", "outcome"),
)
FAILED = Gauge(
    "mpesa_payments_failed", "Payments of these windows that failed, by reason.", ("env", "window", "reason")
)
TAKEN = Gauge("mpesa_payments_taken_kes", "KES that payments of these windows brought.", ("env", "window"))
RETURNED = Gauge("mpesa_payments_returned_kes", "KES of these that went back to payers.", ("env", "window"))
OPEN = Gauge("mpesa_payments_open", "Payments that have not ended, or are asked about; 10,000 at most.", ("env",))
OLDEST = Gauge("mpesa_payments_oldest_open_seconds", "The age of the oldest of them; 0 where there is none.", ("env",))
HELD = Gauge("mpesa_payments_held", "Payments that wait for a person: the money is not what was asked for.", ("env",))


def count_ended(meter: Meter, row: Mapping[str, Any], reason: str | None, at: datetime) -> None:
    """A payment has ended: completed, or failed for this reason. ``row`` is the payment."""
    outcome = (Status.COMPLETED if reason is None else Status.FAILED).value
    meter.count(ENDED, row["env"], outcome, reason or "")
    meter.time(RESULT_SECONDS, (at - row["created_at"]).total_seconds(), row["env"], outcome)


async def read_lately(gateway: Runtime) -> Sequence[Value]:
    """How payments do, as the tally counted them some seconds ago."""
    this_hour = gateway.clock.now().replace(minute=0, second=0, microsecond=0)
    values: list[Value] = []
    for window, back in _WINDOWS.items():
        rows = await gateway.db.fetch(tally_sql.TALLIED_LATELY, this_hour - back)
        known = {row["env"]: row for row in rows}
        for env in ENVS:
            values += _window(env, window, known.get(env))
        reasons = await gateway.db.fetch(tally_sql.TALLIED_REASONS_LATELY, this_hour - back)
        values += [(FAILED, (row["env"], window, row["reason"]), row["count"]) for row in reasons]
    return values


def _window(env: Env, window: str, row: Row | None) -> Iterator[Value]:
    for outcome in ("asked", "paid", "failed"):
        yield PAYMENTS, (env, window, outcome), row[outcome] if row else 0
    yield TAKEN, (env, window), row["taken"] if row else 0
    yield RETURNED, (env, window), row["returned"] if row else 0


async def read_open(gateway: Runtime) -> Sequence[Value]:
    """Payments that are not over."""
    values: list[Value] = []
    for env in ENVS:
        row = await gateway.db.fetchrow(tables.COUNT_OPEN, env)
        count, oldest = (0, None) if row is None else (row["open"], row["oldest"])
        values += [
            (OPEN, (env,), count),
            (OLDEST, (env,), seconds_since(oldest, gateway.clock)),
            (HELD, (env,), await gateway.db.fetchval(tables.COUNT_HELD, [env])),
        ]
    return values


COUNTS = (ENDED, RESULT_SECONDS)
READINGS = (
    Reading((PAYMENTS, FAILED, TAKEN, RETURNED), read_lately),
    Reading((OPEN, OLDEST, HELD), read_open),
)
