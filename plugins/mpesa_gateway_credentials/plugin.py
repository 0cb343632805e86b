"""The credentials plugin, declared."""

from functools import partial
from typing import TYPE_CHECKING

from mpesa_gateway.daraja.certificates import certificate_for
from mpesa_gateway.plugin import Job, Plugin, SealedColumn, Tables
from mpesa_gateway.readiness import missing_of
from mpesa_gateway.security.signatures import CallbackSecrets
from mpesa_gateway_credentials.api import Credentials, OpenWork
from mpesa_gateway_credentials.commands import receivers
from mpesa_gateway_credentials.doctor import CHECKS
from mpesa_gateway_credentials.invariants import INVARIANTS
from mpesa_gateway_credentials.jobs import wipe_retired
from mpesa_gateway_credentials.needs import NEEDS
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from mpesa_gateway_credentials.pages import PAGES
from mpesa_gateway_credentials.reader import SECRET_FIELDS, CredentialReader
from mpesa_gateway_credentials.routes import routes
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_credentials.settings import CredentialsSettings
from mpesa_gateway_credentials.tables import ReceiverRow, ShortcodeRow

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

_NUMBER = "(SELECT number FROM receiver WHERE receiver.receiver_id = shortcode.receiver_id)"


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


plugin = Plugin(
    name="credentials",
    summary="Keeps the credentials of merchants' shortcodes, sealed at rest, and who owns which receiver.",
    settings=CredentialsSettings,
    routes=routes,
    provides=(
        (CredentialReader, _reader),
        (Credentials, lambda gateway: gateway.services.get(CredentialReader)),
        (CallbackSecrets, lambda gateway: gateway.services.get(CredentialReader)),
        (CredentialStore, _store),
        (ReceiverOwnership, _ownership),
    ),
    tables=Tables(
        models=(ReceiverRow, ShortcodeRow),
        migrations="mpesa_gateway_credentials.migrations",
        sealed=tuple(
            SealedColumn(
                table="shortcode",
                key="shortcode_id",
                column=field,
                aad=("merchant_id", "'mpesa'", "env", _NUMBER, f"'{field}'"),
            )
            for field in SECRET_FIELDS
        ),
    ),
    jobs=(Job(wipe_retired, timeout=120, cron="23 * * * *", queue="maintenance"),),
    contributes=NEEDS,
    commands=(receivers,),
    checks=CHECKS,
    invariants=INVARIANTS,
    pages=PAGES,
)
