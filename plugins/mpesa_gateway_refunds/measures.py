"""How many refunds are under way, and how many wait for a person."""

from collections.abc import Sequence

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.env import ENVS
from mpesa_gateway.meter import Gauge, Value
from mpesa_gateway.readings import Reading
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_refunds import tables

OPEN = Gauge("mpesa_refunds_open", "Refunds whose end M-Pesa has not told; 10,000 at most.", ("env",))
OLDEST = Gauge("mpesa_refunds_oldest_open_seconds", "The age of the oldest of them; 0 where there is none.", ("env",))
HELD = Gauge("mpesa_refunds_held", "Refunds that wait for a person.", ("env",))


async def read_open(gateway: Runtime) -> Sequence[Value]:
    """Refunds that are not over."""
    values: list[Value] = []
    for env in ENVS:
        row = await gateway.db.fetchrow(tables.COUNT_OPEN, env)
        count, oldest = (0, None) if row is None else (row["open"], row["oldest"])
        values += [
            (OPEN, (env,), count),
            (OLDEST, (env,), seconds_since(oldest, gateway.clock)),
            (HELD, (env,), await gateway.db.run(tables.waiting_of(env))),
        ]
    return values


READINGS = (Reading((OPEN, OLDEST, HELD), read_open),)
