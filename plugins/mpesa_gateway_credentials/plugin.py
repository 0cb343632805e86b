"""The declaration of the credentials plugin."""

from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Job, Plugin, SealedColumn, Tables
from mpesa_gateway_credentials import COMMANDS
from mpesa_gateway_credentials.doctor import CHECKS
from mpesa_gateway_credentials.invariants import INVARIANTS
from mpesa_gateway_credentials.jobs import wipe_retired
from mpesa_gateway_credentials.pages import PAGES
from mpesa_gateway_credentials.provides import PROVIDES
from mpesa_gateway_credentials.reader import SECRET_FIELDS
from mpesa_gateway_credentials.readiness import NEEDS
from mpesa_gateway_credentials.routes import routes
from mpesa_gateway_credentials.settings import CredentialsSettings
from mpesa_gateway_credentials.shortcode_routes import routes as shortcode_routes
from mpesa_gateway_credentials.tables import ReceiverRow, ShortcodeRow, StoreNumberRow

# raw SQL: declared - the receiver's number is part of the sealed columns' associated data.
_NUMBER = "(SELECT number FROM receiver WHERE receiver.receiver_id = shortcode.receiver_id)"


plugin = Plugin(
    name="credentials",
    summary="Stores the sealed credentials of merchants' shortcodes, and the owners of receivers.",
    settings=CredentialsSettings,
    id_prefixes=(IdPrefix("shc", "shortcode"), IdPrefix("rcv", "receiver")),
    routes=(*routes, *shortcode_routes),
    provides=PROVIDES,
    tables=Tables(
        models=(ReceiverRow, ShortcodeRow, StoreNumberRow),
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
    commands=COMMANDS,
    checks=CHECKS,
    invariants=INVARIANTS,
    pages=PAGES,
)
