"""Check that M-Pesa returns QR codes."""

from collections.abc import AsyncIterator

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, note, ok
from mpesa_gateway.daraja.exceptions import DarajaFault
from mpesa_gateway.errors import ApiError
from mpesa_gateway.money import Kes
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.sealing import UnsealError
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_qr.operations import QR_CODE, QrCode

_NAME = "qr.code"
_FIX = "if you use QR codes: add the product Dynamic QR to the app on Safaricom's portal, or try again later"


async def check_qr(gateway: Runtime, context: CheckContext) -> AsyncIterator[CheckResult]:
    """Request a QR code of KES 1 for the default shortcode. Daraja stores nothing."""
    merchant = context.require_merchant
    try:
        credentials = await gateway.port(Credentials).get(merchant.merchant_id, context.env)
        credentials.check_use()
    except (ApiError, UnsealError):
        # The checks of credentials report it.
        return
    number = credentials.daraja.receiver
    request = QrCode(merchant_name=merchant.name[:50], reference=number, amount=Kes.parse("1"), size=100)
    try:
        await gateway.daraja.call(QR_CODE, credentials.daraja, request)
    except DarajaFault as fault:
        yield note(_NAME, f"M-Pesa returns no QR code for {number}: {fault.meaning}", _FIX)
    else:
        yield ok(_NAME, f"M-Pesa returns QR codes for {number}")


CHECKS = (Check("QR codes", check_qr, of_each_merchant=True),)
