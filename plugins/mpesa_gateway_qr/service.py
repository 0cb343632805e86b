"""Requests QR codes from Daraja."""

import base64

from mpesa_gateway.daraja.client import DarajaClient, DarajaFault
from mpesa_gateway.daraja.refusals import api_error_of
from mpesa_gateway.db.engine import Database
from mpesa_gateway.money import Kes
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_payments.api import Payments
from mpesa_gateway_qr.errors import PaymentEnded
from mpesa_gateway_qr.operations import QR_CODE, QrCode
from mpesa_gateway_qr.schemas import QrView

_MOST_NAME = 50
"""Characters of the merchant's name."""


class QrCodes:
    """QR codes of pending payments and of shortcodes. Nothing is stored: a code is no evidence of money."""

    def __init__(
        self,
        *,
        db: Database,
        daraja: DarajaClient,
        merchants: Merchants,
        credentials: Credentials,
        payments: Payments,
    ) -> None:
        self._db = db
        self._daraja = daraja
        self._merchants = merchants
        self._credentials = credentials
        self._payments = payments

    async def of_payment(self, caller: Caller, payment_id: str, size: int) -> QrView:
        """Return the code of a pending payment: its receiver, amount and reference.

        Raises NotFound, PaymentEnded, ProviderNotConfigured, ReceiverOwned, ProviderRejected, ProviderUnavailable.
        """
        payment = await self._payments.get(caller.merchant_id, caller.env, payment_id)
        if payment.status != "pending":
            raise PaymentEnded(
                f"this payment is {payment.status}: a scan would pay its amount again. Create a new payment, or a QR "
                "code of the shortcode"
            )
        shortcode_id = await self._payments.shortcode_of(caller.merchant_id, caller.env, payment_id)
        credentials = await self._credentials.of_shortcode(shortcode_id)
        return await self._draw(credentials, Kes.parse(payment.amount), payment.reference, size)

    async def of_shortcode(
        self, caller: Caller, shortcode: str, amount: Kes, reference: str | None, size: int
    ) -> QrView:
        """Return the code of the merchant's active shortcode.

        Raises NotFound, ProviderNotConfigured, ReceiverOwned, ProviderRejected and ProviderUnavailable.
        """
        credentials = await self._credentials.active(caller.merchant_id, caller.env, shortcode)
        return await self._draw(credentials, amount, reference or shortcode, size)

    async def _draw(self, credentials: MpesaCredentials, amount: Kes, reference: str, size: int) -> QrView:
        self._db.refuse_transaction("requesting a QR code")
        credentials.check_use()
        merchant = await self._merchants.require(credentials.merchant_id)
        request = QrCode(
            merchant_name=merchant.name[:_MOST_NAME],
            reference=reference,
            amount=amount,
            size=size,
        )
        try:
            picture = await self._daraja.call(QR_CODE, credentials.daraja, request)
        except DarajaFault as fault:
            raise api_error_of(fault) from None
        return QrView(qr_code=base64.b64encode(picture.content).decode(), size=picture.size)
