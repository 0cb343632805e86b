"""What is counted of webhooks, and what merchants are still owed."""

from collections.abc import Sequence

from mpesa_gateway.clock import seconds_since
from mpesa_gateway.env import ENVS
from mpesa_gateway.meter import Counter, Gauge, Histogram, Value
from mpesa_gateway.readings import Reading
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks.desk import WebhookDesk

ATTEMPTS = Counter(
    "mpesa_webhook_attempts_total",
    "Attempts to deliver: delivered, failed (tried again later), dead (it was the last).",
    ("outcome",),
    begins=(("delivered",), ("failed",), ("dead",)),
)
ATTEMPT_SECONDS = Histogram("mpesa_webhook_attempt_seconds", "How long endpoints took to answer.")

OWED = Gauge("mpesa_webhooks_owed", "Deliveries that have not been taken yet; 10,000 at most.", ("env",))
OLDEST = Gauge(
    "mpesa_webhooks_oldest_owed_seconds", "For how long the oldest of them is owed; 0 where none is.", ("env",)
)
DEAD = Gauge(
    "mpesa_webhooks_dead", "Deliveries of the last day that used up their attempts; 1,000 a merchant at most.", ("env",)
)


async def read_owed(gateway: Runtime) -> Sequence[Value]:
    """What merchants have not heard."""
    desk = gateway.port(WebhookDesk)
    values: list[Value] = []
    for env in ENVS:
        owed, oldest = await desk.owed(env)
        values += [
            (OWED, (env,), owed),
            (OLDEST, (env,), seconds_since(oldest, gateway.clock)),
            (DEAD, (env,), await desk.count_dead(env)),
        ]
    return values


COUNTS = (ATTEMPTS, ATTEMPT_SECONDS)
READINGS = (Reading((OWED, OLDEST, DEAD), read_owed),)
