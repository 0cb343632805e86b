"""Settings of webhooks."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Days, Pause, Seconds
from mpesa_gateway_webhooks.schedule import PAUSES


class WebhooksSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[webhooks]``. ``timeout`` limits one call; ``breaker_pause`` is a failing endpoint's pause; both in seconds.

    ``retry_after`` lists the pauses between attempts, in seconds; after the last attempt a delivery is dead.
    ``max_concurrent`` limits the concurrent calls of one worker, slow ones excluded, and
    ``max_concurrent_per_endpoint`` those to one endpoint.
    ``breaker_failures`` consecutive failures pause an endpoint. A replaced secret also signs for ``overlap_hours``.
    Attempts and responses are deleted after ``keep_attempts_days``, 0 keeps all; deliveries are never deleted.
    ``wait_days`` limits how long an event waits for an endpoint; an older one is sent only by a replay.
    ``tests_per_minute`` limits the test webhooks of one merchant. ``allow_loopback`` lets sandbox merchants use this
    machine as their endpoint, also by http, while no merchant is live.
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
