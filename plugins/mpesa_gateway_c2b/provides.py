"""Ports and services of the c2b plugin."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b.addresses import C2bAddresses
from mpesa_gateway_c2b.confirmations import Confirmations
from mpesa_gateway_c2b.registration import C2bRegistrations
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


PROVIDES: Provides = (
    (C2bAddresses, lambda gateway: C2bAddresses(db=gateway.db, ids=gateway.ids, sealer=gateway.sealer)),
    (C2bRegistrations, _registrations),
    (Confirmations, _confirmations),
)
