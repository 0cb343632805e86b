"""Settings of traces."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Seconds
from mpesa_gateway.secret import Secret


class TracesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[traces]``. Times are in seconds unless their name states another unit."""

    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    headers: tuple[Secret, ...] = ()
    service_name: str = "mpesa-gateway"
    ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    trusted_callers: tuple[str, ...] = ()
    propagate_to_merchants: bool = False
    queue: Count = 4096
    every: Seconds = 2.0
    timeout: Seconds = 5.0
    remember_hours: Annotated[int, msgspec.Meta(ge=0, le=720)] = 48
