"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mpesa_gateway.security.signatures import CallbackSecrets
from mpesa_gateway.security.vault import CALLBACK_TOKENS
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.dedup import Dedup
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_callbacks.refusals import RefusedCallbacks
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.verifier import CallbackVerifier

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


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


PROVIDES: "tuple[tuple[type[Any], Callable[[Gateway], Any]], ...]" = (
    (CallbackDispatcher, _dispatcher),
    (Callbacks, lambda gateway: gateway.services.get(CallbackDispatcher)),
    (CallbackVerifier, _verifier),
    (CallbackInbox, _inbox),
    (CallbackOperatorService, _operator_service),
)
