"""Export of spans by OTLP over HTTP, in a thread of the OpenTelemetry SDK."""

import gzip
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

import niquests
import structlog
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import Counter

from mpesa_gateway.config import ConfigError
from mpesa_gateway.logs import trace
from mpesa_gateway_traces.settings import TracesSettings

log = structlog.get_logger(__name__)

_BATCH = 512
"""Spans per request."""

_LONGEST = 30.0
"""Maximum pause between attempts, in seconds."""

_RETRIED = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""Statuses that are retried, by the OTLP specification."""


class OtlpExporter(SpanExporter):
    """Sends a batch until the collector answers; new spans wait in the processor's queue."""

    def __init__(self, settings: TracesSettings, counter: Counter) -> None:
        """Raises ConfigError for an invalid endpoint or header."""
        self._url = _read_endpoint(settings.endpoint)
        self._headers = dict(_read_header(header.reveal()) for header in settings.headers)
        # A kept connection that the collector closes would look like a failure.
        self._headers |= {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
            "Connection": "close",
        }
        self._settings = settings
        self._counter = counter
        self._room = threading.Semaphore(settings.queue)
        self._is_closing = threading.Event()
        self._deadline = float("inf")
        self._is_failing = False
        self._session = niquests.Session(
            retries=0,
            disable_http2=True,
            disable_http3=True,
            allow_incoming_cookies=False,
            revocation_configuration=None,
        )
        self._session.trust_env = False

    def reserve(self) -> bool:
        """Return True if a span may be queued, else count it as dropped."""
        if self._room.acquire(blocking=False):
            return True
        self._counter.labels("dropped").inc()
        return False

    def close(self) -> None:
        """Allow one last attempt, within ``traces.timeout``."""
        self._deadline = time.monotonic() + self._settings.timeout
        self._is_closing.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Blocks while the collector is unreachable."""
        outcome = "refused"
        try:
            outcome = self._send_until_answered(gzip.compress(encode_spans(spans).SerializeToString(), compresslevel=1))
        except Exception as problem:  # noqa: BLE001 - only a batch that cannot be encoded is lost
            log.error("span_export_failed", exception=trace(problem))
        self._room.release(len(spans))
        self._counter.labels(outcome).inc(len(spans))
        return SpanExportResult.SUCCESS if outcome == "sent" else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._session.close()

    def _send_until_answered(self, body: bytes) -> str:
        pause = self._settings.every
        while True:
            is_last = self._is_closing.is_set()
            timeout = min(self._settings.timeout, self._deadline - time.monotonic())
            if timeout <= 0:
                return "dropped"
            status, problem = self._send(body, timeout)
            if 200 <= status < 300:
                self._record_success()
                return "sent"
            self._record_problem(problem)
            if status and status not in _RETRIED:
                return "refused"
            if is_last:
                # The next batches would wait for the same collector.
                self._deadline = 0
                return "dropped"
            self._is_closing.wait(pause)
            pause = min(pause * 2, _LONGEST)

    def _send(self, body: bytes, timeout: float) -> tuple[int, str]:
        """Return the status, or 0, and a text for the log."""
        try:
            answer = self._session.post(
                self._url.geturl(), data=body, headers=self._headers, timeout=timeout, allow_redirects=False
            )
        except OSError as problem:
            return 0, type(problem).__name__
        return answer.status_code or 0, f"HTTP {answer.status_code}"

    def _record_problem(self, problem: str) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.warning("spans_rejected", collector=self._url.hostname, problem=problem)

    def _record_success(self) -> None:
        if self._is_failing:
            self._is_failing = False
            log.info("span_export_resumed", collector=self._url.hostname)


class BoundedProcessor(BatchSpanProcessor):
    """Drops and counts new spans while the queue is full, where the SDK's queue drops the oldest uncounted."""

    def __init__(self, exporter: OtlpExporter, settings: TracesSettings) -> None:
        super().__init__(
            exporter,
            max_queue_size=settings.queue,
            schedule_delay_millis=settings.every * 1000,
            max_export_batch_size=min(_BATCH, settings.queue),
            meter_provider=NoOpMeterProvider(),
        )
        self._exporter = exporter

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled and self._exporter.reserve():
            super().on_end(span)


def _read_endpoint(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        is_good = url.scheme in {"http", "https"} and url.hostname and url.port != 0 and not url.query
    except ValueError:
        is_good, url = False, urlsplit("")
    if not is_good or url.username is not None:
        raise ConfigError(
            "setting `traces.endpoint`: must be the collector's http(s) address with its path, "
            "such as http://127.0.0.1:4318/v1/traces; credentials go into `traces.headers`"
        )
    return url


def _read_header(text: str) -> tuple[str, str]:
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not name.replace("-", "").replace("_", "").isalnum() or not value.isascii() or "\n" in value:
        raise ConfigError("setting `traces.headers`: each must be `Name: value`, such as `Authorization: Bearer …`")
    return name, value
