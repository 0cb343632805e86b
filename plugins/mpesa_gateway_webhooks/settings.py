"""What a host can set about webhooks."""

import msgspec

from mpesa_gateway_webhooks.schedule import PAUSES


class WebhooksSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[webhooks]``. ``timeout`` is for one whole call and ``breaker_pause`` for a closed breaker, in seconds.

    ``retry_after`` has the pauses between attempts, in seconds; after the last attempt a delivery is dead.
    ``at_once`` bounds the calls that one worker makes at the same time, ``per_endpoint`` those to one endpoint;
    ``breaker_failures`` failures in a row close an endpoint's breaker; ``overlap_hours`` is for how long a replaced
    secret signs too; ``allow_loopback`` lets sandbox merchants name this machine, by http too.
    """

    timeout: float = 10.0
    retry_after: tuple[float, ...] = PAUSES
    at_once: int = 50
    per_endpoint: int = 8
    breaker_failures: int = 5
    breaker_pause: float = 30.0
    overlap_hours: int = 24
    allow_loopback: bool = True
