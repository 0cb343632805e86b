"""HTTP routes of QR codes."""

from litestar import post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.errors import ProviderNotConfigured, ProviderRejected, ProviderUnavailable
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.http.fields import path_id
from mpesa_gateway.money import Kes
from mpesa_gateway.services import Services
from mpesa_gateway_credentials.api import ReceiverOwned
from mpesa_gateway_payments.scopes import PaymentsWrite
from mpesa_gateway_qr.errors import PaymentEnded
from mpesa_gateway_qr.schemas import PaymentQrOrder, QrView, ShortcodeQrOrder
from mpesa_gateway_qr.service import QrCodes


@post(
    "/v1/payments/{payment_id:str}/qr",
    status_code=200,
    tags=["QR codes"],
    described=path_id("payment_id", "pay"),
    refuses=(PaymentEnded, ProviderNotConfigured, ProviderRejected, ProviderUnavailable, ReceiverOwned),
)
async def draw_payment(
    payment_id: FromPath[str],
    caller: PaymentsWrite,
    services: NamedDependency[Services],
    data: JSONBody[PaymentQrOrder] = PaymentQrOrder(),  # noqa: B008 - frozen; the body may be absent
) -> Success[QrView]:
    """Return M-Pesa's QR code of a pending payment. A scan proves nothing: wait for the webhook."""
    return Success(data=await services.get(QrCodes).of_payment(caller, payment_id, data.size))


@post(
    "/v1/merchant/shortcodes/{shortcode:str}/qr",
    status_code=200,
    tags=["QR codes"],
    described={"shortcode": {"pattern": "^[0-9]{5,7}$", "examples": ["174379"]}},
    refuses=(ProviderNotConfigured, ProviderRejected, ProviderUnavailable, ReceiverOwned),
)
async def draw_shortcode(
    shortcode: FromPath[str],
    caller: PaymentsWrite,
    services: NamedDependency[Services],
    data: JSONBody[ShortcodeQrOrder],
) -> Success[QrView]:
    """Return M-Pesa's QR code of a shortcode and an amount. A scan proves nothing: the money arrives by C2B."""
    amount = Kes.parse_json(bytes(data.amount))
    found = await services.get(QrCodes).of_shortcode(caller, shortcode, amount, data.reference, data.size)
    return Success(data=found)


routes = (draw_payment, draw_shortcode)
