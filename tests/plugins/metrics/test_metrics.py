"""Protects /metrics: correct counts, access by token or network, bounded labels, queries served by indexes."""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import niquests
import pytest
import structlog
import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from docs.site.reference.metrics import collected, counted
from docs.site.reference.product import plugins
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import QUEUES, ConfigError, GatewayConfig
from mpesa_gateway.correlation import current_request_id, use_request_id
from mpesa_gateway.daraja.client import metric_labels
from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.metrics.definitions import OTHER, KernelMetrics
from mpesa_gateway.plugin import Job, Plugin, PluginError
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.standalone.process import free_port
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, PLUGINS, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks import tables as callbacks
from mpesa_gateway_metrics.exposition import COLLECT_WITHIN, Exposition
from mpesa_gateway_metrics.plugin import plugin as metrics_plugin
from mpesa_gateway_metrics.settings import MetricsSettings
from mpesa_gateway_metrics.worker_server import serve_in_worker
from mpesa_gateway_payments import stats_sql, status_query_sql
from mpesa_gateway_payments import tables as payments
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_reconciliation import tables as reconciliation
from mpesa_gateway_refunds import tables as refunds
from mpesa_gateway_transactions import contradictions
from mpesa_gateway_webhooks import count_sql
from tests.asgi import send_request
from tests.certificates import issue
from tests.house.tree import ROOT
from tests.identifiers import identifier, literal
from tests.journeys.site import running_site, until_up
from tests.stalling import stalling

TOKEN = "a-token-for-prometheus"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
DASHBOARD = ROOT / "deploy/grafana/mpesa-gateway.json"

SELECTOR = re.compile(r"\b((?:mpesa|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
GROUPED = re.compile(r"\bby \(([^)]*)\)")

Sample = tuple[str, dict[str, str], float]


@dataclass(frozen=True)
class Metered:
    """A gateway with metrics, a shop, and the shop's server."""

    gateway: Gateway
    base: str
    api: Api
    receiver: Receiver

    async def samples(self) -> list[Sample]:
        return read(await scrape(self.base))

    async def value(self, name: str, **labels: str) -> float:
        """Returns the sum of the matching samples. Raises AssertionError if there is none."""
        return value(await self.samples(), name, **labels)


async def scrape(base: str, headers: dict[str, str] | None = None) -> niquests.Response:
    async with niquests.AsyncSession() as session:
        session.trust_env = False
        return await session.get(f"{base}/metrics", headers=SHOWN if headers is None else headers)


def read(response: niquests.Response) -> list[Sample]:
    """Returns the samples of an answer, parsed by prometheus_client."""
    assert response.status_code == 200, response.text
    assert str(response.headers["content-type"]).startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.text or "")
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """Returns the sum of the matching samples. Raises AssertionError if there is none."""
    found = [number for each, known, number in samples if each == name and labels.items() <= known.items()]
    assert found, (name, labels)
    return sum(found)


