"""Ports and services of the callbacks plugin."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

from mpesa_gateway.construction import provide
from mpesa_gateway.daraja.callbacks import StandingAddresses
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


def _token_key(gateway: Runtime) -> Callable[[], bytes]:
    return lambda: gateway.vault.secret(CALLBACK_TOKENS)


def _dedup(gateway: Runtime) -> Dedup:
    keep = timedelta(hours=gateway.settings(CallbacksSettings).dedup_hours)
    return Dedup(valkey=gateway.valkey, prefix=gateway.config.valkey.prefix, keep=keep)


PROVIDES: Provides = (
    (CallbackKinds, lambda gateway: CallbackKinds(gateway.callback_kinds)),
    provide(CallbackDispatcher, token_key=_token_key, public_url=lambda gateway: gateway.url),
    (Callbacks, lambda gateway: gateway.port(CallbackDispatcher)),
    provide(
        CallbackVerifier,
        daraja=lambda gateway: gateway.config.daraja,
        token_key=_token_key,
        standing=lambda gateway: partial(_standing, gateway),
    ),
    provide(RefusedCallbacks),
    provide(CallbackInbox, counter=lambda gateway: gateway.metrics.get(CallbackMetrics).callbacks, dedup=_dedup),
    provide(CallbackOperatorService),
)
