"""The declaration of the traces plugin."""

from importlib import import_module
from typing import cast

from mpesa_gateway.config import ConfigError
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.tracing import Tracing
from mpesa_gateway_traces.metrics import TracesMetrics
from mpesa_gateway_traces.settings import TracesSettings


def make_tracing(gateway: Runtime) -> Tracing:
    """Raises ConfigError without the OpenTelemetry SDK, or for an invalid setting."""
    try:
        # The SDK is an optional dependency.
        provider = import_module("mpesa_gateway_traces.provider")
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith(("opentelemetry", "google")):
            raise
        raise ConfigError(
            f"plugin `traces` needs the OpenTelemetry SDK, and {missing.name} is not installed: "
            "`pip install 'mpesa-gateway[otel]'`, or remove `traces` from `plugins`"
        ) from None
    return cast(Tracing, provider.OtelTracing(gateway))


plugin = Plugin(
    name="traces",
    summary="Exports OpenTelemetry traces of requests, calls to M-Pesa, jobs and webhooks.",
    settings=TracesSettings,
    metrics=TracesMetrics,
    provides=((Tracing, make_tracing),),
)
