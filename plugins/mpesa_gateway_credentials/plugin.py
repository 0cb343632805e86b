"""The credentials plugin, declared."""

from mpesa_gateway.plugin import Plugin, SealedColumn, Tables
from mpesa_gateway.security.signatures import CallbackSecrets
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_credentials.doctor import CHECKS
from mpesa_gateway_credentials.invariants import INVARIANTS
from mpesa_gateway_credentials.pages import PAGES
from mpesa_gateway_credentials.routes import routes
from mpesa_gateway_credentials.service import SECRET_FIELDS, CredentialStore
from mpesa_gateway_credentials.settings import CredentialsSettings
from mpesa_gateway_credentials.tables import CredentialsRow

plugin = Plugin(
    name="credentials",
    summary="Keeps each merchant's keys to M-Pesa, sealed at rest, and tries whether they work.",
    settings=CredentialsSettings,
    routes=routes,
    provides=(
        (CredentialStore, CredentialStore),
        (Credentials, lambda gateway: gateway.services.get(CredentialStore)),
        (CallbackSecrets, lambda gateway: gateway.services.get(CredentialStore)),
    ),
    tables=Tables(
        models=(CredentialsRow,),
        migrations="mpesa_gateway_credentials.migrations",
        sealed=tuple(
            SealedColumn(
                table="provider_credentials",
                key="merchant_id",
                column=field,
                aad=("merchant_id", "'mpesa'", f"'{field}'"),
            )
            for field in SECRET_FIELDS
        ),
    ),
    checks=CHECKS,
    invariants=INVARIANTS,
    pages=PAGES,
)
