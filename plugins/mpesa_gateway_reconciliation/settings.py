"""What a host can set about reconciliation."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Days, Pause

_LEAST_DAYS = 3


class ReconciliationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[reconciliation]``. Times are in seconds unless their name says otherwise.

    ``window_hours`` is how far back a regular run looks; after missed runs it reaches back to where the last one ended,
    48 hours at most, which is all that Pull gives. ``max_concurrent`` bounds how many merchants one worker reconciles
    at a time, the others are woken when a run ends; ``tries`` and ``pause`` say how often and how patiently one page is
    asked for, and ``page_pause`` is the time between one page and the next, below Daraja's spike arrest; ``wait`` is
    how long a manual run is waited for before it is answered as still running. ``keep_days`` is for how long runs and
    lines are kept, in days, 0 for ever, at least 3: M-Pesa's statements reach back 48 hours, and must not show a line
    that is forgotten. A line that waits for a person stays.
    """

    window_hours: Annotated[float, msgspec.Meta(gt=0, le=48)] = 2.0
    max_concurrent: Count = 3
    tries: Count = 4
    pause: Pause = 5.0
    page_pause: Pause = 0.25
    wait: Pause = 25.0
    keep_days: Days = 731

    def __post_init__(self) -> None:
        """Raises ValueError for a time that is too short."""
        if 0 < self.keep_days < _LEAST_DAYS:
            raise ValueError("`keep_days` must be 0 or at least 3: M-Pesa's statements reach back 48 hours")
