"""Looks whether a merchant hears of its money: where its webhooks go, and whether they arrive."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, Level, note, ok, problem, warning
from mpesa_gateway.db.engine import Row
from mpesa_gateway.http.egress import check_url
from mpesa_gateway.ids import Ids
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks import tables
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.settings import WebhooksSettings

_LATELY = timedelta(days=7)


async def check_settings(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    """What is fine for trying webhooks out, and not beside real money."""
    if gateway.settings(WebhooksSettings).allow_loopback and not examination.is_live:
        text = "sandbox merchants may name this machine as their endpoint, and so reach what listens on it alone"
        fix = "set webhooks.allow_loopback to false where this gateway can be reached from outside"
        yield note("webhooks.allow_loopback", text, fix)
    else:
        yield ok("webhooks.allow_loopback", "no merchant's webhook may point at this machine")


async def check_endpoint(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    """The endpoint is set, may be called, and takes what is sent."""
    merchant = examination.one
    row = await gateway.db.fetchrow(
        tables.EXAMINE,
        merchant.merchant_id,
        Ids.least("dlv", examination.now - _LATELY),
        examination.now,
        examination.env,
    )
    if row is None:
        wait = timedelta(days=gateway.settings(WebhooksSettings).wait_days)
        oldest = Ids.least("dlv", examination.now - wait)
        waiting = await gateway.db.fetchval(tables.EXAMINE_WAITING, merchant.merchant_id, examination.env, oldest)
        yield CheckResult(
            name="webhooks.endpoint",
            level=Level.WARNING if examination.env == "live" else Level.NOTE,
            text=f"no {examination.env} webhook is set: it hears of its payments only by asking (GET /v1/events)"
            + (f"; {waiting} of its events wait for one" if waiting else ""),
            fix="PUT /v1/merchant/webhook, with its API key",
        )
        return
    host = urlsplit(str(row["url"])).hostname
    try:
        check_url(row["url"], allow_loopback=await gateway.port(EndpointService).allows_loopback(examination.env))
    except ValueError as refusal:
        text = f"its webhook at {host} is never called: the address {refusal}"
        yield problem("webhooks.endpoint", text, "PUT /v1/merchant/webhook again, with an address that may be called")
        return
    for observation in (*_health(row, host or "", examination), *_debts(row)):
        yield observation


def _health(row: Row, host: str, examination: CheckContext) -> Iterator[CheckResult]:
    why = row["last_error"] or "see GET /v1/webhooks/logs"
    if row["closed_until"] is not None and row["closed_until"] > examination.now:
        yield CheckResult(
            name="webhooks.endpoint",
            level=Level.PROBLEM if examination.env == "live" else Level.WARNING,
            text=f"its webhook at {host} failed {row['failures']} times in a row, and is not called for a while: {why}",
            fix="let the shop mend its server; what is owed is sent as soon as it answers",
        )
    elif row["failures"]:
        yield warning(
            "webhooks.endpoint",
            f"its webhook at {host} failed {row['failures']} times in a row: {why}",
            "let the shop look at its server (POST /v1/merchant/webhook/test tries it)",
        )
    elif row["last_success_at"] is None:
        yield note(
            "webhooks.endpoint",
            f"its webhook at {host} has taken nothing yet",
            "POST /v1/merchant/webhook/test tries it",
        )
    else:
        yield ok(
            "webhooks.endpoint",
            f"its webhook at {host} works; the last one was taken on {row['last_success_at']:%Y-%m-%d %H:%M} UTC",
        )


def _debts(row: Row) -> Iterator[CheckResult]:
    if row["dead"]:
        yield warning(
            "webhooks.dead",
            f"{row['dead']} webhooks of the last 7 days were given up: the shop has not heard of that money",
            'once its server works: POST /v1/webhooks/replay {"since": …, "status": "dead"}',
        )
    if row["owed"]:
        yield note("webhooks.owed", f"{row['owed']} webhooks are waiting to be sent")


CHECKS = (
    Check("Webhooks", check_settings),
    Check("Webhooks", check_endpoint, of_each_merchant=True),
)
