"""The declaration of the callbacks plugin."""

from mpesa_gateway.asgi_types import Message
from mpesa_gateway.http.known_callers import KnownCallerCheck
from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Job, Plugin, RetentionRule, Tables
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks import COMMANDS, tables
from mpesa_gateway_callbacks.doctor import CHECKS
from mpesa_gateway_callbacks.erasure import CALLBACKS
from mpesa_gateway_callbacks.invariants import INVARIANTS
from mpesa_gateway_callbacks.jobs import sweep
from mpesa_gateway_callbacks.metrics import COLLECTORS, CallbackMetrics
from mpesa_gateway_callbacks.pages import PAGES
from mpesa_gateway_callbacks.provides import PROVIDES
from mpesa_gateway_callbacks.routes import routes
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.tables import CallbackRow, RefusedRow
from mpesa_gateway_callbacks.verifier import CallbackVerifier


def _vouches(gateway: Runtime, scope: Message, address: str) -> bool:
    return gateway.port(CallbackVerifier).is_known(scope["path"], address)


plugin = Plugin(
    name="callbacks",
    summary="Receives Safaricom's callbacks: allowlist, token, deduplication, and an inbox with every verdict.",
    settings=CallbacksSettings,
    id_prefixes=(IdPrefix("cbk", "callback"), IdPrefix("ref", "refused callback")),
    routes=routes,
    jobs=(Job(sweep, timeout=60, cron="* * * * * */5", queue="maintenance"),),
    provides=PROVIDES,
    tables=Tables(models=(CallbackRow, RefusedRow), migrations="mpesa_gateway_callbacks.migrations"),
    pages=PAGES,
    commands=COMMANDS,
    checks=CHECKS,
    invariants=INVARIANTS,
    metrics=CallbackMetrics,
    collectors=COLLECTORS,
    retention=(
        RetentionRule(
            "refused callbacks",
            tables.FORGET_OLD_REFUSED,
            days=lambda gateway: gateway.settings(CallbacksSettings).keep_refused_days,
            prefix="ref",
        ),
        RetentionRule(
            "callbacks",
            tables.FORGET,
            days=lambda gateway: gateway.settings(CallbacksSettings).keep_days,
            prefix="cbk",
        ),
    ),
    erasers=CALLBACKS,
    contributes=(KnownCallerCheck(("/v1/cb/", "/v1/webhooks/mpesa"), _vouches),),
)
