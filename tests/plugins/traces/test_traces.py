"""Protects exported traces: complete, linked, without secrets, and without effect on payments if they fail."""

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import structlog
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import INVALID_SPAN, ProxyTracerProvider, SpanContext, SpanKind, TraceFlags
from prometheus_client import CollectorRegistry

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.correlation import use_request_id
from mpesa_gateway.http.request_spans import request_span
from mpesa_gateway.plugin import Job, Plugin
from mpesa_gateway.standalone.process import free_port
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, PLUGINS, SANDBOX, Api, eventually, running_gateway, shop
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway.traceparent import current_traceparent
from mpesa_gateway.tracing import UNTRACED, child_span, client_span, postgres_span, root_span
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.incoming import CallbackPost
from mpesa_gateway_traces.exporter import OtlpExporter
from mpesa_gateway_traces.metrics import TracesMetrics
from mpesa_gateway_traces.settings import TracesSettings
from tests.asgi import send_request
from tests.house.tree import ROOT
from tests.plugins.traces.collector import Collector, collecting

CALLBACK = "POST /v1/cb/{kind}/{token}"
THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A caller's ``traceparent`` with the sampled flag."""

PHONE = "254711000018"


@dataclass(frozen=True)
class Traced:
    """A gateway with traces, a shop, the shop's server, and the collector."""

    gateway: Gateway
    base: str
    api: Api
    receiver: Receiver
    collector: Collector


@pytest.fixture
async def collector() -> AsyncGenerator[Collector]:
    """A collector of the gateway's traces."""
    async with collecting() as found:
        yield found


@pytest.fixture
def traced_values(values: dict[str, Any], collector: Collector) -> dict[str, Any]:
    """Settings with every plugin and traces exported every 0.05 s."""
    return values | {"plugins": [*PLUGINS, "traces"], "traces": {"endpoint": collector.endpoint, "every": 0.05}}


