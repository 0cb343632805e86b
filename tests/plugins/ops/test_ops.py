"""Protects the operators' login, sessions, failed jobs, queue pages, prefixes and commands."""

import os
import re
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from saq import Job, Status
from starlette.applications import Starlette
from starlette.routing import Mount

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.commands.session import Session
from mpesa_gateway.config import QUEUES, GatewayConfig
from mpesa_gateway.errors import Conflict, InvalidFields, NotFound
from mpesa_gateway.http.csrf import is_same_site
from mpesa_gateway.ops_contract import FirstOperator, Role
from mpesa_gateway.plugin import Job as JobOf
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.testing.serving import eventually, listening, running_gateway, serving
from mpesa_gateway_ops.commands import people as people_command
from mpesa_gateway_ops.failed_jobs import failure_reason, last_line
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People
from tests.asgi import AsgiAnswer, send_request
from tests.browsing import PASSWORD, Browser, set_up_factor, signed_in
from tests.forking import forks

PLUGINS = ["credentials", "callbacks", "transactions", "payments", "webhooks", "ops"]
QUEUE = "/queue/queues/mpesa-default"


@dataclass(frozen=True)
class OpsGateway:
    """A gateway and the address of its pages."""

    gateway: Gateway
    url: str
    clock: SetClock


async def fail(gateway: Gateway, **kwargs: Any) -> None:
    """A job that always raises RuntimeError."""
    raise RuntimeError(f"<b>no</b> {sorted(kwargs)} in\n{len(gateway.plugins)} plugins")


calls: list[str] = []


async def fail_once(_: Gateway, *, call_id: str) -> None:
    """A job that raises RuntimeError the first time."""
    calls.append(call_id)
    if calls.count(call_id) == 1:
        raise RuntimeError("the first time")


FAILING = Plugin(name="failing", summary="Fails.", jobs=(JobOf(fail, timeout=10), JobOf(fail_once, timeout=10)))


