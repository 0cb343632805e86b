"""The traces plugin, declared."""

from importlib import import_module
from typing import cast

from mpesa_gateway.config import ConfigRefused
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.tracing import Tracer
from mpesa_gateway_traces.metrics import TracesMetrics
from mpesa_gateway_traces.settings import TracesSettings


def make_tracer(gateway: Runtime) -> Tracer:
    """The tracer. Raises ConfigRefused where OpenTelemetry is not installed, or a setting cannot be."""
    try:
        # Only here: whoever traces nothing need not have it.
        tracer = import_module("mpesa_gateway_traces.tracer")
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith(("opentelemetry", "google")):
            raise
        raise ConfigRefused(
            f"plugin `traces` needs OpenTelemetry, and {missing.name} is not installed: "
            "`pip install 'mpesa-gateway[otel]'`, or take `traces` out of `plugins`"
        ) from None
    return cast(Tracer, tracer.OtelTracer(gateway))


plugin = Plugin(
    name="traces",
    summary="Tells OpenTelemetry what is done for a request, through M-Pesa and jobs to the webhook.",
    settings=TracesSettings,
    provides=((Tracer, make_tracer),),
    metrics=TracesMetrics,
)
