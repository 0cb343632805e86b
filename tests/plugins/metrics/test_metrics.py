"""What Prometheus reads: true after a real journey, for those who are let in, bounded, and served by indexes."""

import asyncio
import json
import re
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
from mpesa_gateway.daraja.client import counted_as
from mpesa_gateway.env import ENVS
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.metrics.definitions import OTHER, KernelMetrics
from mpesa_gateway.plugin import Job, Plugin, PluginError
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.standalone.process import free_port
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, PLUGINS, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks import tables as callbacks
from mpesa_gateway_metrics.exposition import Exposition
from mpesa_gateway_metrics.plugin import plugin as metrics_plugin
from mpesa_gateway_metrics.settings import MetricsSettings
from mpesa_gateway_metrics.worker_server import serve_beside_worker
from mpesa_gateway_payments import stats_sql
from mpesa_gateway_payments import tables as payments
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_reconciliation import tables as reconciliation
from mpesa_gateway_refunds import tables as refunds
from mpesa_gateway_webhooks import tables as webhooks
from tests.asgi import ask
from tests.certificates import issue
from tests.house.tree import ROOT
from tests.identifiers import identifier, literal
from tests.journeys.site import running_site, until_up

TOKEN = "a-token-for-prometheus"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
DASHBOARD = ROOT / "deploy/grafana/mpesa-gateway.json"

SELECTOR = re.compile(r"\b((?:mpesa|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
GROUPED = re.compile(r"\bby \(([^)]*)\)")

Sample = tuple[str, dict[str, str], float]


@dataclass(frozen=True)
class Watched:
    """A gateway with metrics, a shop, its server, and how to read."""

    gateway: Gateway
    base: str
    api: Api
    receiver: Receiver

    async def samples(self) -> list[Sample]:
        """Everything that is shown."""
        return read(await scrape(self.base))

    async def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels. Raises AssertionError for none."""
        return value(await self.samples(), name, **labels)


async def scrape(base: str, headers: dict[str, str] | None = None) -> niquests.Response:
    """One look at /metrics."""
    async with niquests.AsyncSession() as session:
        session.trust_env = False
        return await session.get(f"{base}/metrics", headers=SHOWN if headers is None else headers)


def read(response: niquests.Response) -> list[Sample]:
    """What an answer says, by the library's own parser."""
    assert response.status_code == 200, response.text
    assert str(response.headers["content-type"]).startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.text or "")
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum of the samples of this name with these labels."""
    found = [number for each, known, number in samples if each == name and labels.items() <= known.items()]
    assert found, (name, labels)
    return sum(found)


@pytest.fixture
def watched_values(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Everything, and metrics that are read anew each time."""
    certificate = str(issue(tmp_path / "sandbox.cer", days=10).path)
    more = {"metrics": {"token": TOKEN, "keep": 0}, "daraja": {"sandbox_certificate": certificate}}
    return values | {"plugins": [*PLUGINS, "metrics"]} | more


