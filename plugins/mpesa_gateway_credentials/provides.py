"""Ports and services of the credentials plugin."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mpesa_gateway.construction import provide
from mpesa_gateway.daraja.certificates import Certificate, certificate_for
from mpesa_gateway.daraja.signatures import CallbackSecrets
from mpesa_gateway.env import Env
from mpesa_gateway.plugin import Provides
from mpesa_gateway.readiness import missing_of
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_credentials.api import Credentials, OpenWork
from mpesa_gateway_credentials.checks import CredentialChecks
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from mpesa_gateway_credentials.reader import CredentialReader
from mpesa_gateway_credentials.service import CredentialStore


def _open_work(gateway: Runtime) -> Mapping[str, Any]:
    return {work.what: partial(work.count, gateway) for work in gateway.contributed(OpenWork)}


def _certificate(gateway: Runtime, env: Env) -> Certificate:
    return certificate_for(gateway.config.daraja, env)


PROVIDES: Provides = (
    provide(CredentialReader),
    (Credentials, lambda gateway: gateway.port(CredentialReader)),
    (CallbackSecrets, lambda gateway: gateway.port(CredentialReader)),
    provide(
        CredentialChecks,
        certificate_of=lambda gateway: partial(_certificate, gateway),
        public_url=lambda gateway: gateway.config.public_url,
    ),
    provide(CredentialStore, missing_of=lambda gateway: partial(missing_of, gateway), open_work=_open_work),
    provide(ReceiverOwnership),
)
