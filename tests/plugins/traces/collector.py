"""An OpenTelemetry collector for tests: receives OTLP over HTTP and returns the spans."""

import gzip
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import eventually

Attribute = str | int | float | bool


@dataclass(frozen=True)
class CollectedSpan:
    """A received span. ``parent`` is empty for a root span, ``links`` are trace ids."""

    name: str
    kind: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, Attribute]
    links: set[str]
    is_error: bool
    resource: dict[str, Attribute]


@dataclass
class Collector:
    """The spans that a gateway exports."""

    receiver: Receiver = field(default_factory=Receiver)

    @property
    def endpoint(self) -> str:
        """The value of ``traces.endpoint``."""
        return self.receiver.url.replace("/webhooks", "/v1/traces")

    @property
    def bodies(self) -> list[bytes]:
        """The received bodies, decompressed."""
        return [gzip.decompress(one.body) for one in self.receiver.received]

    def spans(self) -> list[CollectedSpan]:
        return [
            _collected_span(span, _attributes(list(each.resource.attributes)))
            for body in self.bodies
            for each in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        ]

    def of(self, name: str) -> list[CollectedSpan]:
        """Returns the spans with this name."""
        return [span for span in self.spans() if span.name == name]

    async def wait_for(
        self, name: str, count: int = 1, matches: Callable[[CollectedSpan], bool] | None = None
    ) -> list[CollectedSpan]:
        """Returns at least ``count`` matching spans once received. Raises TimeoutError."""

        async def found() -> list[CollectedSpan]:
            seen = [span for span in self.of(name) if matches is None or matches(span)]
            return seen if len(seen) >= count else []

        return await eventually(found)


def _collected_span(span: Span, resource: dict[str, Attribute]) -> CollectedSpan:
    return CollectedSpan(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_attributes(list(span.attributes)),
        links={link.trace_id.hex() for link in span.links},
        is_error=span.status.code == Status.STATUS_CODE_ERROR,
        resource=resource,
    )


def _attributes(pairs: list[KeyValue]) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for pair in pairs:
        which = pair.value.WhichOneof("value")
        assert which in {"string_value", "int_value", "double_value", "bool_value"}, pair
        found[pair.key] = getattr(pair.value, which)
    return found


@asynccontextmanager
async def collecting() -> AsyncGenerator[Collector]:
    """A collector on a free port."""
    async with receiving() as receiver:
        yield Collector(receiver)
