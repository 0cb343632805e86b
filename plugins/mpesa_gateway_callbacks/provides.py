"""Ports and services of the callbacks plugin."""

from datetime import timedelta
from functools import partial

from mpesa_gateway.daraja.callbacks import StandingAddresses
from mpesa_gateway.daraja.signatures import CallbackSecrets
from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.gateway_secrets import CALLBACK_TOKENS
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.callback_kinds import CallbackKinds
from mpesa_gateway_callbacks.dedup import Dedup
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.metrics import CallbackMetrics
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_callbacks.refusals import RefusedCallbacks
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.verifier import CallbackVerifier


def _standing(gateway: Runtime, kind: str) -> StandingAddresses | None:
    declared = gateway.callback_kinds.get(kind)
    return None if declared is None or declared.addresses is None else gateway.port(declared.addresses)


def _verifier(gateway: Runtime) -> CallbackVerifier:
    return CallbackVerifier(
        settings=gateway.settings(CallbacksSettings),
        daraja=gateway.config.daraja,
        clock=gateway.clock,
        token_key=lambda: gateway.vault.secret(CALLBACK_TOKENS),
        merchants=gateway.merchants,
        secrets=gateway.port_if_provided(CallbackSecrets),
        kinds=gateway.port(CallbackKinds),
        standing=partial(_standing, gateway),
    )


def _dispatcher(gateway: Runtime) -> CallbackDispatcher:
    return CallbackDispatcher(
        db=gateway.db,
        outbox=gateway.outbox,
        clock=gateway.clock,
        settings=gateway.settings(CallbacksSettings),
        verifier=gateway.port(CallbackVerifier),
        kinds=gateway.port(CallbackKinds),
        token_key=lambda: gateway.vault.secret(CALLBACK_TOKENS),
        public_url=gateway.url,
    )


def _inbox(gateway: Runtime) -> CallbackInbox:
    verifier = gateway.port(CallbackVerifier)
    return CallbackInbox(
        db=gateway.db,
        outbox=gateway.outbox,
        clock=gateway.clock,
        ids=gateway.ids,
        audit=gateway.audit,
        tracer=gateway.tracer,
        counter=gateway.metrics.get(CallbackMetrics).callbacks,
        trace_links=gateway.trace_links,
        dedup=Dedup(
            valkey=gateway.valkey,
            prefix=gateway.config.valkey.prefix,
            keep=timedelta(hours=gateway.settings(CallbacksSettings).dedup_hours),
        ),
        verifier=verifier,
        dispatcher=gateway.port(CallbackDispatcher),
        refusals=RefusedCallbacks(
            db=gateway.db, clock=gateway.clock, ids=gateway.ids, audit=gateway.audit, verifier=verifier
        ),
        kinds=gateway.port(CallbackKinds),
    )


def _operator_service(gateway: Runtime) -> CallbackOperatorService:
    return CallbackOperatorService(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        verifier=gateway.port(CallbackVerifier),
        inbox=gateway.port(CallbackInbox),
        dispatcher=gateway.port(CallbackDispatcher),
        kinds=gateway.port(CallbackKinds),
    )


PROVIDES: Provides = (
    (CallbackKinds, lambda gateway: CallbackKinds(gateway.callback_kinds)),
    (CallbackDispatcher, _dispatcher),
    (Callbacks, lambda gateway: gateway.port(CallbackDispatcher)),
    (CallbackVerifier, _verifier),
    (CallbackInbox, _inbox),
    (CallbackOperatorService, _operator_service),
)
