"""Ports and services of the c2b plugin."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_c2b.addresses import C2bAddresses
from mpesa_gateway_c2b.confirmations import Confirmations
from mpesa_gateway_c2b.counting import AccountCounting
from mpesa_gateway_c2b.metrics import C2bMetrics
from mpesa_gateway_c2b.registration import C2bRegistrations
from mpesa_gateway_c2b.settings import C2bSettings
from mpesa_gateway_c2b.validation import Validation
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_transactions.api import Allocations


def _registrations(gateway: Runtime) -> C2bRegistrations:
    return C2bRegistrations(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        daraja=gateway.daraja,
        credentials=gateway.port(Credentials),
        callbacks=gateway.port(Callbacks),
        addresses=gateway.port(C2bAddresses),
        public_url=gateway.url,
    )


def _confirmations(gateway: Runtime) -> Confirmations:
    return Confirmations(
        db=gateway.db,
        callbacks=gateway.port(Callbacks),
        credentials=gateway.port(Credentials),
        allocations=gateway.port(Allocations),
    )


def _account_numbers(gateway: Runtime) -> AccountNumbers:
    return AccountNumbers(
        db=gateway.db,
        clock=gateway.clock,
        ids=gateway.ids,
        audit=gateway.audit,
        credentials=gateway.port(Credentials),
        counting=gateway.port(AccountCounting),
        allocations=gateway.port(Allocations),
    )


def _validation(gateway: Runtime) -> Validation:
    return Validation(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(C2bSettings),
        addresses=gateway.port(C2bAddresses),
        credentials=gateway.port(Credentials),
        metrics=gateway.metrics.get(C2bMetrics),
    )


PROVIDES: Provides = (
    (C2bAddresses, lambda gateway: C2bAddresses(db=gateway.db, ids=gateway.ids, sealer=gateway.sealer)),
    (C2bRegistrations, _registrations),
    (Confirmations, _confirmations),
    (
        AccountCounting,
        lambda gateway: AccountCounting(db=gateway.db, clock=gateway.clock, outbox=gateway.outbox),
    ),
    (AccountNumbers, _account_numbers),
    (Validation, _validation),
)
