"""What other plugins and hosts may ask of payments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_payments.schemas import PaymentView, PaymentWithTimeline


@dataclass(frozen=True, kw_only=True)
class PaymentRequest:
    """A payment that a merchant wants: ``amount`` in KES; ``reference`` up to 12 characters, ``description`` 13."""

    amount: Kes
    phone: Msisdn
    reference: str | None = None
    description: str | None = None
    callback_url: str | None = None
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Requested:
    """A payment, and whether this request made it or an earlier one with the same key did."""

    payment: PaymentView
    is_replay: bool


class Payments(Protocol):
    """Asks payers for money and knows how each payment stands."""

    async def request(
        self, merchant_id: str, request: PaymentRequest, *, idempotency_key: str, env: Env | None = None
    ) -> Requested:
        """Ask a payer for money: one STK push for one key, whatever happens.

        ``env``, where given, must be that of the merchant's credentials. Raises ProviderNotConfigured, KeyMismatch,
        KeyInProgress, ProviderRejected, and ProviderUnavailable when nothing was sent and the key may try again.
        """
        ...

    async def get(self, merchant_id: str, payment_id: str) -> PaymentWithTimeline:
        """A payment of this merchant; raises NotFound."""
        ...