@pytest.fixture
def settings(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with the plugins that the pages need only."""
    del values["simulator"]
    return values | {"plugins": PLUGINS, "limits": {"auth_failures": 3}}


@asynccontextmanager
async def running_ops(settings: dict[str, Any]) -> AsyncGenerator[OpsGateway]:
    """A gateway with one operator."""
    clock = SetClock(datetime.now(UTC))
    async with running_gateway(settings, clock=clock, plugins=(FAILING,)) as (gateway, base):
        await gateway.services.get(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
        yield OpsGateway(gateway, f"{base}/ops", clock)


@pytest.fixture
async def ops(settings: dict[str, Any]) -> AsyncGenerator[OpsGateway]:
    """A gateway with one operator and the default settings."""
    async with running_ops(settings) as found:
        yield found


async def actions(gateway: Gateway) -> list[str]:
    """Returns the audited actions, newest first."""
    return [entry.action for entry in (await gateway.audit.page(100, None, None, None)).rows]


async def fail_job(gateway: Gateway, name: str, count: int = 1, **kwargs: Any) -> list[Job]:
    """Enqueue a failing job and return the failed jobs once there are ``count``."""
    await gateway.jobs.enqueue(name, **kwargs)

    async def read_failed() -> list[Job] | None:
        jobs = await gateway.jobs.queues["default"].failed_jobs(0, 100)
        return jobs if len(jobs) == count else None

    found = await eventually(read_failed)
    assert found is not None
    return found


# -- login -----------------------------------------------------------------------------------------------------------


async def test_request_without_session_redirects_pages_and_answers_programs_with_401(ops: OpsGateway) -> None:
    async with Browser(ops.url) as browser:
        for path in ("", "/", "/failed", "/failed/", "/queue", "/queue/", QUEUE, QUEUE + "/jobs/x"):
            page = await browser.open(path, follows=False)
            assert page.status == 303
            assert urljoin(page.url, page.headers["Location"]) == ops.url + "/login"
        for path in ("", "/failed", "/queue/api/queues", "/queue/static/app.js"):
            page = await browser.open(path, accept="application/json")
            assert (page.status, "AUTH_INVALID_KEY" in page.text) == (401, True)
            assert page.headers["Cache-Control"] == "no-store"
        for path in ("/failed/retry", "/logout", "/queue/api/queues/mpesa-default/jobs/x/retry"):
            assert (await browser.send(path, {}, {"Accept": "*/*"})).status == 401
            assert (await browser.send(path, {})).url == ops.url + "/login"


async def test_login_with_a_wrong_password_does_not_reveal_whether_the_name_exists(ops: OpsGateway) -> None:
    async with Browser(ops.url) as browser:
        wrong = await browser.sign_in(password=Secret("not the password at all"))
        unknown = await browser.sign_in("nobody", Secret("not the password at all"))
        assert (wrong.status, unknown.status, browser.cookies) == (401, 401, [])
        assert wrong.text == unknown.text.replace("nobody", "amina")
        page = await browser.sign_in(" Amina@shop.example ")
        assert (page.status, page.url) == (200, ops.url)
        assert "amina" in page.text
        (cookie,) = browser.cookies
        assert (cookie.path, cookie.secure, cookie.get_nonstandard_attr("SameSite")) == ("/ops", False, "Strict")
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.expires is not None
    stored = await ops.gateway.db.fetchval("SELECT digest FROM ops_session")
    assert len(bytes.fromhex(cookie.value)) == 32
    assert cookie.value.encode() not in bytes(stored)
    assert bytes.fromhex(cookie.value) != bytes(stored)
    assert (await actions(ops.gateway))[:3] == ["person.signed_in", *["person.sign_in_failed"] * 2]
    entry = (await ops.gateway.audit.page(1, None, "person.sign_in_failed", None)).rows[0]
    assert (entry.actor, entry.subject_id, entry.detail) == ("address:127.0.0.1", None, {"from": "127.0.0.1"})


async def test_login_with_a_malformed_name_or_password_is_401(ops: OpsGateway) -> None:
    async with Browser(ops.url) as browser:
        assert (await browser.sign_in("\x00<b>", Secret("x"))).status == 401
        assert (await browser.sign_in("amina", Secret("x" * 5000))).status == 401
        assert (await browser.send("/login", {})).status == 401


async def test_login_with_the_right_password_over_the_failure_limit_is_429(ops: OpsGateway) -> None:
    async with Browser(ops.url) as browser:
        for _ in range(3):
            assert (await browser.sign_in(password=Secret("not the password at all"))).status == 401
        page = await browser.sign_in()
        assert (page.status, "Too many failed attempts" in page.text) == (429, True)
        assert 1 <= int(page.headers["Retry-After"]) <= 310
        assert browser.cookies == []
    assert (await actions(ops.gateway)).count("person.sign_in_failed") == 3


async def test_login_over_https_sets_secure_cookies(settings: dict[str, Any]) -> None:
    settings |= {"public_url": "https://pay.example.co.ke"}
    async with running_ops(settings) as ops, Browser(ops.url) as browser:
        page = await browser.sign_in(follows=False)
        for name in ("mpesa_gateway_ops", "mpesa_gateway_ops_device"):
            (sent,) = re.findall(rf"{name}=([^,]*)", page.headers["Set-Cookie"])
            parts = {part.strip().lower().partition("=")[0] for part in sent.split(";")[1:]}
            assert parts == {"max-age", "httponly", "samesite", "secure"}
            assert "samesite=strict" in sent.lower()


# -- sessions ---------------------------------------------------------------------------------------------------------


async def test_session_expires_after_one_idle_hour_and_after_twelve_hours(ops: OpsGateway) -> None:
    async with signed_in(ops.url) as browser:
        ops.clock.advance(timedelta(minutes=59))
        assert (await browser.open()).url == ops.url
        ops.clock.advance(timedelta(minutes=59))
        # The queue page polls, which does not count as activity.
        assert (await browser.open("/queue/api/queues", accept="*/*")).status == 200
        ops.clock.advance(timedelta(minutes=2))
        assert (await browser.open()).url == ops.url + "/login"
        await browser.sign_in()
        for _ in range(14):
            ops.clock.advance(timedelta(minutes=50))
            assert (await browser.open()).url == ops.url
        ops.clock.advance(timedelta(minutes=21))
        assert (await browser.open()).url == ops.url + "/login"
        await browser.sign_in()
    assert await ops.gateway.db.fetchval("SELECT count(*) FROM ops_session") == 1


async def test_logout_ends_the_session_on_the_server(ops: OpsGateway) -> None:
    async with signed_in(ops.url) as browser, Browser(ops.url) as thief:
        thief.add_cookies(browser.cookies)
        page = await thief.open()
        assert page.url == ops.url
        assert (await browser.send("/logout", {"form_token": "0" * 64})).status == 403
        assert (await thief.open()).url == ops.url
        out = await browser.send("/logout", {"form_token": page.field("form_token")})
        assert (out.url, browser.cookies) == (ops.url + "/login", [])
        assert (await thief.open()).url == ops.url + "/login"
    assert (await actions(ops.gateway))[0] == "person.signed_out"


async def test_session_ends_with_a_new_password_or_deactivation(ops: OpsGateway) -> None:
    operators = ops.gateway.services.get(People)
    async with signed_in(ops.url) as browser:
        await operators.set_password("amina@shop.example", Secret("another long password"), actor="test")
        assert (await browser.open()).url == ops.url + "/login"
        assert (await browser.sign_in()).status == 401
        assert (await browser.sign_in(password=Secret("another long password"))).url == ops.url
        person = await operators.find("amina@shop.example")
        await ops.gateway.port(Memberships).deactivate(person.person_id, actor="test")
        assert (await browser.open()).url == ops.url + "/login"
        assert (await browser.sign_in(password=Secret("another long password"))).status == 401
    with pytest.raises(NotFound, match="no active person"):
        await operators.set_password("amina@shop.example", PASSWORD, actor="test")
    with pytest.raises(Conflict, match="is or was"):
        await operators.create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")


# -- other sites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "", "Referer": "https://evil.example/ops"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_post_from_another_site_is_refused(ops: OpsGateway, headers: dict[str, str]) -> None:
    await fail_job(ops.gateway, "failing.fail")
    async with signed_in(ops.url) as browser:
        page = await browser.open("/failed")
        fields = {name: page.field(name) for name in ("form_token", "queue", "key")}
        for path in ("/login", "/logout", "/failed/retry", f"/queue/api{QUEUE[6:]}/jobs/{fields['key']}/retry"):
            refused = await browser.send(path, fields, headers)
            assert (refused.status, "one of our own pages" in refused.text) == (403, True)
        assert (await browser.open()).url == ops.url
    (job,) = await ops.gateway.jobs.queues["default"].failed_jobs(0, 10)
    assert (job.status, job.attempts) == (Status.FAILED, 1)


@given(st.sampled_from(["origin", "referer"]), st.text(max_size=60))
def test_same_site_check_rejects_every_other_origin(header: str, text: str) -> None:
    for source in (text, f"http://{text}", f"http://pay.example{text}", f"http://{text}@pay.example.evil"):
        is_own = is_same_site({header: source}, ["pay.example", ""])
        assert not is_own or re.match(r"(http:)?//pay\.example(/|\?|#|\Z|[\t\r\n])", source.strip(), re.IGNORECASE)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://Pay.example"},
        {"referer": "https://pay.example/ops/failed?page=2"},
        {"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"},
    ],
)
def test_same_site_check_accepts_our_own_pages(headers: dict[str, str]) -> None:
    assert is_same_site(headers, ["pay.example"])


# -- pages ------------------------------------------------------------------------------------------------------------


async def test_pages_have_strict_headers_and_link_to_our_own_pages_only(ops: OpsGateway) -> None:
    (job,) = await fail_job(ops.gateway, "failing.fail")
    seen = 0
    async with signed_in(ops.url) as browser:
        for path in (
            "",
            "/",
            "/login",
            "/failed",
            "/failed/",
            "/queue/",
            QUEUE,
            f"{QUEUE}/jobs/{job.key}",
            "/queue/static/app.js",
        ):
            page = await browser.open(path)
            policy = page.headers["Content-Security-Policy"]
            assert page.status == 200
            assert page.headers["X-Frame-Options"] == "DENY"
            assert page.headers["Cache-Control"] == "no-store"
            assert page.headers["Referrer-Policy"] == "same-origin"
            assert policy.startswith("default-src 'none'")
            assert not re.search(r"https?:|\*|unsafe", policy)
            if page.url.endswith(".js"):
                continue
            assert page.unbalanced_tags == []
            for form in page.forms:
                assert form.action.startswith(ops.url), form
            for link in page.links:
                assert link.startswith(ops.url[: -len("ops")]), link
                assert (await browser.open(link)).status == 200, link
                seen += 1
    assert seen > 20


async def test_overview_shows_the_parts_and_the_failed_jobs(ops: OpsGateway) -> None:
    await fail_job(ops.gateway, "failing.fail")
    async with signed_in(ops.url) as browser:
        page = await browser.open()
        assert re.search(r'<dt>failed</dt><dd><a href="[^"]*/failed">1</a></dd>', page.text)
        assert "1 job has failed" in page.words
        for part in ("postgres", "migrations", "valkey", "queue"):
            assert f"{part} healthy" in page.words


async def test_queue_pages_without_valkey_answer_with_503(settings: dict[str, Any]) -> None:
    settings |= {"valkey": {"url": "valkey://127.0.0.1:1/0"}, "worker": {"in_process": False}}
    async with running_ops(settings) as ops, signed_in(ops.url) as browser:
        assert "The queue is unreachable." in (await browser.open()).text
        assert (await browser.open("/queue")).status == 200
        page = await browser.open("/failed")
        assert (page.status, "payments go on" in page.text) == (503, True)
        answer = await browser.open("/queue/api/queues", accept="*/*")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


async def test_failed_jobs_page_lists_the_newest_first_and_escapes_text(ops: OpsGateway) -> None:
    await fail_job(ops.gateway, "failing.fail", delivery_id="dlv_1")
    jobs = await fail_job(ops.gateway, "failing.fail", 2, delivery_id="<script>")
    assert [(job.kwargs or {})["delivery_id"] for job in jobs] == ["<script>", "dlv_1"]
    async with signed_in(ops.url) as browser:
        page = await browser.open("/failed")
    text = page.text
    assert text.index("&lt;script&gt;") < text.index("dlv_1")
    assert "<script>" not in text
    assert f"<code>{len(ops.gateway.plugins)} plugins</code>" in text
    assert "RuntimeError in the queue mpesa-default, after 1 try" in page.words
    assert "Traceback" not in text


async def test_failed_jobs_over_the_limit_delete_the_oldest_and_are_paged(
    ops: OpsGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpesa_gateway.queues._FAILED_AT_MOST", 60)
    queue = ops.gateway.jobs.queues["default"]
    for number in range(70):
        job = Job("failing.fail", kwargs={"number": number}, key=f"job-{number}", queue=queue)
        await queue.finish(job, Status.FAILED, error="x")
        await queue.redis.zadd(queue.namespace("failed"), {job.id: number + 1})
    assert await queue.count_failed() == 60
    assert await queue.redis.ttl(queue.job_id("job-5")) <= 60
    assert await queue.redis.ttl(queue.job_id("job-69")) > 6 * 24 * 3600
    async with signed_in(ops.url) as browser:
        shown: list[str] = []
        page = await browser.open("/failed?page=-1")
        while True:
            shown += re.findall(r"number&#34;:(\d+)", page.text)
            older = re.search(r'href="([^"]*)">Older', page.text)
            if older is None:
                break
            page = await browser.open(urljoin(page.url, older[1]))
        assert shown == [str(number) for number in range(69, 9, -1)]
        assert page.url.endswith("?page=3")
        assert "Newer" in page.text


async def test_failed_job_retried_twice_runs_once_and_leaves_the_list(ops: OpsGateway) -> None:
    (job,) = await fail_job(ops.gateway, "failing.fail_once", call_id="call_1")
    async with signed_in(ops.url) as browser:
        page = await browser.open("/failed")
        fields = {name: page.field(name) for name in ("form_token", "queue", "key", "page")}
        assert (await browser.send("/failed/retry", fields | {"form_token": "x"})).status == 403
        assert calls.count("call_1") == 1
        first = await browser.send("/failed/retry", fields)
        assert "The job is on the queue again." in first.text
        assert "no longer among the failed" in (await browser.send("/failed/retry", fields)).text

        async def is_done() -> bool:
            found = await ops.gateway.jobs.queues["default"].job(job.key)
            return found is not None and found.status == Status.COMPLETE

        assert await eventually(is_done)
        assert "No job has failed." in (await browser.open("/failed")).text
    assert calls.count("call_1") == 2
    assert await ops.gateway.jobs.queues["default"].count_failed() == 0
    (entry,) = (await ops.gateway.audit.page(10, None, "job.retried", None)).rows
    assert (entry.actor[:11], entry.subject_id) == ("person:per_", job.key)
    assert entry.detail == {"job": "failing.fail_once", "from": "127.0.0.1"}


async def test_failed_job_that_fails_again_is_listed_again(ops: OpsGateway) -> None:
    (job,) = await fail_job(ops.gateway, "failing.fail")
    async with signed_in(ops.url) as browser:
        page = await browser.open("/failed")
        await browser.send("/failed/retry", {name: page.field(name) for name in ("form_token", "queue", "key", "page")})

        async def fails_again() -> bool:
            found = await ops.gateway.jobs.queues["default"].failed_jobs(0, 10)
            return [(one.key, one.attempts) for one in found] == [(job.key, 2)]

        assert await eventually(fails_again)
        assert "RuntimeError in the queue mpesa-default, after 2 tries" in (await browser.open("/failed")).words


async def test_failed_job_discarded_is_removed_and_audited(ops: OpsGateway) -> None:
    (job,) = await fail_job(ops.gateway, "failing.fail")
    async with signed_in(ops.url) as browser:
        page = await browser.open("/failed")
        fields = {name: page.field(name) for name in ("form_token", "queue", "key", "page")}
        assert (await browser.send("/failed/discard", fields | {"form_token": "x"})).status == 403
        assert "The job was discarded." in (await browser.send("/failed/discard", fields)).words
        assert "no longer among the failed" in (await browser.send("/failed/discard", fields)).words
        assert "No job has failed." in (await browser.open("/failed")).words
    queue = ops.gateway.jobs.queues["default"]
    assert await queue.count_failed() == 0
    assert await queue.redis.ttl(job.id) <= 60
    (entry,) = (await ops.gateway.audit.page(10, None, "job.discarded", None)).rows
    assert (entry.actor[:11], entry.subject_id) == ("person:per_", job.key)
    assert entry.detail == {"job": "failing.fail", "from": "127.0.0.1"}


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (Status.FAILED, "Traceback (most recent call last):\n  File x\nValueError: no\n\n", "ValueError"),
        (Status.FAILED, "Traceback:\n  File x\n    y\nmpesa_gateway.errors.NotFound: no page\nhere", "NotFound"),
        (Status.FAILED, "Traceback:\n  File x\nTimeoutError", "timed_out"),
        (Status.ABORTED, "aborted by an operator", "aborted"),
        (Status.ABORTED, "swept", "worker_lost"),
        (Status.FAILED, "2 plugins", "unknown"),
        (Status.FAILED, None, "unknown"),
    ],
)
def test_failure_reason_is_one_stable_word(status: Status, error: str | None, reason: str) -> None:
    assert failure_reason(status, error) == reason


def test_last_line_of_a_traceback_is_the_exception() -> None:
    assert last_line("Traceback (most recent call last):\n  File x\nValueError: no\n\n") == "ValueError: no"
    assert last_line(None) == last_line(" \n ") == ""


# -- SAQ's pages ------------------------------------------------------------------------------------------------------


async def test_queue_page_serves_saqs_scripts_and_json(ops: OpsGateway) -> None:
    (job,) = await fail_job(ops.gateway, "failing.fail", delivery_id="dlv_1")
    await ops.gateway.jobs.enqueue("failing.fail", delay=3000, delivery_id="dlv_later")
    async with signed_in(ops.url) as browser:
        page = await browser.open("/queue")
        assert page.url == ops.url + "/queue/"
        assert page.unbalanced_tags == []
        assert page.link("/ops/failed")
        assert page.link("/ops/queue/static/app.js")
        for name, words in (("app.js", "root_path"), ("snabbdom.js", "snabbdom"), ("queue.js", "X-Form-Token")):
            asset = await browser.open(f"/queue/static/{name}")
            assert asset.headers["Content-Type"].startswith("text/javascript")
            assert words in asset.text
        for name in ("other.js", "..%2f..%2fcommon.py", "../common.py"):
            assert (await browser.open(f"/queue/static/{name}")).status == 404
        api = "/queue/api/queues"
        listed = (await browser.open(api, accept="*/*")).text
        for name in QUEUES:
            assert f'"name":"mpesa-{name}"' in listed
            assert (await browser.open(f"{api}/mpesa-{name}", accept="*/*")).status == 200
        detail = (await browser.open(f"{api}/mpesa-default", accept="*/*")).text
        assert '"workers":' in detail
        assert '"status":"scheduled"' in detail
        assert "dlv_1" in (await browser.open(f"{api}/mpesa-default/jobs/{job.key}", accept="*/*")).text
        for path in (f"{api}/other", f"{api}/mpesa-default/jobs/nothing", f"{api}/other/jobs/{job.key}"):
            assert (await browser.open(path, accept="*/*")).status == 404


async def test_queue_json_for_a_viewer_masks_phone_numbers(ops: OpsGateway) -> None:
    (job,) = await fail_job(ops.gateway, "failing.fail", of="254712345678")
    await ops.gateway.services.get(People).create("viola@shop.example", PASSWORD, role=Role.VIEWER, actor="test")
    path = f"/queue/api/queues/mpesa-default/jobs/{job.key}"
    async with signed_in(ops.url, "viola") as browser:
        page = await browser.open(QUEUE)
        assert "data-may-act" not in page.text
        assert "254712345678" not in (await browser.open(path, accept="*/*")).text
        act = {"Accept": "*/*", "X-Form-Token": page.field("form_token")}
        assert (await browser.send(f"{path}/retry", {}, act)).status == 403
    async with signed_in(ops.url) as browser:
        assert "254712345678" in (await browser.open(path, accept="*/*")).text


async def test_queue_retry_and_abort_need_the_form_token_and_are_audited(ops: OpsGateway) -> None:
    (job,) = await fail_job(ops.gateway, "failing.fail_once", call_id="call_2")
    queue = ops.gateway.jobs.queues["default"]
    await ops.gateway.jobs.enqueue("failing.fail", delay=3000, delivery_id="dlv_later")
    (later,) = [one["key"] for one in (await queue.info(jobs=True))["jobs"] if one["function"] == "failing.fail"]
    async with signed_in(ops.url) as browser:
        page = await browser.open("/queue")
        jobs, act = "/queue/api/queues/mpesa-default/jobs", {"Accept": "application/json"}
        for token in ({}, {"X-Form-Token": "x"}):
            for path in (f"{jobs}/{job.key}/retry", f"{jobs}/{later}/abort"):
                assert (await browser.send(path, {}, act | token)).status == 403
        act["X-Form-Token"] = page.field("form_token")
        assert (await browser.send(f"{jobs}/{later}/retry", {}, act)).status == 409
        assert (await browser.send(f"{jobs}/{job.key}/abort", {}, act)).status == 409
        assert (await browser.send(f"{jobs}/{job.key}/retry", {}, act)).text == "{}"
        assert (await browser.send(f"{jobs}/{later}/abort", {}, act)).text == "{}"
        assert (await browser.send(f"{jobs}/nothing/abort", {}, act)).status == 404

        async def is_done() -> bool:
            found = await queue.job(job.key)
            return found is not None and found.status == Status.COMPLETE

        assert await eventually(is_done)
    entries = (await ops.gateway.audit.page(100, None, None, None)).rows
    assert [entry.action for entry in entries][:2] == ["job.aborted", "job.retried"]
    assert [entry.subject_id for entry in entries][:2] == [later, job.key]
    assert {entry.actor[:11] for entry in entries[:2]} == {"person:per_"}


# -- prefix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strips", [False, True], ids=["mounted by a host", "behind a proxy that strips the prefix"])
async def test_pages_under_a_prefix_keep_it(settings: dict[str, Any], strips: bool) -> None:
    with listening() as at:
        base = f"http://127.0.0.1:{at.getsockname()[1]}/payments"
        gateway = Gateway(GatewayConfig.from_values(settings | {"public_url": base}), plugins=(FAILING,))
        mounted = Starlette(routes=[Mount("/payments", app=gateway.asgi)], lifespan=gateway.lifespan)

        async def proxied(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                path = scope["path"].removeprefix("/payments")
                scope = scope | {"path": path, "raw_path": path.encode(), "root_path": ""}
            await gateway.asgi(scope, receive, send)

        async with serving(proxied if strips else mounted, at), Browser(base + "/ops") as browser:
            await gateway.services.get(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
            (job,) = await fail_job(gateway, "failing.fail")
            assert (await browser.open()).url == base + "/ops/login"
            assert (await browser.sign_in()).url == base + "/ops"
            assert [cookie.path for cookie in browser.cookies] == ["/payments/ops"]
            for path in ("", "/", "/failed", "/queue/", QUEUE, f"{QUEUE}/jobs/{job.key}"):
                page = await browser.open(path)
                assert page.status == 200
                assert page.links
                assert [link for link in page.links if not link.startswith(base + "/")] == []
                root = re.search(r'data-root="([^"]*)"', page.text)
                assert root is None or urljoin(page.url, root[1]) == base + "/ops/queue"
            page = await browser.open("/failed")
            retried = await browser.send(
                "/failed/retry", {n: page.field(n) for n in ("form_token", "queue", "key", "page")}
            )
            assert retried.url.startswith(base + "/ops/failed?page=1&note=")
            assert "The job is on the queue again." in retried.words
            codes = await set_up_factor(browser)
            out = await browser.send("/logout", {"form_token": page.field("form_token")})
            assert (out.url, browser.cookies) == (base + "/ops/login", [])
            asked = await browser.sign_in()
            page = await browser.submit(asked, asked.url.removeprefix(base), code=codes[0])
            assert (page.url, page.status) == (base + "/ops", 200)
            assert [cookie.path for cookie in browser.cookies] == ["/payments/ops"]


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def environ(database_url: str, valkey_url: str) -> dict[str, str]:
    """The environment of the commands."""
    return {
        "MPESA_GATEWAY_CONFIG": "",
        "MPESA_GATEWAY_DATABASE__URL": database_url,
        "MPESA_GATEWAY_VALKEY__URL": valkey_url,
        "MPESA_GATEWAY_SECURITY__MASTER_KEY": generate(),
    }


def run_command(
    folder: Path, environ: dict[str, str], *words: str, typed: str = ""
) -> "subprocess.CompletedProcess[str]":
    return forks.run(("people", *words), folder=folder, environ=os.environ | environ, reads=typed, patience=30)


def test_people_commands_create_list_and_remove(tmp_path: Path, environ: dict[str, str]) -> None:
    create = ("create", "amina@shop.example", "--role", "operator", "--password-stdin")
    made = run_command(tmp_path, environ, *create, typed="a long password\n")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("per_")
    assert "a long password" not in made.stdout + made.stderr
    assert "is or was" in run_command(tmp_path, environ, *create, typed="a long password\n").stderr
    assert "at least 12" in run_command(tmp_path, environ, *create, typed="short\n").stderr
    bad = run_command(
        tmp_path, environ, "create", "Ben B", "--role", "viewer", "--password-stdin", typed="a long password\n"
    )
    assert (bad.returncode, "an e-mail address" in bad.stderr) == (1, True)
    assert run_command(tmp_path, environ, "role", "amina@shop.example", "--role", "owner").returncode == 2
    password = run_command(tmp_path, environ, "password", "amina@shop.example", "--password-stdin", typed="b" * 12)
    assert password.returncode == 0
    reset = run_command(tmp_path, environ, "reset", "amina@shop.example", "--yes")
    assert (reset.returncode, "/ops/join/" in reset.stdout) == (0, True)
    assert run_command(tmp_path, environ, "remove", "amina@shop.example", "--yes").returncode == 0
    again = run_command(tmp_path, environ, "remove", "amina@shop.example", "--yes")
    assert (again.returncode, "no such active person" in again.stderr) == (1, True)
    heading, amina = run_command(tmp_path, environ, "list").stdout.splitlines()
    assert heading.split("\t")[1:6] == ["email", "name", "role", "second_factor", "active"]
    assert amina.split("\t")[1:6] == ["amina@shop.example", "amina", "none", "no", "no"]
    assert amina.split("\t")[7] == "never"


class PasswordRecorder(Session):
    """A command session that starts no gateway and records the passwords passed to it."""

    def __init__(self) -> None:
        super().__init__("")
        self.passwords: list[str] = []

    def run(self, use: Any) -> Any:
        """Record the secrets in the closure of the work."""
        inside = [cell.cell_contents for cell in use.__closure__]
        self.passwords += [found.reveal() for found in inside if isinstance(found, Secret)]


def test_people_password_is_asked_twice_and_not_shown() -> None:
    session = PasswordRecorder()
    typed = "one long password\n"
    done = CliRunner().invoke(people_command, ["password", "amina@shop.example"], obj=session, input=typed * 2)
    assert done.exit_code == 0, done.output
    assert session.passwords == ["one long password"]
    assert "one long password" not in done.output
    words = ["password", "amina@shop.example"]
    other = CliRunner().invoke(people_command, words, obj=session, input=typed + "another\n")
    assert other.exit_code != 0
    assert len(session.passwords) == 1


async def test_create_first_operator_twice_creates_one(settings: dict[str, Any]) -> None:
    async with running_gateway(settings, plugins=(FAILING,)) as (gateway, base):
        password = await gateway.port(People).create_first("admin@localhost", actor="test")
        assert password is not None
        assert len(password.reveal()) == 24
        assert await gateway.port(People).create_first("admin@localhost", actor="test") is None
        async with Browser(f"{base}/ops") as browser:
            assert (await browser.sign_in("admin@localhost", password)).url == f"{base}/ops"
        with pytest.raises(InvalidFields, match="12 to 1024"):
            await gateway.port(People).create("ben@shop.example", Secret("short"), role=Role.VIEWER, actor="test")
    assert password.reveal() not in str(password)


async def test_first_person_of_up_owns_the_merchant_and_signs_in_to_it(settings: dict[str, Any]) -> None:
    async with running_gateway(settings, plugins=(FAILING,)) as (gateway, base):
        shop = await gateway.merchants.create("Demo shop", actor="test")
        other = await gateway.merchants.create("Another shop", actor="test")
        (first,) = gateway.contributed(FirstOperator)
        password = await first.create(gateway, "admin@localhost", "test", shop.merchant_id)
        assert password is not None
        assert await first.create(gateway, "admin@localhost", "test", other.merchant_id) is None
        owned = [
            (each.merchant_id, member.email, member.role)
            for each in (shop, other)
            for member in await gateway.port(Memberships).list(each.merchant_id)
        ]
        assert owned == [(shop.merchant_id, "admin@localhost", "owner")]
        async with Browser(f"{base}/ops") as browser:
            await browser.sign_in("admin@localhost", password)
            assert "Demo shop" in (await browser.open(f"/merchants/{shop.merchant_id}")).words


async def test_site_root_redirects_browsers_where_the_gateway_is_the_whole_site(ops: OpsGateway) -> None:
    app = ops.gateway.asgi

    async def ask(target: bytes, accept: bytes, method: str = "GET", **more: Any) -> AsgiAnswer:
        return await send_request(app, method, target, ((b"accept", accept),), **more)

    browser = b"text/html,application/xhtml+xml,*/*;q=0.8"
    said = await ask(b"/", browser)
    assert (said.status, said.header(b"location")) == (303, b"ops")
    assert (await ask(b"/", browser, "HEAD")).status == 303
    for accept in (b"TEXT/HTML", b"application/json, Text/Html ; q=0.1", b"text/html;level=1"):
        said = await ask(b"/", accept)
        assert (said.status, said.header(b"vary")) == (303, b"Accept"), accept
    for accept in (b"*/*", b"application/json", b"", b"text/html;q=0", b"text/html ; Q = 0.000, */*", b"text/html-x"):
        said = await ask(b"/", accept)
        assert (said.status, said.codes, said.header(b"vary")) == (404, ["NOT_FOUND"], b"Accept"), accept
    # A host's mount, with and without a root_path.
    assert (await ask(b"/payments/", browser, path="/")).status == 404


def test_login_page_names_the_command_for_a_lost_password() -> None:
    text = (Path(__file__).parents[3] / "plugins/mpesa_gateway_ops/templates/login.html").read_text()
    named = re.findall(r"<code>mpesa-gateway people (\w+)", text)
    assert named == ["reset", "list"]
    assert set(named) <= set(people_command.commands)
