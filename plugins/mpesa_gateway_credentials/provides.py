"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from mpesa_gateway.daraja.certificates import certificate_for
from mpesa_gateway.readiness import missing_of
from mpesa_gateway.security.signatures import CallbackSecrets
from mpesa_gateway_credentials.api import Credentials, OpenWork
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from mpesa_gateway_credentials.reader import CredentialReader
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_credentials.settings import CredentialsSettings

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


def _reader(gateway: "Gateway") -> CredentialReader:
    return CredentialReader(
        db=gateway.db,
        changes=gateway.changes,
        audit=gateway.audit,
        merchants=gateway.merchants,
        sealer=gateway.sealer,
        daraja=lambda: gateway.daraja,
    )


def _store(gateway: "Gateway") -> CredentialStore:
    return CredentialStore(
        db=gateway.db,
        changes=gateway.changes,
        clock=gateway.clock,
        ids=gateway.ids,
        audit=gateway.audit,
        merchants=gateway.merchants,
        sealer=gateway.sealer,
        settings=gateway.settings(CredentialsSettings),
        certificate_of=lambda env: certificate_for(gateway.config.daraja, env),
        public_url=gateway.config.public_url,
        reader=gateway.services.get(CredentialReader),
        missing_of=partial(missing_of, gateway),
        open_work={work.what: partial(work.count, gateway) for work in gateway.contributed(OpenWork)},
    )


def _ownership(gateway: "Gateway") -> ReceiverOwnership:
    return ReceiverOwnership(
        db=gateway.db,
        changes=gateway.changes,
        clock=gateway.clock,
        audit=gateway.audit,
        merchants=gateway.merchants,
    )


PROVIDES: "tuple[tuple[type[Any], Callable[[Gateway], Any]], ...]" = (
    (CredentialReader, _reader),
    (Credentials, lambda gateway: gateway.services.get(CredentialReader)),
    (CallbackSecrets, lambda gateway: gateway.services.get(CredentialReader)),
    (CredentialStore, _store),
    (ReceiverOwnership, _ownership),
)
