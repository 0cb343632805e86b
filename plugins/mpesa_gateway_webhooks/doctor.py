"""Checks of endpoints and deliveries."""

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from urllib.parse import urlsplit

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, Level, note, ok, problem, warning
from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import Env
from mpesa_gateway.http.egress import check_url
from mpesa_gateway.ids import Ids
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks import tables
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.settings import WebhooksSettings

_RECENT = timedelta(days=7)


async def check_settings(gateway: Runtime, context: CheckContext) -> AsyncIterator[CheckResult]:
    """Warn about settings that suit only a trial."""
    if gateway.settings(WebhooksSettings).allow_loopback and not context.is_live:
        text = "sandbox merchants may use this machine as their endpoint, and so reach its local services"
        fix = "set webhooks.allow_loopback to false where this gateway can be reached from outside"
        yield note("webhooks.allow_loopback", text, fix)
    else:
        yield ok("webhooks.allow_loopback", "no merchant's webhook may use this machine as its endpoint")


async def check_endpoint(gateway: Runtime, context: CheckContext) -> AsyncIterator[CheckResult]:
    merchant, endpoints = context.require_merchant, gateway.port(EndpointService)
    row = await gateway.db.fetchrow(
        tables.EXAMINE,
        merchant.merchant_id,
        Ids.least("dlv", context.now - _RECENT),
        context.now,
        context.env,
        endpoints.money_types,
    )
    if row is None:
        wait = timedelta(days=gateway.settings(WebhooksSettings).wait_days)
        oldest = Ids.least("dlv", context.now - wait)
        waiting = await gateway.db.fetchval(tables.EXAMINE_WAITING, merchant.merchant_id, context.env, oldest)
        yield CheckResult(
            name="webhooks.endpoint",
            level=Level.WARNING if context.env == "live" else Level.NOTE,
            text=f"no {context.env} webhook is set: the merchant can only poll for its payments (GET /v1/events)"
            + (f"; {waiting} of its events wait for one" if waiting else ""),
            fix=f"set it at {_form(merchant.merchant_id, context.env)}, or with PUT /v1/merchant/webhook",
        )
        return
    host, form = urlsplit(str(row["url"])).hostname, _form(merchant.merchant_id, context.env)
    try:
        check_url(row["url"], allow_loopback=await endpoints.allows_loopback(context.env))
    except ValueError as refusal:
        text = f"its webhook at {host} is never called: the address {refusal}"
        fix = f"store an allowed address at {form}, or with PUT /v1/merchant/webhook"
        yield problem("webhooks.endpoint", text, fix)
        return
    missing = endpoints.missing_money_types(row["event_types"])
    for result in (*_health(row, host or "", context), *_choice(row, host or "", missing, form), *_backlog(row)):
        yield result


def _form(merchant_id: str, env: Env) -> str:
    return f"/ops/merchants/{merchant_id}/webhook?env={env}"


def _page(row: Row) -> str:
    return f"/ops/webhooks/{row['endpoint_id']}"


def _health(row: Row, host: str, context: CheckContext) -> Iterator[CheckResult]:
    why = row["last_error"] or "see /ops/webhooks/deliveries, or GET /v1/webhooks/logs"
    send_test = f"the button Send test event at {_page(row)}, or POST /v1/merchant/webhook/test, sends a test"
    if row["closed_until"] is not None and row["closed_until"] > context.now:
        yield CheckResult(
            name="webhooks.endpoint",
            level=Level.PROBLEM if context.env == "live" else Level.WARNING,
            text=f"its webhook at {host} failed {row['failures']} times in a row, and is paused: {why}",
            fix="ask the merchant to repair its server; pending deliveries are sent as soon as it responds",
        )
    elif row["failures"]:
        yield warning(
            "webhooks.endpoint",
            f"its webhook at {host} failed {row['failures']} times in a row: {why}",
            f"ask the merchant to check its server; {send_test}",
        )
    elif row["last_success_at"] is None:
        yield note(
            "webhooks.endpoint",
            f"its webhook at {host} has accepted nothing yet",
            send_test,
        )
    else:
        yield ok(
            "webhooks.endpoint",
            f"its webhook at {host} works; the last one was accepted on {row['last_success_at']:%Y-%m-%d %H:%M} UTC",
        )


def _resend(row: Row, status: str) -> str:
    call = f'POST /v1/webhooks/replay {{"since": …, "status": "{status}"}}'
    return f"resend the {status} ones with the form Resend at {_page(row)}, or with {call}"


def _choice(row: Row, host: str, missing: Sequence[str], form: str) -> Iterator[CheckResult]:
    if missing:
        yield warning(
            "webhooks.event_types",
            f"its webhook at {host} does not take {', '.join(missing)}: the merchant does not hear of this money",
            f"tick every event type at {form}, or PUT /v1/merchant/webhook/event-types "
            f'{{"event_types": null}}; then {_resend(row, "cancelled")}',
        )
    if row["cancelled"]:
        yield warning(
            "webhooks.cancelled",
            f"{row['cancelled']} webhooks of the last 7 days about moved money are cancelled, and were not sent",
            _resend(row, "cancelled"),
        )


def _backlog(row: Row) -> Iterator[CheckResult]:
    if row["dead"]:
        yield warning(
            "webhooks.dead",
            f"{row['dead']} webhooks of the last 7 days are dead: the merchant does not know of these payments",
            f"once its server works, {_resend(row, 'dead')}",
        )
    if row["owed"]:
        yield note("webhooks.owed", f"{row['owed']} webhooks are waiting to be sent")


CHECKS = (
    Check("Webhooks", check_settings),
    Check("Webhooks", check_endpoint, of_each_merchant=True),
)
