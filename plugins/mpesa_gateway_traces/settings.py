"""Settings of traces."""

from typing import Annotated

import msgspec

from mpesa_gateway.config import Count, Seconds
from mpesa_gateway.secret import Secret


class TracesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[traces]``. Spans are sent to ``endpoint`` by OTLP over HTTP with ``headers``, each ``Name: value``.

    ``ratio`` of all traces is sampled. A ``traceparent`` from ``trusted_callers`` is continued, any other is linked.
    ``propagate_to_merchants`` adds ours to webhooks. At most ``queue`` spans wait in memory; they are sent every
    ``every`` seconds. A request, and the last flush, takes at most ``timeout`` seconds. Later spans of a payment link
    to its first trace for ``remember_hours``.

    If the host's process has a TracerProvider, spans go there, and only ``trusted_callers``,
    ``propagate_to_merchants`` and ``remember_hours`` apply.
    """

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
