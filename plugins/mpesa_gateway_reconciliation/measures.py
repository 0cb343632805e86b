"""What is counted of reconciliation, and which lines of statements no payment explains."""

from collections.abc import Sequence

from mpesa_gateway.env import ENVS
from mpesa_gateway.meter import Counter, Gauge, Value
from mpesa_gateway.readings import Reading
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_reconciliation import tables

RUNS = Counter(
    "mpesa_reconciliation_runs_total",
    "Readings of a merchant's statement that this process has ended.",
    ("status",),
    begins=(("completed",), ("failed",)),
)
UNRESOLVED = Gauge(
    "mpesa_reconciliation_unresolved",
    "Lines of statements that nobody has seen to, by finding; of each merchant the newest 1,000 at most.",
    ("env", "finding"),
)
FAILING = Gauge(
    "mpesa_reconciliation_failing_merchants", "Merchants whose statement could not be read the last time.", ("env",)
)

FINDINGS = ("not_found", "mismatched", "ambiguous")


async def read_findings(gateway: Runtime) -> Sequence[Value]:
    """What statements say and our books do not."""
    rows = await gateway.db.fetch(tables.COUNT_UNRESOLVED_BY_FINDING)
    counts = {(row["env"], row["finding"]): row["count"] for row in rows}
    values: list[Value] = []
    for env in ENVS:
        values += [(UNRESOLVED, (env, finding), counts.get((env, finding), 0)) for finding in FINDINGS]
        values.append((FAILING, (env,), await gateway.db.fetchval(tables.COUNT_FAILING, [env])))
    return values


COUNTS = (RUNS,)
READINGS = (Reading((UNRESOLVED, FAILING), read_findings),)
