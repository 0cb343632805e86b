"""Declaration of the QR plugin."""

from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments
from mpesa_gateway_qr.operations import OPERATIONS
from mpesa_gateway_qr.routes import routes
from mpesa_gateway_qr.service import QrCodes


def _qr_codes(gateway: Runtime) -> QrCodes:
    return QrCodes(
        db=gateway.db,
        daraja=gateway.daraja,
        merchants=gateway.merchants,
        credentials=gateway.port(Credentials),
        payments=gateway.port(Payments),
    )


plugin = Plugin(
    name="qr",
    summary="Returns M-Pesa's QR codes of payments and shortcodes, checked to be whole PNG images.",
    requires=("credentials", "payments"),
    routes=routes,
    operations=OPERATIONS,
    provides=((QrCodes, _qr_codes),),
)
