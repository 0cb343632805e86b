"""The tracer, from the host's TracerProvider or its own."""

import asyncio
import os
import platform
import threading
from importlib.metadata import version
from typing import Any

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, ProxyTracerProvider, Span, Tracer, get_tracer_provider

from mpesa_gateway.client_ip import read_networks
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.tracing import Tracing
from mpesa_gateway_traces.exporter import BoundedProcessor, OtlpExporter
from mpesa_gateway_traces.metrics import TracesMetrics
from mpesa_gateway_traces.settings import TracesSettings

log = structlog.get_logger(__name__)


class LateTracer(Tracer):
    """A tracer whose provider is set later."""

    target: Tracer = NoOpTracer()

    def start_span(self, *args: Any, **kwargs: Any) -> Span:
        return self.target.start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self.target.start_as_current_span(*args, **kwargs)


class OtelTracing(Tracing):
    """No global provider is set."""

    def __init__(self, runtime: Runtime) -> None:
        """Raises ConfigError for an invalid setting."""
        settings = runtime.settings(TracesSettings)
        self._settings = settings
        self._counter = runtime.metrics.get(TracesMetrics).spans
        self._exporter = OtlpExporter(settings, self._counter)
        self._provider: TracerProvider | None = None
        self.tracer = self._tracer = LateTracer()
        self.trusted_callers = read_networks(settings.trusted_callers, "traces.trusted_callers")
        self.is_sent_to_merchants = settings.propagate_to_merchants
        self.remember_hours = settings.remember_hours

    async def start(self) -> None:
        provider = get_tracer_provider()
        is_own = isinstance(provider, ProxyTracerProvider)
        if is_own:
            provider = self._provider = self._make_provider()
        self._tracer.target = provider.get_tracer("mpesa_gateway", version("mpesa-gateway"))
        log.info("tracing_started", to="the collector" if is_own else "the host's TracerProvider")

    async def stop(self) -> None:
        """Export queued spans, within ``traces.timeout``."""
        self._tracer.target = NoOpTracer()
        provider, self._provider = self._provider, None
        if provider is not None:
            self._exporter.close()
            # A hanging connection must not keep the process alive.
            flush = threading.Thread(target=provider.shutdown, daemon=True)
            flush.start()
            await asyncio.to_thread(flush.join, self._settings.timeout)

    def _make_provider(self) -> TracerProvider:
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(self._settings.ratio)),
            resource=Resource.create(
                {
                    "service.name": self._settings.service_name,
                    "service.version": version("mpesa-gateway"),
                    "host.name": platform.node(),
                    "process.pid": os.getpid(),
                }
            ),
            shutdown_on_exit=False,
        )
        self._exporter = OtlpExporter(self._settings, self._counter)
        provider.add_span_processor(BoundedProcessor(self._exporter, self._settings))
        return provider
