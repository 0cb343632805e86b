"""Settings of reconciliation."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Days, Pause

_LEAST_DAYS = 3


class ReconciliationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[reconciliation]``. Times are in seconds unless their name states another unit."""

    window_hours: Annotated[float, msgspec.Meta(gt=0, le=48)] = 2.0
    max_concurrent: Count = 3
    tries: Count = 4
    pause: Pause = 5.0
    page_pause: Pause = 0.25
    wait: Pause = 25.0
    keep_days: Days = 731

    def __post_init__(self) -> None:
        if 0 < self.keep_days < _LEAST_DAYS:
            raise ValueError("`keep_days` must be 0 or at least 3: M-Pesa's statements reach back 48 hours")