@pytest.fixture
def metered_values(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Settings with every plugin and uncached metrics."""
    certificate = str(issue(tmp_path / "sandbox.cer", days=10).path)
    more = {"metrics": {"token": TOKEN, "keep": 0}, "daraja": {"sandbox_certificate": certificate}}
    return values | {"plugins": [*PLUGINS, "metrics"]} | more


@pytest.fixture
async def metered(metered_values: dict[str, Any]) -> AsyncGenerator[Metered]:
    """A gateway with metrics, a shop, and the shop's server."""
    async with (
        receiving() as receiver,
        running_gateway(metered_values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        yield Metered(gateway, base, api, receiver)


async def journey(metered: Metered) -> None:
    """A paid payment, a failed one, a push with a fault, a forged callback and a reconciliation."""
    api = metered.api
    assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    paid = await api.pay("254711000018", 60, key="paid")
    await api.settled(paid.data["id"], "completed")
    failed = await api.pay("254700000001", 40, key="failed")
    await api.settled(failed.data["id"], "failed")
    fault = {"operation": "stkpush", "fault": "500.003.02", "times": 1}
    await api.call("POST", "/simulator/control/faults", fault)
    assert (await api.pay("254711000019", 50, key="fault")).status == 503
    assert (await api.call("POST", "/v1/cb/stk/forged", {"Body": {}})).status == 404
    assert (await api.call("POST", "/v1/payments/mpesa/pull/register", {})).status == 200
    assert (await api.call("POST", "/v1/payments/mpesa/reconcile", {})).status in {200, 201, 202}
    await metered.receiver.wait_for(2)
    await metered.gateway.services.get(PaymentStatsReader).count()

    async def is_counted() -> bool:
        return await metered.value("mpesa_webhook_attempts_total", outcome="delivered") >= 2

    await eventually(is_counted)


async def test_metrics_after_a_journey_have_its_counts(metered: Metered) -> None:
    await journey(metered)
    samples = await metered.samples()

    def counted_value(name: str, **labels: str) -> float:
        return value(samples, name, **labels)

    assert counted_value("mpesa_payments_ended_total", env="sandbox", outcome="completed") == 1
    assert counted_value("mpesa_payments_ended_total", outcome="failed", reason="cancelled_by_user") == 1
    assert counted_value("mpesa_payments_ended_total", env="live") == 0
    assert counted_value("mpesa_payment_result_seconds_count", outcome="completed") == 1
    assert counted_value("mpesa_payments", env="sandbox", window="2h", outcome="asked") == 3
    assert counted_value("mpesa_payments", env="sandbox", window="24h", outcome="paid") == 1
    assert counted_value("mpesa_payments_failed", env="sandbox", window="24h", reason="cancelled_by_user") == 1
    assert counted_value("mpesa_payments_taken_kes", env="sandbox", window="2h") == 60
    assert counted_value("mpesa_callbacks_total", kind="stk", verdict="accepted") == 2
    assert counted_value("mpesa_callbacks_total", kind="stk", verdict="refused", reason="token") == 1
    for env in ENVS:
        assert (
            counted_value("mpesa_webhooks_pending", env=env)
            == counted_value("mpesa_webhooks_oldest_pending_seconds", env=env)
            == 0
        )
    assert counted_value("mpesa_daraja_calls_total", operation="stk_push", outcome="ok", code="") == 2
    assert counted_value("mpesa_daraja_calls_total", operation="stk_push", outcome="fault", code="500.003.02") == 1
    assert counted_value("mpesa_daraja_call_seconds_count", env="sandbox", operation="stk_push") == 3
    assert counted_value("mpesa_http_requests_total", method="POST", route="/v1/payments", status="201") == 2
    assert counted_value("mpesa_http_requests_total", method="POST", route="/v1/payments", status="503") == 1
    assert counted_value("mpesa_daraja_tokens") == 1
    assert 0 <= counted_value("mpesa_daraja_token_age_seconds") < 300
    assert counted_value("mpesa_postgres_up") == counted_value("mpesa_valkey_up") == 1
    assert [counted_value("mpesa_workers", queue=queue) for queue in QUEUES] == [1] * len(QUEUES)
    assert counted_value("mpesa_migrations_pending") == counted_value("mpesa_collectors_failed") == 0
    assert counted_value("mpesa_reconciliation_runs_total", status="completed") == 1
    assert counted_value("mpesa_jobs_total", job="webhooks.deliver", outcome="done") >= 1
    assert counted_value("mpesa_build_info") == 1
    assert 8 * 86_400 < counted_value("mpesa_certificate_expires_seconds", env="sandbox") < 9 * 86_400


async def test_metrics_of_sandbox_rows_are_not_counted_as_live(metered: Metered) -> None:
    await metered.api.pay("254700000020", key="held")
    db = metered.gateway.db
    await db.execute("UPDATE payment SET mismatch = 'amount', received_amount = '5', due_at = now()")
    subject = identifier("pay"), identifier("mer")
    for number, (verdict, env) in enumerate(product(("waiting", "unmatched"), ("sandbox", None))):
        await db.execute(CALLBACK, identifier("cbk", number), verdict, env, *subject)
    samples = await metered.samples()
    counts = (
        "mpesa_payments_open",
        "mpesa_payments_needing_review",
        "mpesa_callbacks_waiting",
        "mpesa_callbacks_unmatched",
    )
    by_env = {env: [value(samples, name, env=env) for name in counts] for env in ENVS}
    # A callback without an env counts in both.
    assert by_env == {"sandbox": [1, 1, 2, 2], "live": [0, 0, 1, 1]}


CALLBACK = """
INSERT INTO callback (callback_id, kind, env, handle, result_code, subject_id, merchant_id, fingerprint, source,
    stored_body, verdict, received_at, due_at)
VALUES ($1, 'stk', $3::text, id_text($1), '0', CASE WHEN $3 IS NOT NULL THEN $4::uuid END,
    CASE WHEN $3 IS NOT NULL THEN $5::uuid END, substr(sha256(uuid_send($1)), 1, 16), '127.0.0.1', '{}', $2::text,
    now(), CASE WHEN $2::text = 'waiting' THEN now() + interval '1 day' END)
"""


def expressions() -> list[tuple[str, str]]:
    """Returns the PromQL expressions of alerts and dashboard with their titles."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    queries = [(rule["alert"], str(rule["expr"])) for rule in rules]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return queries + [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


async def test_alert_and_dashboard_expressions_match_exposed_series(metered: Metered) -> None:
    """Checks each metric, label and label value: a misspelt one would never match."""
    await journey(metered)
    samples = await metered.samples()
    wrong: list[str] = []
    for place, expression in expressions():
        known: set[str] = set()
        for name, inside in SELECTOR.findall(expression):
            labels = [found for each, found, _ in samples if each == name]
            known |= {label for found in labels for label in found}
            if not labels:
                wrong.append(f"{place}: {name} is not exposed")
            for label, how, text in MATCHER.findall(inside):
                texts: list[str] = [] if text == "$env" or (name, label) in VALUES_NOT_IN_JOURNEY else text.split("|")
                if not all(label in found for found in labels):
                    wrong.append(f"{place}: {name} has no label {label}")
                wrong += [
                    f"{place}: no {name} has {label}{how}{each}"
                    for each in texts
                    if not any(found.get(label) == each for found in labels)
                ]
        grouped = {label.strip() for names in GROUPED.findall(expression) for label in names.split(",")}
        wrong += [f"{place}: nothing has a label {label}" for label in sorted(grouped - known)]
    assert wrong == []


VALUES_NOT_IN_JOURNEY = {
    ("mpesa_http_requests_total", "status"),
    ("mpesa_jobs_total", "outcome"),
    ("mpesa_http_requests_total", "route"),
}
"""Labels with values that do not occur in a successful journey."""


def test_alerts_each_are_complete_and_have_a_runbook_section() -> None:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    names = [rule["alert"] for rule in rules]
    assert len(names) == len(set(names)) > 20
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"\d+[mh]", rule["for"]), rule
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert str(rule["expr"]).count("(") == str(rule["expr"]).count(")")
    runbook = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (Mpesa\w+)\n(.*?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(names)
    parts = ("**Symptom.**", "**Money.**", "**Look at.**", "**Do.**")
    assert [name for name, text in sections.items() if not all(part in text for part in parts)] == []


def test_dashboard_has_valid_panels_and_variables() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "env"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] in {"row", "stat", "timeseries"}
        assert (panel["type"] == "row") == ("targets" not in panel)


async def test_metrics_with_a_wrong_token_is_401_and_then_429(metered_values: dict[str, Any]) -> None:
    values = metered_values | {"limits": {"auth_failures": 3}}
    async with running_gateway(values) as (_, base):
        for headers in ({}, {"Authorization": "Bearer another"}, {"Authorization": f"Basic {TOKEN}"}):
            refused = await scrape(base, headers)
            assert (refused.status_code, refused.json()["errors"][0]["code"]) == (401, "AUTH_INVALID_KEY")
        # A request without a token is not a guess.
        assert [(await scrape(base, {})).status_code for _ in range(5)] == [401] * 5
        assert (await scrape(base, {"Authorization": "Bearer a third"})).status_code == 401
        assert (await scrape(base, {"Authorization": "Bearer a fourth"})).status_code == 429


async def test_metrics_token_guesses_are_limited_by_address_and_do_not_lock_out_the_reader(
    metered_values: dict[str, Any],
) -> None:
    values = metered_values | {
        "limits": {"auth_failures": 3},
        "security": metered_values["security"] | {"trusted_proxies": ["127.0.0.0/8"]},
    }

    def request_headers(address: str, token: str = TOKEN) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}", "X-Forwarded-For": address}

    async with running_gateway(values) as (_, base):
        guesses = [(await scrape(base, request_headers("203.0.113.1", f"guess {n}"))).status_code for n in range(5)]
        assert guesses == [401, 401, 401, 429, 429]
        # The right token is refused too: otherwise guessing would succeed in the end.
        assert (await scrape(base, request_headers("203.0.113.1"))).status_code == 429
        # Addresses are limited separately, and an IPv6 /64 counts as one address.
        assert (await scrape(base, request_headers("203.0.113.2"))).status_code == 200
        in_one = [(await scrape(base, request_headers(f"2001:db8::{n}", "guess"))).status_code for n in range(1, 6)]
        assert in_one == [401, 401, 401, 429, 429]
        # An address that has read successfully is not locked out by guesses.
        guesses = [(await scrape(base, request_headers("203.0.113.2", f"guess {n}"))).status_code for n in range(5)]
        assert guesses == [401, 401, 401, 429, 429]
        assert (await scrape(base, request_headers("203.0.113.2"))).status_code == 200


async def test_metrics_token_guesses_without_valkey_are_limited(metered_values: dict[str, Any]) -> None:
    values = metered_values | {
        "limits": {"auth_failures": 3},
        "valkey": {"url": "valkey://127.0.0.1:9/0"},
        "worker": {"in_process": False},
    }
    async with running_gateway(values) as (_, base):
        guesses = [(await scrape(base, {"Authorization": f"Bearer guess {n}"})).status_code for n in range(5)]
        assert guesses == [401, 401, 401, 429, 429]


async def test_metrics_from_an_address_outside_the_networks_is_404(metered_values: dict[str, Any]) -> None:
    values = metered_values | {"metrics": {"networks": ["10.1.0.0/16"]}, "security": metered_values["security"]}
    async with running_gateway(values) as (_, base):
        assert (await scrape(base, {})).status_code == 404
        # The header of an untrusted proxy is ignored.
        assert (await scrape(base, {"X-Forwarded-For": "10.1.2.3"})).status_code == 404
    values["metrics"] = {"networks": ["127.0.0.0/8"]}
    async with running_gateway(values) as (_, base):
        assert (await scrape(base, {})).status_code == 200


def unstarted_gateway(values: dict[str, Any], **metrics: Any) -> Gateway:
    """Returns a gateway with these metrics settings, not started."""
    return Gateway(GatewayConfig.from_values(values | {"plugins": [*PLUGINS, "metrics"], "metrics": metrics}))


@pytest.mark.parametrize("token", ["x", "fifteen letters"])
def test_metrics_token_under_16_characters_is_refused(values: dict[str, Any], token: str) -> None:
    with pytest.raises(ConfigError, match=r"`metrics`: `metrics\.token` must have at least 16 characters"):
        GatewayConfig.from_values(values | {"metrics": {"token": token}}).section("metrics", MetricsSettings)
    assert unstarted_gateway(values, token="sixteen letters!").settings(MetricsSettings).token is not None


def test_metrics_without_token_and_networks_refuse_to_start(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"set `metrics\.token`"):
        unstarted_gateway(values).services.get(metrics_plugin.provides[0][0])
    with pytest.raises(ConfigError, match=r"`metrics\.token` is empty"):
        unstarted_gateway(values, token="").services.get(metrics_plugin.provides[0][0])
    with pytest.raises(ConfigError, match=r"setting `metrics\.networks`: `x` is no address"):
        unstarted_gateway(values, networks=["x"]).services.get(metrics_plugin.provides[0][0])


async def test_metrics_contain_no_phone_number_merchant_or_unknown_method(metered: Metered) -> None:
    await journey(metered)
    merchant = (await metered.api.call("GET", "/v1/merchant/me")).data["id"]
    for number in range(5):
        answer = await send_request(metered.gateway.asgi, f"MADEUP{number}", f"/nothing/254711000018/{number}".encode())
        assert answer.status in {404, 405}
    text = (await scrape(metered.base)).text or ""
    assert not re.search(r"254\d{9}|0[17]\d{8}", re.sub(r" [\d.e+-]+$", "", text, flags=re.MULTILINE))
    assert merchant not in text
    assert "pay_" not in text
    assert "MADEUP" not in text
    assert TOKEN not in text
    assert 'mpesa_http_requests_total{method="other",route="(unknown)",status="404"} 5.0' in text


def test_metrics_of_two_gateways_in_one_process_count_separately(values: dict[str, Any]) -> None:
    labels = {"method": "GET", "route": "/v1/payments", "status": "200"}
    one, two = unstarted_gateway(values, token=TOKEN), unstarted_gateway(values, token=TOKEN)
    one.metrics.get(KernelMetrics).requests.labels(**labels).inc()
    for gateway, expected in ((one, [1]), (two, [])):
        values_shown = [
            sample.value
            for metric in gateway.services.get(Exposition).collect()
            for sample in metric.samples
            if sample.name == "mpesa_http_requests_total"
        ]
        assert values_shown == expected


def test_metrics_of_two_plugins_with_one_name_are_refused(values: dict[str, Any]) -> None:
    def define(registry: CollectorRegistry) -> Counter:
        return Counter("mpesa_jobs_total", "A test.", registry=registry)

    host = Plugin(name="counting", summary="Counts.", metrics=define)
    with pytest.raises(PluginError, match=r"two metrics have the same name \(mpesa_jobs"):
        Gateway(GatewayConfig.from_values(values), plugins=(host,))


async def test_exposition_every_series_is_declared_with_its_labels(metered: Metered) -> None:
    """The library's `_created` series are not exposed."""
    await journey(metered)
    declared = {each.name: set(each.labels) for each in (*counted(plugins()), *collected(plugins()))}
    families = text_string_to_metric_families((await scrape(metered.base)).text or "")
    exposed = {
        f"{family.name}_total" if family.type == "counter" else family.name: {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for family in families
        if not family.name.startswith("process_")
    }
    assert exposed.keys() <= declared.keys()
    assert {name: labels for name, labels in exposed.items() if labels - declared[name]} == {}
    assert len(exposed) > 40


def test_daraja_fault_codes_unknown_count_as_other() -> None:
    for content, expected in (
        ({"errorCode": "500.003.02"}, ("fault", "500.003.02")),
        ({"errorCode": "500.001.1001"}, ("fault", "500.001.1001")),
        ({"errorCode": "made.up.254711000018"}, ("fault", OTHER)),
        ({"ResponseCode": "0"}, ("ok", "")),
        (None, ("no_json", "")),
    ):
        assert metric_labels(200, content) == expected


async def test_exposition_with_a_failing_collector_shows_and_caches_the_others(
    metered_values: dict[str, Any],
) -> None:
    calls = 0

    def gauges() -> Gauges:
        return (GaugeMetricFamily("mpesa_test_looks", "A test."),)

    async def collect(_: Runtime, gauges: Gauges) -> None:
        nonlocal calls
        calls += 1
        gauges[0].add_metric((), calls)

    def broken_gauges() -> Gauges:
        return (GaugeMetricFamily("mpesa_test_broken", "A test."),)

    async def fail(_: Runtime, gauges: Gauges) -> None:
        gauges[0].add_metric((), 1)
        raise LookupError("a test")

    host = Plugin(
        name="looking",
        summary="Looks.",
        collectors=(Collector(gauges, collect), Collector(broken_gauges, fail)),
    )
    values = metered_values | {"metrics": {"token": TOKEN, "keep": 3600}}
    async with running_gateway(values, plugins=(host,)) as (_, base):
        for _ in range(3):
            samples = read(await scrape(base))
            assert value(samples, "mpesa_test_looks") == 1
            assert not any(name == "mpesa_test_broken" for name, _, _ in samples)
            assert value(samples, "mpesa_collectors_failed") == 1
            assert value(samples, "mpesa_postgres_up") == 1
            assert value(samples, "mpesa_payments_open") == 0
    assert calls == 1


async def test_exposition_without_valkey_shows_the_rest(metered: Metered, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable() -> None:
        raise OSError("away")

    monkeypatch.setattr(metered.gateway.valkey, "ping", unreachable)
    samples = await metered.samples()
    assert value(samples, "mpesa_valkey_up") == 0
    assert value(samples, "mpesa_postgres_up") == 1
    assert not any(name == "mpesa_workers" for name, _, _ in samples)


async def test_exposition_while_postgres_hangs_shows_the_rest_within_the_deadline(
    metered_values: dict[str, Any],
) -> None:
    async with stalling(metered_values["database"]["url"]) as postgres:
        values = metered_values | {
            "database": metered_values["database"] | {"url": postgres.url},
            "metrics": {"token": TOKEN, "keep": 3},
            "worker": {"in_process": False},
        }
        async with running_gateway(values) as (_, base):
            assert value(read(await scrape(base)), "mpesa_collectors_failed") == 0
            postgres.stall()
            took = 0.0

            async def two_while_stalled() -> list[list[Sample]] | None:
                """Return nothing while the collection before the stall is kept."""
                nonlocal took
                began = time.monotonic()
                both = [read(one) for one in await asyncio.gather(scrape(base), scrape(base))]
                took = time.monotonic() - began
                return None if any(value(each, "mpesa_postgres_up") for each in both) else both

            both = await eventually(two_while_stalled, 30)
            assert both is not None
            samples, at_once = both
            assert took < COLLECT_WITHIN + 2
            assert value(at_once, "mpesa_postgres_up") == 0
            assert value(samples, "mpesa_postgres_up") == 0
            assert value(samples, "mpesa_migrations_pending") == -1
            assert value(samples, "mpesa_valkey_up") == 1
            assert value(samples, "mpesa_queue_jobs", state="waiting") == 0
            assert value(samples, "mpesa_certificate_expires_seconds", env="sandbox") > 0
            assert value(samples, "mpesa_collectors_failed") == FROM_POSTGRES
            # Kept from the end of the collection on, or each scrape would wait for the deadline.
            began = time.monotonic()
            await scrape(base)
            assert time.monotonic() - began < 1
            postgres.resume()

            async def is_whole() -> bool:
                recovered = read(await scrape(base))
                return value(recovered, "mpesa_collectors_failed") == 0 and value(recovered, "mpesa_postgres_up") == 1

            await eventually(is_whole, 30)


FROM_POSTGRES = sum(collector.reads_postgres for plugin in plugins() for collector in plugin.collectors) - 1
"""Collectors without values while Postgres hangs; `mpesa_postgres_up` has one."""


async def test_worker_server_serves_its_own_metrics_only(
    metered_values: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    values = metered_values | {"metrics": {"token": TOKEN, "worker_port": port}, "worker": {"in_process": False}}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway, serve_in_worker(gateway):
        base = f"http://127.0.0.1:{port}"
        assert value(read(await scrape(base)), "mpesa_postgres_up") == 1
        assert (await scrape(base, {})).status_code == 401
        async with niquests.AsyncSession() as session:
            assert (await session.get(base + "/v1/payments")).status_code == 404
            assert (await session.post(base + "/metrics", headers=SHOWN)).status_code == 404
    assert TOKEN not in "".join(capfd.readouterr())


async def test_worker_command_serves_metrics_on_its_port(database_url: str, valkey_url: str, tmp_path: Path) -> None:
    port = free_port()
    with running_site(database_url, valkey_url, tmp_path) as site:
        settings = {"networks": "127.0.0.0/8", "worker_port": port}
        worker = site.start("worker", plugins=[*site.values["plugins"], "metrics"], metrics=settings)
        await until_up(f"http://127.0.0.1:{port}/metrics", patience=60)
        samples = read(await scrape(f"http://127.0.0.1:{port}", {}))
        assert value(samples, "mpesa_postgres_up") == 1
        assert value(samples, "mpesa_migrations_pending") == 0
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 30) == 0


QUERIES: dict[str, tuple[str, tuple[timedelta | str, ...]]] = {
    "payments by hour": (stats_sql.STATS_BY_ENV, (timedelta(hours=1),)),
    "reasons by hour": (stats_sql.FAILURE_REASONS, (timedelta(hours=1),)),
    "open payments": (payments.COUNT_OPEN, ("'live'",)),
    "undecided answers": (status_query_sql.COUNT_UNDECIDED, ("'live'", "NULL")),
    "contradicted transactions": (contradictions.COUNT, ("'live'",)),
    "held payments": (payments.COUNT_NEEDING_REVIEW, ("ARRAY['live']",)),
    "owed webhooks": (count_sql.OWED, ("ARRAY['live']",)),
    "dead webhooks": (count_sql.DEAD_SINCE, (literal("dlv"), "ARRAY['live']", "NULL")),
    "waiting callbacks": (callbacks.COUNT_WAITING, ("'live'",)),
    "unmatched callbacks": (callbacks.COUNT_UNMATCHED, ("'live'",)),
    "open refunds": (refunds.COUNT_OPEN, ("'live'",)),
    "unexplained lines": (reconciliation.COUNT_UNRESOLVED_BY_FINDING, ()),
    "unread statements": (reconciliation.COUNT_FAILING, ("ARRAY['live']", "NULL")),
}


async def test_metric_queries_are_served_by_indexes(metered: Metered) -> None:
    now = metered.gateway.clock.now()
    sequential_scans: dict[str, str] = {}
    async with metered.gateway.db.transaction():
        # PostgreSQL prefers sequential scans of small tables; disabled, it uses them only without an index.
        await metered.gateway.db.execute("SET LOCAL enable_seqscan = off")
        # Piccolo renders a query only for a table with an engine.
        queries = QUERIES | {"held refunds": (str(refunds.waiting_of("live")), ())}
        for name, (sql, values) in queries.items():
            for number, argument in enumerate(values, 1):
                literal = argument if isinstance(argument, str) else f"'{(now - argument).isoformat()}'::timestamptz"
                sql = sql.replace(f"${number}", literal)  # noqa: PLW2901
            rows = await metered.gateway.db.fetch(f"EXPLAIN (COSTS OFF) {sql}")
            plan = "\n".join(row[0] for row in rows)
            if re.search(r"Seq Scan on (?!merchant\b)", plan):
                sequential_scans[name] = plan
    assert sequential_scans == {}


async def test_request_id_is_passed_on_to_jobs_and_their_jobs(metered_values: dict[str, Any]) -> None:
    request_ids: list[str] = []

    async def second(_: Gateway) -> None:
        request_ids.append(current_request_id())

    async def first(gateway: Gateway) -> None:
        request_ids.append(current_request_id())
        await gateway.jobs.enqueue("asking.second")

    host = Plugin(name="asking", summary="Asks.", jobs=(Job(first, timeout=5), Job(second, timeout=5)))
    async with running_gateway(metered_values, plugins=(host,)) as (gateway, _):
        with use_request_id("the-callers-own-id"):
            await gateway.jobs.enqueue("asking.first")

        async def have_run() -> bool:
            return len(request_ids) == 2

        await eventually(have_run)
    assert request_ids == ["the-callers-own-id"] * 2


async def test_request_id_of_the_caller_is_in_the_answer_and_all_log_lines(metered: Metered) -> None:
    """The lines of the request, of the call to Daraja, and of the delivery by a worker's job."""
    metered.receiver.status = 500
    headers = {"X-Request-ID": "till-7.order-12", "Idempotency-Key": "a"}
    processors: list[Any] = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors=processors) as lines:
        # M-Pesa refuses the push, so the webhook is enqueued before the answer.
        body = {"amount": 5, "phone": "254700000015"}
        answer = await metered.api.call("POST", "/v1/payments", body, headers=headers)
        assert (answer.status, answer.headers["X-Request-ID"]) == (502, "till-7.order-12")

        async def has_failed() -> bool:
            return any(line["event"] == "delivery_failed" for line in lines)

        await eventually(has_failed)
    ours = [line for line in lines if line.get("request_id") == "till-7.order-12"]
    by_event = {line["event"]: line for line in ours}
    assert {"request", "daraja_exchange", "payment_failed", "delivery_failed"} <= set(by_event)
    assert by_event["delivery_failed"]["job"] == "webhooks.deliver"
    insane = await metered.api.call("GET", "/v1/payments", headers={"X-Request-ID": "with space"})
    assert insane.headers["X-Request-ID"].startswith("req_")