@pytest.fixture
async def watched(watched_values: dict[str, Any]) -> AsyncGenerator[Watched]:
    """A gateway at work that is watched."""
    async with (
        receiving() as receiver,
        running_gateway(watched_values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        yield Watched(gateway, base, api, receiver)


async def journey(watched: Watched) -> None:
    """A payment that is paid, one that is not, one whose push meets a fault, a forged callback, a statement read."""
    api = watched.api
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
    await watched.receiver.wait_for(2)
    await watched.gateway.services.get(PaymentStatsReader).count()

    async def is_counted() -> bool:
        return await watched.value("mpesa_webhook_attempts_total", outcome="delivered") >= 2

    await eventually(is_counted)


async def test_a_journey_is_counted_as_it_was(watched: Watched) -> None:
    await journey(watched)
    samples = await watched.samples()

    def seen(name: str, **labels: str) -> float:
        return value(samples, name, **labels)

    assert seen("mpesa_payments_ended_total", env="sandbox", outcome="completed") == 1
    assert seen("mpesa_payments_ended_total", outcome="failed", reason="cancelled_by_user") == 1
    assert seen("mpesa_payments_ended_total", env="live") == 0
    assert seen("mpesa_payment_result_seconds_count", outcome="completed") == 1
    assert seen("mpesa_payments", env="sandbox", window="2h", outcome="asked") == 3
    assert seen("mpesa_payments", env="sandbox", window="24h", outcome="paid") == 1
    assert seen("mpesa_payments_failed", env="sandbox", window="24h", reason="cancelled_by_user") == 1
    assert seen("mpesa_payments_taken_kes", env="sandbox", window="2h") == 60
    assert seen("mpesa_callbacks_total", kind="stk", verdict="accepted") == 2
    assert seen("mpesa_callbacks_total", kind="stk", verdict="refused", reason="token") == 1
    for env in ENVS:
        assert seen("mpesa_webhooks_pending", env=env) == seen("mpesa_webhooks_oldest_pending_seconds", env=env) == 0
    assert seen("mpesa_daraja_calls_total", operation="stk_push", outcome="ok", code="") == 2
    assert seen("mpesa_daraja_calls_total", operation="stk_push", outcome="fault", code="500.003.02") == 1
    assert seen("mpesa_daraja_call_seconds_count", env="sandbox", operation="stk_push") == 3
    assert seen("mpesa_http_requests_total", method="POST", route="/v1/payments", status="201") == 2
    assert seen("mpesa_http_requests_total", method="POST", route="/v1/payments", status="503") == 1
    assert seen("mpesa_daraja_tokens") == 1
    assert 0 <= seen("mpesa_daraja_token_age_seconds") < 300
    assert seen("mpesa_postgres_up") == seen("mpesa_valkey_up") == 1
    assert [seen("mpesa_workers", queue=queue) for queue in QUEUES] == [1] * len(QUEUES)
    assert seen("mpesa_migrations_pending") == seen("mpesa_collectors_failed") == 0
    assert seen("mpesa_reconciliation_runs_total", status="completed") == 1
    assert seen("mpesa_jobs_total", job="webhooks.deliver", outcome="done") >= 1
    assert seen("mpesa_build_info") == 1
    assert 8 * 86_400 < seen("mpesa_certificate_expires_seconds", env="sandbox") < 9 * 86_400


async def test_what_waits_in_the_sandbox_is_not_counted_as_live(watched: Watched) -> None:
    await watched.api.pay("254700000020", key="held")
    db = watched.gateway.db
    await db.execute("UPDATE payment SET mismatch = 'amount', received_amount = '5', due_at = now()")
    subject = identifier("pay"), identifier("mer")
    for number, (verdict, env) in enumerate(product(("waiting", "unmatched"), ("sandbox", None))):
        await db.execute(CALLBACK, identifier("cbk", number), verdict, env, *subject)
    samples = await watched.samples()
    counts = (
        "mpesa_payments_open",
        "mpesa_payments_needing_review",
        "mpesa_callbacks_waiting",
        "mpesa_callbacks_unmatched",
    )
    seen = {env: [value(samples, name, env=env) for name in counts] for env in ENVS}
    # A callback whose env is not known may be of either.
    assert seen == {"sandbox": [1, 1, 2, 2], "live": [0, 0, 1, 1]}


CALLBACK = """
INSERT INTO callback (callback_id, kind, env, handle, result_code, subject_id, merchant_id, fingerprint, source, body,
    verdict, received_at, due_at)
VALUES ($1, 'stk', $3::text, id_text($1), '0', CASE WHEN $3 IS NOT NULL THEN $4::uuid END,
    CASE WHEN $3 IS NOT NULL THEN $5::uuid END, substr(sha256(uuid_send($1)), 1, 16), '127.0.0.1', '{}', $2::text,
    now(), CASE WHEN $2::text = 'waiting' THEN now() + interval '1 day' END)
"""


def expressions() -> list[tuple[str, str]]:
    """Every question that the alerts and the dashboard ask, with its place."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    asked = [(rule["alert"], str(rule["expr"])) for rule in rules]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return asked + [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


async def test_what_alerts_and_dashboard_ask_for_is_there(watched: Watched) -> None:
    """Each metric, each label, and each value that a label is compared with: what is misspelt would never fire."""
    await journey(watched)
    samples = await watched.samples()
    wrong: list[str] = []
    for place, expression in expressions():
        known: set[str] = set()
        for name, inside in SELECTOR.findall(expression):
            labels = [found for each, found, _ in samples if each == name]
            known |= {label for found in labels for label in found}
            if not labels:
                wrong.append(f"{place}: {name} is not exposed")
            for label, how, text in MATCHER.findall(inside):
                texts: list[str] = [] if text == "$env" or (name, label) in UNSEEN else text.split("|")
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


UNSEEN = {
    ("mpesa_http_requests_total", "status"),
    ("mpesa_jobs_total", "outcome"),
    ("mpesa_http_requests_total", "route"),
}
"""Labels with values that a journey which goes well does not bring about."""


def test_every_alert_is_whole_and_has_its_section_in_the_runbook() -> None:
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


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "env"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] in {"row", "stat", "timeseries"}
        assert (panel["type"] == "row") == ("targets" not in panel)


async def test_only_those_who_are_let_in_read(watched_values: dict[str, Any]) -> None:
    values = watched_values | {"limits": {"auth_failures": 3}}
    async with running_gateway(values) as (_, base):
        for headers in ({}, {"Authorization": "Bearer another"}, {"Authorization": f"Basic {TOKEN}"}):
            refused = await scrape(base, headers)
            assert (refused.status_code, refused.json()["errors"][0]["code"]) == (401, "AUTH_INVALID_KEY")
        # Without a token it is no guess.
        assert [(await scrape(base, {})).status_code for _ in range(5)] == [401] * 5
        assert (await scrape(base, {"Authorization": "Bearer a third"})).status_code == 401
        assert (await scrape(base, {"Authorization": "Bearer a fourth"})).status_code == 429


async def test_a_token_is_not_guessed_and_its_reader_is_not_shut_out(watched_values: dict[str, Any]) -> None:
    values = watched_values | {
        "limits": {"auth_failures": 3},
        "security": watched_values["security"] | {"trusted_proxies": ["127.0.0.0/8"]},
    }

    def shown(address: str, token: str = TOKEN) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}", "X-Forwarded-For": address}

    async with running_gateway(values) as (_, base):
        guesses = [(await scrape(base, shown("203.0.113.1", f"guess {n}"))).status_code for n in range(5)]
        assert guesses == [401, 401, 401, 429, 429]
        # Even the right one: whoever guesses long enough would find it.
        assert (await scrape(base, shown("203.0.113.1"))).status_code == 429
        # Another address is counted by itself, and the /64 of one counts as one.
        assert (await scrape(base, shown("203.0.113.2"))).status_code == 200
        in_one = [(await scrape(base, shown(f"2001:db8::{n}", "guess"))).status_code for n in range(1, 6)]
        assert in_one == [401, 401, 401, 429, 429]
        # A reader goes on, whatever is guessed from its address.
        guesses = [(await scrape(base, shown("203.0.113.2", f"guess {n}"))).status_code for n in range(5)]
        assert guesses == [401, 401, 401, 429, 429]
        assert (await scrape(base, shown("203.0.113.2"))).status_code == 200


async def test_a_token_is_not_guessed_without_valkey_either(watched_values: dict[str, Any]) -> None:
    values = watched_values | {
        "limits": {"auth_failures": 3},
        "valkey": {"url": "valkey://127.0.0.1:9/0"},
        "worker": {"in_process": False},
    }
    async with running_gateway(values) as (_, base):
        guesses = [(await scrape(base, {"Authorization": f"Bearer guess {n}"})).status_code for n in range(5)]
        assert guesses == [401, 401, 401, 429, 429]


async def test_networks_say_who_reads_and_others_find_nothing_there(watched_values: dict[str, Any]) -> None:
    values = watched_values | {"metrics": {"networks": ["10.1.0.0/16"]}, "security": watched_values["security"]}
    async with running_gateway(values) as (_, base):
        assert (await scrape(base, {})).status_code == 404
        # Nobody whom we do not trust says where a request comes from.
        assert (await scrape(base, {"X-Forwarded-For": "10.1.2.3"})).status_code == 404
    values["metrics"] = {"networks": ["127.0.0.0/8"]}
    async with running_gateway(values) as (_, base):
        assert (await scrape(base, {})).status_code == 200


def unstarted(values: dict[str, Any], **metrics: Any) -> Gateway:
    """A gateway with these settings of metrics."""
    return Gateway(GatewayConfig.from_values(values | {"plugins": [*PLUGINS, "metrics"], "metrics": metrics}))


@pytest.mark.parametrize("token", ["x", "fifteen letters"])
def test_a_token_that_can_be_guessed_is_refused_when_the_settings_are_checked(
    values: dict[str, Any], token: str
) -> None:
    with pytest.raises(ConfigError, match=r"`metrics`: `metrics\.token` must have at least 16 characters"):
        GatewayConfig.from_values(values | {"metrics": {"token": token}}).section("metrics", MetricsSettings)
    assert unstarted(values, token="sixteen letters!").settings(MetricsSettings).token is not None


def test_nobody_reads_where_the_settings_do_not_say_who(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"set `metrics\.token`"):
        unstarted(values).services.get(metrics_plugin.provides[0][0])
    with pytest.raises(ConfigError, match=r"`metrics\.token` is empty"):
        unstarted(values, token="").services.get(metrics_plugin.provides[0][0])
    with pytest.raises(ConfigError, match=r"setting `metrics\.networks`: `x` is no address"):
        unstarted(values, networks=["x"]).services.get(metrics_plugin.provides[0][0])


async def test_neither_numbers_nor_merchants_nor_what_callers_make_up_are_shown(watched: Watched) -> None:
    await journey(watched)
    merchant = (await watched.api.call("GET", "/v1/merchant/me")).data["id"]
    for number in range(5):
        said = await ask(watched.gateway.asgi, f"MADEUP{number}", f"/nothing/254711000018/{number}".encode())
        assert said.status in {404, 405}
    text = (await scrape(watched.base)).text or ""
    assert not re.search(r"254\d{9}|0[17]\d{8}", re.sub(r" [\d.e+-]+$", "", text, flags=re.MULTILINE))
    assert merchant not in text
    assert "pay_" not in text
    assert "MADEUP" not in text
    assert TOKEN not in text
    assert 'mpesa_http_requests_total{method="other",route="(unknown)",status="404"} 5.0' in text


def test_metrics_two_gateways_in_one_process_count_separately(values: dict[str, Any]) -> None:
    labels = {"method": "GET", "route": "/v1/payments", "status": "200"}
    one, two = unstarted(values, token=TOKEN), unstarted(values, token=TOKEN)
    one.metrics.get(KernelMetrics).requests.labels(**labels).inc()
    for gateway, expected in ((one, [1]), (two, [])):
        shown = [
            sample.value
            for metric in gateway.services.get(Exposition).collect()
            for sample in metric.samples
            if sample.name == "mpesa_http_requests_total"
        ]
        assert shown == expected


def test_metrics_two_plugins_with_one_name_are_refused(values: dict[str, Any]) -> None:
    def define(registry: CollectorRegistry) -> Counter:
        return Counter("mpesa_jobs_total", "A test.", registry=registry)

    host = Plugin(name="counting", summary="Counts.", metrics=define)
    with pytest.raises(PluginError, match=r"two metrics have the same name \(mpesa_jobs"):
        Gateway(GatewayConfig.from_values(values), plugins=(host,))


async def test_exposition_every_series_is_declared_with_its_labels(watched: Watched) -> None:
    """Also that the library's `_created` series, one for each counter and histogram, are left out."""
    await journey(watched)
    declared = {each.name: set(each.labels) for each in (*counted(plugins()), *collected(plugins()))}
    families = text_string_to_metric_families((await scrape(watched.base)).text or "")
    shown = {
        f"{family.name}_total" if family.type == "counter" else family.name: {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for family in families
        if not family.name.startswith("process_")
    }
    assert shown.keys() <= declared.keys()
    assert {name: labels for name, labels in shown.items() if labels - declared[name]} == {}
    assert len(shown) > 40


def test_every_fault_code_that_daraja_makes_up_counts_as_one() -> None:
    for content, expected in (
        ({"errorCode": "500.003.02"}, ("fault", "500.003.02")),
        ({"errorCode": "500.001.1001"}, ("fault", "500.001.1001")),
        ({"errorCode": "made.up.254711000018"}, ("fault", OTHER)),
        ({"ResponseCode": "0"}, ("ok", "")),
        (None, ("no_json", "")),
    ):
        assert counted_as(200, content) == expected


async def test_exposition_one_collector_fails_others_are_shown_and_kept(
    watched_values: dict[str, Any],
) -> None:
    looks = 0

    def gauges() -> Gauges:
        return (GaugeMetricFamily("mpesa_test_looks", "A test."),)

    async def look(_: Runtime, gauges: Gauges) -> None:
        nonlocal looks
        looks += 1
        gauges[0].add_metric((), looks)

    def broken_gauges() -> Gauges:
        return (GaugeMetricFamily("mpesa_test_broken", "A test."),)

    async def fail(_: Runtime, gauges: Gauges) -> None:
        gauges[0].add_metric((), 1)
        raise LookupError("a test")

    host = Plugin(
        name="looking",
        summary="Looks.",
        collectors=(Collector(gauges, look), Collector(broken_gauges, fail)),
    )
    values = watched_values | {"metrics": {"token": TOKEN, "keep": 3600}}
    async with running_gateway(values, plugins=(host,)) as (_, base):
        for _ in range(3):
            samples = read(await scrape(base))
            assert value(samples, "mpesa_test_looks") == 1
            assert not any(name == "mpesa_test_broken" for name, _, _ in samples)
            assert value(samples, "mpesa_collectors_failed") == 1
            assert value(samples, "mpesa_postgres_up") == 1
            assert value(samples, "mpesa_payments_open") == 0
    assert looks == 1


async def test_without_valkey_the_rest_is_shown(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away() -> None:
        raise OSError("away")

    monkeypatch.setattr(watched.gateway.valkey, "ping", away)
    samples = await watched.samples()
    assert value(samples, "mpesa_valkey_up") == 0
    assert value(samples, "mpesa_postgres_up") == 1
    assert not any(name == "mpesa_workers" for name, _, _ in samples)


async def test_a_worker_shows_its_own(watched_values: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    values = watched_values | {"metrics": {"token": TOKEN, "worker_port": port}, "worker": {"in_process": False}}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway, serve_beside_worker(gateway):
        base = f"http://127.0.0.1:{port}"
        assert value(read(await scrape(base)), "mpesa_postgres_up") == 1
        assert (await scrape(base, {})).status_code == 401
        async with niquests.AsyncSession() as session:
            assert (await session.get(base + "/v1/payments")).status_code == 404
            assert (await session.post(base + "/metrics", headers=SHOWN)).status_code == 404
    assert TOKEN not in "".join(capfd.readouterr())


async def test_the_worker_of_the_command_line_does_too(database_url: str, valkey_url: str, tmp_path: Path) -> None:
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
    "payments by hour": (stats_sql.TALLIED_BY_ENV, (timedelta(hours=1),)),
    "reasons by hour": (stats_sql.TALLIED_REASONS, (timedelta(hours=1),)),
    "open payments": (payments.COUNT_OPEN, ("'live'",)),
    "held payments": (payments.COUNT_HELD, ("ARRAY['live']",)),
    "owed webhooks": (webhooks.OWED, ("ARRAY['live']",)),
    "dead webhooks": (webhooks.DEAD_SINCE, (literal("dlv"), "ARRAY['live']")),
    "waiting callbacks": (callbacks.COUNT_WAITING, ("'live'",)),
    "unmatched callbacks": (callbacks.COUNT_UNMATCHED, ("'live'",)),
    "open refunds": (refunds.COUNT_OPEN, ("'live'",)),
    "unexplained lines": (reconciliation.COUNT_UNRESOLVED_BY_FINDING, ()),
    "unread statements": (reconciliation.COUNT_FAILING, ("ARRAY['live']",)),
}


async def test_what_is_asked_of_postgres_is_answered_by_indexes(watched: Watched) -> None:
    """Each question can be answered without reading a table of money from end to end."""
    now = watched.gateway.clock.now()
    read_whole: dict[str, str] = {}
    async with watched.gateway.db.transaction():
        # Small tables are read whole because that is cheaper; with this, only where there is no index that serves.
        await watched.gateway.db.execute("SET LOCAL enable_seqscan = off")
        # Piccolo writes a query out only where its table has an engine.
        queries = QUERIES | {"held refunds": (str(refunds.waiting_of("live")), ())}
        for name, (sql, values) in queries.items():
            for number, given in enumerate(values, 1):
                literal = given if isinstance(given, str) else f"'{(now - given).isoformat()}'::timestamptz"
                sql = sql.replace(f"${number}", literal)  # noqa: PLW2901
            rows = await watched.gateway.db.fetch(f"EXPLAIN (COSTS OFF) {sql}")
            plan = "\n".join(row[0] for row in rows)
            if re.search(r"Seq Scan on (?!merchant\b)", plan):
                read_whole[name] = plan
    assert read_whole == {}


async def test_a_requests_id_goes_with_it_into_the_jobs_that_it_leads_to(watched_values: dict[str, Any]) -> None:
    seen: list[str] = []

    async def second(_: Gateway) -> None:
        seen.append(current_request_id())

    async def first(gateway: Gateway) -> None:
        seen.append(current_request_id())
        await gateway.jobs.enqueue("asking.second")

    host = Plugin(name="asking", summary="Asks.", jobs=(Job(first, timeout=5), Job(second, timeout=5)))
    async with running_gateway(watched_values, plugins=(host,)) as (gateway, _):
        with use_request_id("the-callers-own-id"):
            await gateway.jobs.enqueue("asking.first")

        async def both() -> bool:
            return len(seen) == 2

        await eventually(both)
    assert seen == ["the-callers-own-id"] * 2


async def test_the_callers_id_is_in_the_answer_and_in_every_line_of_what_came_of_it(watched: Watched) -> None:
    """In that of the request, of the call to Daraja, and of the delivery that was owed: a job, in a worker."""
    watched.receiver.status = 500
    asked = {"X-Request-ID": "till-7.order-12", "Idempotency-Key": "a"}
    processors: list[Any] = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors=processors) as lines:
        # M-Pesa refuses the push, so that the merchant is told before the answer is given.
        body = {"amount": 5, "phone": "254700000015"}
        answer = await watched.api.call("POST", "/v1/payments", body, headers=asked)
        assert (answer.status, answer.headers["X-Request-ID"]) == (502, "till-7.order-12")

        async def is_told() -> bool:
            return any(line["event"] == "delivery_failed" for line in lines)

        await eventually(is_told)
    ours = [line for line in lines if line.get("request_id") == "till-7.order-12"]
    by_event = {line["event"]: line for line in ours}
    assert {"request", "daraja_exchange", "payment_failed", "delivery_failed"} <= set(by_event)
    assert by_event["delivery_failed"]["job"] == "webhooks.deliver"
    insane = await watched.api.call("GET", "/v1/payments", headers={"X-Request-ID": "with space"})
    assert insane.headers["X-Request-ID"].startswith("req_")
