"""What a host can set about webhooks."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Days, Pause, Seconds
from mpesa_gateway_webhooks.schedule import PAUSES


class WebhooksSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[webhooks]``. ``timeout`` is for one whole call and ``breaker_pause`` for a closed breaker, in seconds.

    ``retry_after`` has the pauses between attempts, in seconds; after the last attempt a delivery is dead.
    ``max_concurrent`` bounds the calls that one worker makes at the same time, those that take long left out, and
    ``max_concurrent_per_endpoint`` those to one endpoint;
    ``breaker_failures`` failures in a row close an endpoint's breaker; ``overlap_hours`` is for how long a replaced
    secret signs too; ``keep_attempts_days`` for how long each attempt and each answer is kept, 0 for ever:
    that an event was delivered is never forgotten. ``wait_days`` is for how long an event waits for an endpoint
    of its env; an older one is sent by a replay only. ``tests_per_minute`` bounds the test webhooks of one
    merchant. ``allow_loopback`` lets sandbox merchants name this machine, by http too, while no merchant is live.
    """

    timeout: Annotated[float, msgspec.Meta(gt=0, le=15, extra={"unit": "seconds"})] = 10.0
    retry_after: tuple[Pause, ...] = PAUSES
    max_concurrent: Count = 50
    max_concurrent_per_endpoint: Count = 8
    breaker_failures: Count = 5
    breaker_pause: Seconds = 30.0
    overlap_hours: Annotated[int, msgspec.Meta(ge=0)] = 24
    keep_attempts_days: Days = 60
    wait_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 30
    tests_per_minute: Count = 20
    allow_loopback: bool = True
