"""Spans on their way to the collector: in a thread of their own, so many at most, and whatever happens nobody waits."""

import asyncio
import gzip
import ssl
import threading
from collections import deque
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import SplitResult, urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from prometheus_client import Counter

from mpesa_gateway.config import ConfigRefused
from mpesa_gateway.logs import trace
from mpesa_gateway_traces.settings import TracesSettings

log = structlog.get_logger(__name__)

_BATCH = 512
"""Spans that are sent at once."""

_LONGEST = 30.0
"""Seconds between two attempts at a collector that has been away for long."""

_LATER = frozenset({429, 502, 503, 504})
"""What a collector says that will take the same spans later, by OTLP's specification."""


class _NotNow(Exception):
    """The collector cannot be reached, or has no room. The text is fit for the log."""


class _Refused(Exception):
    """The collector does not want these spans, today or later. Likewise."""


class Shipping(SpanProcessor):
    """Keeps ended spans until they are sent; those that find the queue full are counted and let go."""

    def __init__(self, settings: TracesSettings, spans: Counter) -> None:
        """``spans`` has the label ``outcome``. Raises ConfigRefused for an endpoint or a header that cannot be used."""
        self._url = _read_endpoint(settings.endpoint)
        self._headers = dict(_read_header(header.reveal()) for header in settings.headers)
        self._settings = settings
        self._spans = spans
        self._waiting: deque[ReadableSpan] = deque()
        self._in_hand = 0
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._is_well = True

    def start(self) -> None:
        """Begin to send."""
        # A thread that hangs in a connection must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="mpesa-traces", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Send what waits, once, within ``traces.timeout``; what is left then is lost."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, self._settings.timeout)

    # -- called by OpenTelemetry, where a span ends -----------------------------------------------------------------

    def on_end(self, span: ReadableSpan) -> None:
        """Keep an ended span that was chosen."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if len(self._waiting) + self._in_hand >= self._settings.queue:
            self._spans.labels("dropped").inc()
            return
        self._waiting.append(span)
        if len(self._waiting) >= _BATCH:
            self._wake.set()

    # -- in the thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = self._settings.every
        while not self._stopped.is_set():
            # One that is away is left in peace, however much waits for it.
            (self._wake if self._is_well else self._stopped).wait(pause)
            self._wake.clear()
            pause = self._settings.every if self._send_all() else min(pause * 2, _LONGEST)
        self._send_all()

    def _send_all(self) -> bool:
        """Send what waits, the oldest first; False where it has to wait longer."""
        while self._waiting:
            self._in_hand = min(len(self._waiting), _BATCH)
            batch = [self._waiting.popleft() for _ in range(self._in_hand)]
            try:
                self._send(batch)
            except _NotNow as problem:
                self._waiting.extendleft(reversed(batch))
                self._say(str(problem))
                return False
            except _Refused as problem:
                self._spans.labels("refused").inc(len(batch))
                self._say(str(problem))
            except Exception as problem:  # noqa: BLE001 - the thread goes on, whatever is wrong with these
                self._spans.labels("refused").inc(len(batch))
                log.error("traces_not_sent", exception=trace(problem))
            else:
                self._spans.labels("sent").inc(len(batch))
                if not self._is_well:
                    self._is_well = True
                    log.info("traces_taken_again", collector=self._url.hostname)
            finally:
                # What could not be sent waits again by now.
                self._in_hand = 0
        return True

    def _say(self, problem: str) -> None:
        """Say once that something is wrong, until it is well again."""
        if self._is_well:
            self._is_well = False
            log.warning("traces_not_taken", collector=self._url.hostname, problem=problem)

    def _send(self, batch: list[ReadableSpan]) -> None:
        body = gzip.compress(encode_spans(batch).SerializeToString(), compresslevel=1)
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"} | self._headers
        connection = self._connection()
        try:
            connection.request("POST", self._url.path or "/", body, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, HTTPException) as problem:
            raise _NotNow(type(problem).__name__) from None
        finally:
            connection.close()
        if answer.status in _LATER:
            raise _NotNow(f"HTTP {answer.status}")
        if not 200 <= answer.status < 300:
            raise _Refused(f"HTTP {answer.status}")

    def _connection(self) -> HTTPConnection:
        host, timeout = self._url.hostname or "", self._settings.timeout
        if self._url.scheme == "https":
            return HTTPSConnection(host, self._url.port, timeout=timeout, context=ssl.create_default_context())
        return HTTPConnection(host, self._url.port, timeout=timeout)


def _read_endpoint(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        is_good = url.scheme in {"http", "https"} and url.hostname and url.port != 0 and not url.query
    except ValueError:
        is_good, url = False, urlsplit("")
    if not is_good or url.username is not None:
        raise ConfigRefused(
            "setting `traces.endpoint`: must be the collector's http(s) address with its path, "
            "such as http://127.0.0.1:4318/v1/traces; what it wants to know besides goes into `traces.headers`"
        )
    return url


def _read_header(text: str) -> tuple[str, str]:
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not name.replace("-", "").replace("_", "").isalnum() or not value.isascii() or "\n" in value:
        raise ConfigRefused("setting `traces.headers`: each must be `Name: value`, such as `Authorization: Bearer …`")
    return name, value
