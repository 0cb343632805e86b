"""``mpesa-gateway`` with a clock that is wrong by CHAOS_SKEW seconds, as on a machine without time service."""

import os
import time
from datetime import datetime, timedelta

from mpesa_gateway import clock
from mpesa_gateway.cli import main

_SKEW = float(os.environ["CHAOS_SKEW"])
_now, _time = clock.SystemClock.now, time.time


def _wrong_now(self: clock.SystemClock) -> datetime:
    return _now(self) + timedelta(seconds=_SKEW)


def _wrong_time() -> float:
    return _time() + _SKEW


clock.SystemClock.now = _wrong_now  # type: ignore[method-assign]
# The clock of the queue; monotonic clocks are unchanged, as they would be on such a machine.
time.time = _wrong_time

if __name__ == "__main__":
    main()
