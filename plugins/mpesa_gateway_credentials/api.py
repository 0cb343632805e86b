"""What other plugins may ask of credentials."""

from dataclasses import dataclass
from typing import Protocol

from mpesa_gateway.daraja.client import DarajaCredentials, Initiator
from mpesa_gateway.errors import ProviderNotConfigured
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

    def initiator_for(self, purpose: str) -> Initiator:
        """Who asks on the organisation portal. Raises ProviderNotConfigured, naming what ``purpose`` needs."""
        if self.initiator is None or self.security_credential is None:
            missing = " and ".join(
                name
                for name, value in (
                    ("mpesa.initiator", self.initiator),
                    ("mpesa.initiator_password", self.security_credential),
                )
                if value is None
            )
            raise ProviderNotConfigured(
                f"{purpose} needs {missing}: store the credentials again with it", field=missing.partition(" and ")[0]
            )
        return Initiator(self.initiator, self.security_credential)


def check_env(credentials: MpesaCredentials, env: Env | None) -> None:
    """Raises ProviderNotConfigured when an API key of one environment meets credentials of the other."""
    if env is not None and env != credentials.env:
        raise ProviderNotConfigured(
            f"this API key is for {env} and the stored M-Pesa credentials are for {credentials.env}: "
            f"use a key for {credentials.env}, or store credentials for {env}"
        )


class Credentials(Protocol):
    """Knows each merchant's keys to M-Pesa."""

    async def get(self, merchant_id: str) -> MpesaCredentials:
        """The merchant's credentials; raises ProviderNotConfigured when none are stored."""
        ...

    async def merchants_with_statements(self) -> list[str]:
        """The active merchants that can be reconciled: those with a nominated number."""
        ...
