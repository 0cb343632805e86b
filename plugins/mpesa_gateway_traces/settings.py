"""What a host can set about traces: where they go, how many, whom to believe, and who may know of them."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Seconds
from mpesa_gateway.secret import Secret


class TracesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[traces]``. Spans go to ``endpoint`` by OTLP over HTTP with these ``headers``, each ``Name: value``.

    ``ratio`` is the share of traces that are kept. ``trusted_callers`` are networks whose ``traceparent`` is gone on
    with; of all others it is a link. ``tell_merchants`` puts ours into webhooks. ``queue`` spans wait at most, and are
    sent ``every`` so many seconds; one sending may take ``timeout`` seconds. For ``remember_hours`` what comes later
    finds back to the trace that a payment began in.

    Where the host's process has a TracerProvider of its own, spans go there, and ``endpoint``, ``headers``,
    ``service_name``, ``ratio``, ``queue``, ``every`` and ``timeout`` are the host's business.
    """

    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    headers: tuple[Secret, ...] = ()
    service_name: str = "mpesa-gateway"
    ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    trusted_callers: tuple[str, ...] = ()
    tell_merchants: bool = False
    queue: Count = 4096
    every: Seconds = 2.0
    timeout: Seconds = 5.0
    remember_hours: Annotated[int, msgspec.Meta(ge=0, le=720)] = 48
