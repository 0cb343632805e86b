"""Declaration of the QR plugin."""

from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Plugin
from mpesa_gateway_qr.operations import OPERATIONS
from mpesa_gateway_qr.routes import routes
from mpesa_gateway_qr.service import QrCodes

plugin = Plugin(
    name="qr",
    summary="Returns M-Pesa's QR codes of payments and shortcodes, checked to be whole PNG images.",
    requires=("credentials", "payments"),
    routes=routes,
    operations=OPERATIONS,
    provides=(provide(QrCodes),),
)
