"""The callbacks plugin, declared."""

from datetime import timedelta
from typing import TYPE_CHECKING

from mpesa_gateway.http.request_id import Message
from mpesa_gateway.http.vouching import Voucher
from mpesa_gateway.plugin import Forgetting, Job, Plugin, Tables
from mpesa_gateway.security.signatures import CallbackSecrets
from mpesa_gateway.security.vault import CALLBACK_TOKENS
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.commands import callbacks
from mpesa_gateway_callbacks.dedup import Dedup
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.doctor import CHECKS
from mpesa_gateway_callbacks.erasure import CALLBACKS
from mpesa_gateway_callbacks.events import ReversalResulted, StatusResulted, StkResulted
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.invariants import INVARIANTS
from mpesa_gateway_callbacks.jobs import sweep
from mpesa_gateway_callbacks.measures import COUNTS, READINGS
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_callbacks.pages import PAGES
from mpesa_gateway_callbacks.refusals import RefusedCallbacks
from mpesa_gateway_callbacks.routes import routes
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.tables import CallbackRow, RefusedRow
from mpesa_gateway_callbacks.verifier import CallbackVerifier

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


def _vouches(gateway: "Gateway", scope: Message, address: str) -> bool:
    return gateway.services.get(CallbackVerifier).is_known(scope["path"], address)


def _verifier(gateway: "Gateway") -> CallbackVerifier:
    services = gateway.services
    return CallbackVerifier(
        settings=gateway.settings(CallbacksSettings),
        daraja=gateway.config.daraja,
        clock=gateway.clock,
        token_key=lambda: gateway.vault.secret(CALLBACK_TOKENS),
        merchants=gateway.merchants,
        secrets=services.get(CallbackSecrets) if services.offers(CallbackSecrets) else None,
    )


def _dispatcher(gateway: "Gateway") -> CallbackDispatcher:
    return CallbackDispatcher(
        db=gateway.db,
        outbox=gateway.outbox,
        clock=gateway.clock,
        settings=gateway.settings(CallbacksSettings),
        verifier=gateway.services.get(CallbackVerifier),
        token_key=lambda: gateway.vault.secret(CALLBACK_TOKENS),
        public_url=gateway.url,
    )


def _inbox(gateway: "Gateway") -> CallbackInbox:
    verifier = gateway.services.get(CallbackVerifier)
    return CallbackInbox(
        db=gateway.db,
        outbox=gateway.outbox,
        clock=gateway.clock,
        ids=gateway.ids,
        audit=gateway.audit,
        tracer=gateway.tracer,
        meter=gateway.meter,
        dedup=Dedup(
            # A gateway that is started again has another client.
            valkey=lambda: gateway.valkey,
            prefix=gateway.config.valkey.prefix,
            keep=timedelta(hours=gateway.settings(CallbacksSettings).dedup_hours),
        ),
        verifier=verifier,
        dispatcher=gateway.services.get(CallbackDispatcher),
        refusals=RefusedCallbacks(
            db=gateway.db, clock=gateway.clock, ids=gateway.ids, audit=gateway.audit, verifier=verifier
        ),
    )


def _operator_service(gateway: "Gateway") -> CallbackOperatorService:
    return CallbackOperatorService(
        db=gateway.db,
        reads=gateway.reads,
        clock=gateway.clock,
        audit=gateway.audit,
        verifier=gateway.services.get(CallbackVerifier),
        inbox=gateway.services.get(CallbackInbox),
        dispatcher=gateway.services.get(CallbackDispatcher),
    )


plugin = Plugin(
    name="callbacks",
    summary="Takes Safaricom's callbacks: allowlist, token, deduplication, and an inbox with every verdict.",
    settings=CallbacksSettings,
    routes=routes,
    jobs=(Job(sweep, timeout=60, cron="* * * * * */5", queue="maintenance"),),
    publishes=(StkResulted, StatusResulted, ReversalResulted),
    provides=(
        (CallbackDispatcher, _dispatcher),
        (Callbacks, lambda gateway: gateway.services.get(CallbackDispatcher)),
        (CallbackVerifier, _verifier),
        (CallbackInbox, _inbox),
        (CallbackOperatorService, _operator_service),
    ),
    tables=Tables(models=(CallbackRow, RefusedRow), migrations="mpesa_gateway_callbacks.migrations"),
    pages=PAGES,
    commands=(callbacks,),
    checks=CHECKS,
    invariants=INVARIANTS,
    counts=COUNTS,
    readings=READINGS,
    forgets=(
        Forgetting(
            "refused callbacks",
            tables.FORGET_OLD_REFUSED,
            days=lambda gateway: gateway.settings(CallbacksSettings).keep_refused_days,
            prefix="ref",
        ),
        Forgetting(
            "callbacks",
            tables.FORGET,
            days=lambda gateway: gateway.settings(CallbacksSettings).keep_days,
            prefix="cbk",
        ),
    ),
    erasers=CALLBACKS,
    contributes=(Voucher(("/v1/cb/", "/v1/webhooks/mpesa"), _vouches),),
)