@pytest.fixture
async def traced(traced_values: dict[str, Any], collector: Collector) -> AsyncGenerator[Traced]:
    """A gateway with traces, a shop, the shop's server, and the collector."""
    async with (
        receiving() as receiver,
        running_gateway(traced_values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        yield Traced(gateway, base, api, receiver, collector)


def with_traces(values: dict[str, Any], **traces: Any) -> dict[str, Any]:
    return values | {"traces": values["traces"] | traces}


async def test_payment_request_is_one_trace_and_its_callback_another_linked_to_it(traced: Traced) -> None:
    answer = await traced.api.pay(PHONE, key="traced")
    payment_id, collector = answer.data["id"], traced.collector
    await traced.receiver.wait_for(1)
    (delivered,) = await collector.wait_for("deliver payment.completed")
    (request,) = await collector.wait_for("POST /v1/payments")
    (callback,) = await collector.wait_for(CALLBACK)
    (push,) = collector.of("daraja stk_push")
    (job,) = await collector.wait_for("webhooks.deliver")
    (woken,) = collector.of("enqueue webhooks.deliver")

    assert (request.kind, request.parent, request.is_error) == ("server", "", False)
    assert request.attributes["http.response.status_code"] == 201
    assert request.attributes["mpesa.payment_id"] == payment_id
    assert request.attributes["mpesa.request_id"] == answer.headers["X-Request-ID"]
    for name in ("postgres insert payment", "daraja token", "daraja stk_push", "postgres accept payment"):
        (part,) = collector.of(name)
        assert (part.kind, part.trace, part.parent) == ("client", request.trace, request.span)
        assert part.attributes["mpesa.request_id"] == answer.headers["X-Request-ID"]
    assert push.attributes["mpesa.daraja.outcome"] == "ok"

    assert (callback.kind, callback.parent, callback.links) == ("server", "", {request.trace})
    assert callback.trace != request.trace
    assert callback.attributes["mpesa.subject_id"] == payment_id
    (stored,) = collector.of("postgres store callback")
    assert (stored.trace, stored.parent) == (callback.trace, callback.span)
    assert (woken.kind, woken.trace, woken.parent) == ("producer", callback.trace, callback.span)
    assert (job.kind, job.trace, job.parent) == ("consumer", callback.trace, woken.span)
    assert (delivered.kind, delivered.trace, delivered.parent) == ("client", callback.trace, job.span)
    assert delivered.links == {request.trace}
    assert delivered.attributes["http.response.status_code"] == 200
    for span in (job, delivered):
        assert span.attributes["mpesa.request_id"] == callback.attributes["mpesa.request_id"]
    for span in (request, job):
        assert span.resource["service.name"] == "mpesa-gateway"


async def test_callbacks_stored_in_one_batch_keep_their_own_traces(traced_values: dict[str, Any]) -> None:
    """Each has its own request id and webhook, though one transaction and one job serve several."""
    values = with_traces(traced_values, remember_hours=0) | {"simulator": {"callback_delay": 600}}
    async with (
        collecting() as collector,
        receiving() as receiver,
        running_gateway(with_traces(values, endpoint=collector.endpoint)) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        merchant = (await api.call("GET", "/v1/merchant/me")).data["id"]
        paid = [(await api.pay(f"2547110000{10 + number}", key=f"{number}")).data for number in range(12)]
        inbox = gateway.services.get(CallbackInbox)

        async def receive(number: int, payment: dict[str, Any]) -> None:
            url = gateway.services.get(Callbacks).url_for(
                "stk", env="sandbox", merchant_id=merchant, subject_id=payment["id"]
            )
            incoming = CallbackPost("stk", url.rpartition("/")[2], paid_body(number, payment), "127.0.0.1")
            scope: dict[str, Any] = {"path": "/v1/cb", "headers": []}
            with (
                use_request_id(f"callback-{number}"),
                request_span(gateway.tracing, scope, f"callback-{number}") as span,
            ):
                span.update_name("callback")
                await inbox.receive(incoming)

        await asyncio.gather(*(receive(number, payment) for number, payment in enumerate(paid)))
        delivered = await collector.wait_for("deliver payment.completed", len(paid))
        callbacks = await collector.wait_for("callback", len(paid))
    assert len({callback.trace for callback in callbacks}) == len(paid)
    by_payment = {callback.attributes["mpesa.subject_id"]: callback for callback in callbacks}
    for one in delivered:
        callback = by_payment[one.attributes["mpesa.subject_id"]]
        assert one.trace == callback.trace
        assert one.attributes["mpesa.request_id"] == callback.attributes["mpesa.request_id"]
    # At least one job delivered several of them, which could have mixed them up.
    assert max(int(job.attributes["messaging.batch.message_count"]) for job in collector.of("webhooks.deliver")) > 1


def paid_body(number: int, payment: dict[str, Any]) -> bytes:
    """Returns the body of a callback of a paid payment."""
    items = {"Amount": 500, "MpesaReceiptNumber": f"TKN4A1B2{number:02}", "PhoneNumber": int(payment["phone"])}
    content = {
        "MerchantRequestID": "7a1c-4d0e",
        "CheckoutRequestID": payment["provider_ref"],
        "ResultCode": 0,
        "ResultDesc": "The service request is processed successfully.",
        "CallbackMetadata": {"Item": [{"Name": name, "Value": value} for name, value in items.items()]},
    }
    return json.dumps({"Body": {"stkCallback": content}}).encode()


async def test_refund_and_reconciliation_are_traced_and_linked(traced: Traced) -> None:
    api, collector = traced.api, traced.collector
    assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    paid = await api.pay(PHONE, key="a")
    await api.settled(paid.data["id"], "completed")
    body = {"payment_id": paid.data["id"]}
    assert (await api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": "b"})).status == 201
    (refund,) = await collector.wait_for("POST /v1/refunds")
    (reversal,) = collector.of("daraja reversal")
    assert reversal.trace == refund.trace
    (result,) = await collector.wait_for(CALLBACK, matches=lambda span: span.links == {refund.trace})
    (delivered,) = await collector.wait_for("deliver payment.reversed")
    assert delivered.trace == result.trace
    assert (await api.call("POST", "/v1/payments/mpesa/pull/register", {})).status == 200
    assert (await api.call("POST", "/v1/payments/mpesa/reconcile", {})).status in {200, 201, 202}
    (run,) = await collector.wait_for("reconciliation run")
    assert {(pulled.trace, pulled.parent) for pulled in collector.of("daraja pull_query")} == {(run.trace, run.span)}
    assert run.attributes["mpesa.cause"] == "manual"


async def test_spans_contain_no_phone_number_secret_or_callback_token(traced: Traced) -> None:
    traced.receiver.status = 500
    secret_url = traced.receiver.url + "/hook-secret?key=in-the-query"
    assert (await traced.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": secret_url})).status == 200
    headers = {"X-Request-ID": f"till-{PHONE}", "Idempotency-Key": "masked", "traceparent": THEIRS, "tracestate": PHONE}
    answer = await traced.api.call("POST", "/v1/payments", {"amount": 5, "phone": PHONE}, headers=headers)
    await traced.api.call("GET", f"/v1/payments?phone={PHONE}")
    await traced.api.call("GET", f"/v1/payments/{PHONE}")
    assert (await send_request(traced.gateway.asgi, f"SAY{PHONE}", b"/nothing/" + PHONE.encode())).status in {404, 405}
    (failed,) = await traced.collector.wait_for("deliver payment.completed")
    await traced.collector.wait_for("GET /v1/payments/{payment_id}")
    (callback,) = await traced.collector.wait_for(CALLBACK)
    assert failed.is_error
    assert failed.attributes["error.type"] == "500"
    assert callback.attributes["url.path"] == callback.attributes["http.route"] == "/v1/cb/{kind}/{token}"
    (request,) = traced.collector.of("POST /v1/payments")
    assert request.attributes["mpesa.request_id"] == "till-2547****018"
    address = traced.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=answer.data["merchant_id"], subject_id=answer.data["id"]
    )
    mpesa = SANDBOX["mpesa"]
    hidden = [PHONE, PHONE[3:], "hook-secret", "in-the-query", traced.api.key, address.rpartition("/")[2]]
    hidden += [mpesa["consumer_key"], mpesa["consumer_secret"], mpesa["passkey"]]
    for body in traced.collector.bodies:
        for text in hidden:
            assert text is not None
            assert text.encode() not in body, text


async def test_span_of_a_failed_call_has_its_error_type(traced: Traced) -> None:
    fault = {"operation": "stkpush", "fault": "500.003.02", "times": 1}
    await traced.api.call("POST", "/simulator/control/faults", fault)
    assert (await traced.api.pay(PHONE, key="fault")).status == 503
    (request,) = await traced.collector.wait_for("POST /v1/payments")
    (push,) = traced.collector.of("daraja stk_push")
    assert push.is_error
    assert (push.attributes["error.type"], push.attributes["mpesa.daraja.outcome"]) == ("500.003.02", "fault")
    assert request.is_error
    assert request.attributes["error.type"] == "503"


async def test_traceparent_of_a_caller_is_a_link_and_of_a_trusted_one_the_parent(
    traced_values: dict[str, Any], collector: Collector
) -> None:
    trace = THEIRS.split("-")[1]
    for networks in ([], ["10.0.0.0/8"]):
        async with running_gateway(with_traces(traced_values, trusted_callers=networks)) as (gateway, _):
            await send_request(gateway.asgi, "GET", b"/v1/payments", ((b"traceparent", THEIRS.encode()),))
        (stranger,) = await collector.wait_for("GET /v1/payments")
        assert (stranger.parent, stranger.links) == ("", {trace})
        assert stranger.trace != trace
        collector.receiver.received.clear()
    async with running_gateway(with_traces(traced_values, trusted_callers=["127.0.0.0/8"], ratio=0)) as (gateway, _):
        not_kept = THEIRS[:-1] + "0"
        await send_request(gateway.asgi, "GET", b"/v1/merchant/me", ((b"traceparent", not_kept.encode()),))
        await send_request(gateway.asgi, "GET", b"/v1/merchant/me")
        await send_request(gateway.asgi, "GET", b"/v1/payments", ((b"traceparent", THEIRS.encode()),))
    (trusted,) = [span for span in collector.spans() if span.kind == "server"]
    assert {span.trace for span in collector.spans()} == {trace}
    assert (trusted.name, trusted.trace, trusted.parent) == ("GET /v1/payments", trace, THEIRS.split("-")[2])


async def test_webhook_has_a_traceparent_only_if_tell_merchants_is_set(traced_values: dict[str, Any]) -> None:
    for is_set in (False, True):
        values = with_traces(traced_values, propagate_to_merchants=is_set)
        async with (
            collecting() as collector,
            receiving() as receiver,
            running_gateway(with_traces(values, endpoint=collector.endpoint)) as (gateway, base),
            shop(gateway, base, webhook_url=receiver.url) as api,
        ):
            await api.pay(PHONE, key="a")
            (webhook,) = await receiver.wait_for(1)
            (delivered,) = await collector.wait_for("deliver payment.completed")
        expected = f"00-{delivered.trace}-{delivered.span}-01" if is_set else None
        sent = webhook.headers.get("traceparent")
        # The last two digits are flags; the sampled bit may differ.
        assert (sent and sent[:-2]) == (expected and expected[:-2])


async def test_cron_job_without_writes_is_not_traced_and_others_are(
    traced_values: dict[str, Any], collector: Collector
) -> None:
    ran: list[str] = []

    async def idle(gateway: Gateway) -> None:
        await gateway.db.fetchval("SELECT 1")
        ran.append("idle")

    async def busy(gateway: Gateway) -> None:
        async with gateway.db.transaction():
            ran.append("busy")

    async def broken(_: Gateway) -> None:
        raise ValueError(f"about {PHONE}")

    jobs = tuple(Job(fn, timeout=5, cron="* * * * * *") for fn in (idle, busy, broken))
    host = Plugin(name="crons", summary="Run by the clock.", jobs=jobs)
    async with running_gateway(traced_values, plugins=(host,)):

        async def both_ran() -> bool:
            return {"idle", "busy"} <= set(ran)

        await eventually(both_ran)
        cron, *_ = await collector.wait_for("crons.busy")
        failed, *_ = await collector.wait_for("crons.broken")
    assert (cron.kind, cron.parent) == ("internal", "")
    assert cron.span in {span.parent for span in collector.of("postgres transaction")}
    assert (failed.is_error, failed.attributes["error.type"]) == (True, "ValueError")
    assert collector.of("crons.idle") == []


async def test_health_requests_are_not_traced(traced: Traced) -> None:
    assert (await traced.api.call("GET", "/health/ready")).status == 200
    await traced.api.call("GET", "/v1/merchant/me")
    await traced.collector.wait_for("GET /v1/merchant/me")
    assert [span.name for span in traced.collector.spans() if "health" in str(span.attributes)] == []


async def test_log_lines_of_a_request_have_its_trace_id(traced: Traced) -> None:
    processors: list[Any] = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors=processors) as lines:
        await traced.api.pay(PHONE, key="logged")
    (request,) = await traced.collector.wait_for("POST /v1/payments")
    named = {line["event"] for line in lines if line.get("trace_id") == request.trace}
    assert {"request", "daraja_exchange"} <= named


async def test_collector_unreachable_leaves_payments_working_and_logs_once(
    traced_values: dict[str, Any], collector: Collector
) -> None:
    port = free_port()
    values = with_traces(traced_values, endpoint=f"http://127.0.0.1:{port}/v1/traces", queue=20)
    with structlog.testing.capture_logs() as lines:
        async with (
            receiving() as receiver,
            running_gateway(values) as (gateway, base),
            shop(gateway, base, webhook_url=receiver.url) as api,
        ):
            for number in range(3):
                paid = await api.pay(PHONE, key=f"{number}")
                assert (await api.settled(paid.data["id"]))["status"] == "completed"
            await receiver.wait_for(3)

            async def is_dropping() -> bool:
                return span_count(gateway, "dropped") > 0

            await eventually(is_dropping)
            assert span_count(gateway, "sent") == 0
            assert await log_count(lines, "spans_rejected") == 1
            server = await asyncio.start_server(collector.receiver.handle, "127.0.0.1", port)
            assert await log_count(lines, "span_export_resumed") == 1
            await collector.wait_for("POST /v1/payments")
            server.close()
            assert span_count(gateway, "sent") > 0


def span_count(gateway: Gateway, outcome: str) -> float:
    """Returns the number of spans with this outcome."""
    return gateway.metrics.registry.get_sample_value("mpesa_spans_total", {"outcome": outcome}) or 0.0


async def log_count(lines: list[Any], event: str) -> int:
    """Returns how often an event was logged, once it is. Raises TimeoutError."""

    async def found() -> int:
        return sum(line["event"] == event for line in lines)

    return await eventually(found)


async def test_collector_that_refuses_receives_each_span_once(
    traced_values: dict[str, Any], collector: Collector
) -> None:
    collector.receiver.status = 401
    with structlog.testing.capture_logs() as lines:
        async with running_gateway(traced_values) as (gateway, _):
            await send_request(gateway.asgi, "GET", b"/v1/payments")
            await collector.wait_for("GET /v1/payments")
            assert await log_count(lines, "spans_rejected") == 1
            (line,) = [line for line in lines if line["event"] == "spans_rejected"]
    assert line["problem"] == "HTTP 401"
    assert len(collector.of("GET /v1/payments")) == 1
    assert span_count(gateway, "refused") == len(collector.spans())


async def test_exporter_sends_headers_and_flushes_its_queue_at_the_stop(
    traced_values: dict[str, Any], collector: Collector
) -> None:
    values = with_traces(
        traced_values, every=3600, headers=["Authorization: Bearer of-the-collector"], service_name="till"
    )
    async with running_gateway(values) as (gateway, _):
        await send_request(gateway.asgi, "GET", b"/v1/payments")
        assert collector.spans() == []
    (request,) = collector.of("GET /v1/payments")
    assert request.resource["service.name"] == "till"
    (sent,) = collector.receiver.received
    assert sent.headers["authorization"] == "Bearer of-the-collector"
    assert sent.headers["content-type"] == "application/x-protobuf"


async def test_collector_that_never_answers_does_not_block_the_stop(traced_values: dict[str, Any]) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    values = with_traces(traced_values, endpoint=f"http://127.0.0.1:{port}/v1/traces", timeout=0.3)
    gateway = Gateway(GatewayConfig.from_values(values))
    await gateway.start()
    await send_request(gateway.asgi, "GET", b"/v1/payments")
    async with asyncio.timeout(30):
        await gateway.stop()
    assert writers
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


async def test_trace_link_without_valkey_is_missing_and_raises_nothing(traced: Traced) -> None:
    class UnreachableValkey:
        async def get(self, *_: Any, **__: Any) -> None:
            raise OSError("away")

        set = get

    loop, problems = asyncio.get_running_loop(), list[Any]()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    links = TraceLinks(UnreachableValkey(), traced.gateway.config.valkey, 48)
    with request_span(traced.gateway.tracing, {"path": "/v1", "headers": []}, "here") as span:
        span.update_name("here")
        links.begin("pay_1")
        links.link("pay_2")
    (here,) = await traced.collector.wait_for("here")
    await links.stop()
    gc.collect()
    assert problems == []
    assert (here.links, here.is_error) == (set(), False)


async def test_trace_link_answered_after_the_block_is_on_the_span(traced: Traced) -> None:
    has_ended = asyncio.Event()

    class SlowValkey:
        """A Valkey that answers when the block has ended."""

        async def get(self, _: str) -> bytes:
            await has_ended.wait()
            return THEIRS.encode()

    links = TraceLinks(SlowValkey(), traced.gateway.config.valkey, 48)
    with request_span(traced.gateway.tracing, {"path": "/v1", "headers": []}, "here") as span:
        span.update_name("here")
        links.link("pay_1")
    assert span.is_recording()
    has_ended.set()
    (here,) = await traced.collector.wait_for("here")
    assert here.links == {THEIRS.split("-")[1]}


async def test_global_tracer_provider_of_the_host_is_unchanged(traced: Traced) -> None:
    await traced.api.call("GET", "/v1/merchant/me")
    assert isinstance(otel.get_tracer_provider(), ProxyTracerProvider)


HOST = """
import asyncio, json, sys, threading
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from tests.asgi import send_request

seen, hosts = InMemorySpanExporter(), TracerProvider()
hosts.add_span_processor(SimpleSpanProcessor(seen))
trace.set_tracer_provider(hosts)

async def main():
    async with Gateway(GatewayConfig.from_values(json.load(sys.stdin))).running() as gateway:
        with hosts.get_tracer("host").start_as_current_span("checkout"):
            await send_request(gateway.asgi, "GET", b"/v1/merchant/me")
        threads = [thread.name for thread in threading.enumerate()]
    spans = {span.name: span for span in seen.get_finished_spans()}
    ours, host = spans["GET /v1/merchant/me"], spans["checkout"]
    print(json.dumps([ours.parent.span_id == host.context.span_id, ours.resource == hosts.resource, threads]))

asyncio.run(main())
"""


def test_host_with_its_own_tracer_provider_gets_our_spans_as_children(traced_values: dict[str, Any]) -> None:
    values = traced_values | {"worker": {"in_process": False}}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HOST],
        input=json.dumps(values),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    is_inside, is_theirs, threads = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert (is_inside, is_theirs) == (True, True)
    assert "OtelBatchSpanRecordProcessor" not in threads


def test_tracer_without_the_plugin_creates_no_spans(values: dict[str, Any]) -> None:
    gateway = Gateway(GatewayConfig.from_values(values))
    assert gateway.tracer is UNTRACED
    tracer = gateway.tracer
    blocks = [
        root_span(tracer, "a", SpanKind.SERVER, {}, Context()),
        client_span(tracer, "a", {}),
        child_span(tracer, "a", {}),
        postgres_span(tracer, "a"),
    ]
    assert len({id(block) for block in blocks}) == 1
    with blocks[0] as span:
        assert span is INVALID_SPAN
    assert current_traceparent() == ""


def test_start_with_traces_without_opentelemetry_names_the_package_to_install(
    traced_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("mpesa_gateway_traces.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'mpesa-gateway\[otel\]'"):
        Gateway(GatewayConfig.from_values(traced_values))


def test_exporter_with_a_full_queue_drops_and_counts_a_new_span() -> None:
    registry = CollectorRegistry()
    exporter = OtlpExporter(
        TracesSettings(queue=2, endpoint="http://127.0.0.1:9/v1/traces", timeout=0.1), TracesMetrics(registry).spans
    )
    assert [exporter.reserve() for _ in range(3)] == [True, True, False]
    assert registry.get_sample_value("mpesa_spans_total", {"outcome": "dropped"}) == 1
    exporter.close()
    span = ReadableSpan("a", SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))
    assert exporter.export([span, span]) is SpanExportResult.FAILURE
    assert exporter.reserve()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"endpoint": "collector:4318"}, r"`traces\.endpoint`"),
        ({"endpoint": "http://user:word@collector:4318/v1/traces"}, r"`traces\.endpoint`"),
        ({"endpoint": "http://collector/v1/traces?key=1"}, r"`traces\.endpoint`"),
        ({"headers": ["Authorization"]}, r"`traces\.headers`"),
        ({"headers": ["a b: c"]}, r"`traces\.headers`"),
        ({"trusted_callers": ["everybody"]}, r"`traces\.trusted_callers`"),
        ({"ratio": 2}, r"`traces\.ratio`"),
    ],
)
def test_traces_settings_that_are_invalid_are_refused_by_name(
    traced_values: dict[str, Any], setting: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        Gateway(GatewayConfig.from_values(with_traces(traced_values, **setting)))
    assert "word" not in str(refused.value)
