"""Settings of webhooks."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Days, Pause, Seconds
from mpesa_gateway_webhooks.schedule import PAUSES


class WebhooksSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[webhooks]``. Times are in seconds unless their name states another unit."""

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
