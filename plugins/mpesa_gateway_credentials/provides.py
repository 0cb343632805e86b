"""Ports and services of the credentials plugin."""

from functools import partial

from mpesa_gateway.daraja.certificates import certificate_for
from mpesa_gateway.daraja.signatures import CallbackSecrets
from mpesa_gateway.plugin import Provides
from mpesa_gateway.readiness import missing_of
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_credentials.api import Credentials, OpenWork
from mpesa_gateway_credentials.checks import CredentialChecks
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from mpesa_gateway_credentials.reader import CredentialReader
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_credentials.settings import CredentialsSettings


def _reader(gateway: Runtime) -> CredentialReader:
    return CredentialReader(
        db=gateway.db,
        changes=gateway.changes,
        audit=gateway.audit,
        merchants=gateway.merchants,
        sealer=gateway.sealer,
        daraja=gateway.daraja,
        clock=gateway.clock,
    )


def _store(gateway: Runtime) -> CredentialStore:
    return CredentialStore(
        db=gateway.db,
        changes=gateway.changes,
        clock=gateway.clock,
        ids=gateway.ids,
        audit=gateway.audit,
        merchants=gateway.merchants,
        sealer=gateway.sealer,
        settings=gateway.settings(CredentialsSettings),
        checks=CredentialChecks(
            clock=gateway.clock,
            settings=gateway.settings(CredentialsSettings),
            certificate_of=lambda env: certificate_for(gateway.config.daraja, env),
            public_url=gateway.config.public_url,
        ),
        reader=gateway.port(CredentialReader),
        missing_of=partial(missing_of, gateway),
        open_work={work.what: partial(work.count, gateway) for work in gateway.contributed(OpenWork)},
    )


def _ownership(gateway: Runtime) -> ReceiverOwnership:
    return ReceiverOwnership(
        db=gateway.db,
        changes=gateway.changes,
        clock=gateway.clock,
        audit=gateway.audit,
        merchants=gateway.merchants,
    )


PROVIDES: Provides = (
    (CredentialReader, _reader),
    (Credentials, lambda gateway: gateway.port(CredentialReader)),
    (CallbackSecrets, lambda gateway: gateway.port(CredentialReader)),
    (CredentialStore, _store),
    (ReceiverOwnership, _ownership),
)
