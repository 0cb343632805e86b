"""What other plugins may ask of credentials."""

from dataclasses import dataclass
from typing import Protocol

from mpesa_gateway.daraja.client import DarajaCredentials
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Env


@dataclass(frozen=True, kw_only=True)
class MpesaCredentials:
    """A merchant's keys to M-Pesa, opened. Keep it no longer than the call that needs it."""

    merchant_id: str
    env: Env
    consumer_key: Secret
    consumer_secret: Secret
    passkey: Secret
    shortcode: str
    till_number: str | None = None
    initiator: str | None = None
    security_credential: Secret | None = None
    result_url: str | None = None
    timeout_url: str | None = None
    nominated_number: Msisdn | None = None
    account_reference: str | None = None

    @property
    def daraja(self) -> DarajaCredentials:
        """What the Daraja client wants to know."""
        return DarajaCredentials(
            env=self.env,
            consumer_key=self.consumer_key,
            consumer_secret=self.consumer_secret,
            shortcode=self.shortcode,
            passkey=self.passkey,
            till_number=self.till_number,
        )


class Credentials(Protocol):
    """Knows each merchant's keys to M-Pesa."""

    async def get(self, merchant_id: str) -> MpesaCredentials:
        """The merchant's credentials; raises ProviderNotConfigured when none are stored."""
        ...
