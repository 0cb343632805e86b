"""``mpesa-gateway`` with a clock that is wrong by CHAOS_SKEW seconds: what a machine without time service runs."""

import os
from datetime import datetime, timedelta

from mpesa_gateway import clock
from mpesa_gateway.cli import main

_now = clock.SystemClock.now


def _wrong(self: clock.SystemClock) -> datetime:
    return _now(self) + timedelta(seconds=float(os.environ["CHAOS_SKEW"]))


clock.SystemClock.now = _wrong  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
