"""The public interface of credentials: the port that other plugins call, and what they contribute to it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from mpesa_gateway.daraja.client import DarajaCredentials, Initiator
from mpesa_gateway.errors import Conflict, ProviderNotConfigured
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Env


class ReceiverOwned(Conflict):
    """The receiver belongs to another merchant, whose right the call would use."""


@dataclass(frozen=True, kw_only=True)
class MpesaCredentials:
    """The opened credentials of one shortcode. Keep them no longer than the call that needs them.

    ``shortcode`` is the number that payers pay: the paybill, or the till where there is one. ``store_number`` is the
    BusinessShortCode of a till, None for a paybill.
    """

    shortcode_id: str
    receiver_id: str
    merchant_id: str
    env: Env
    shortcode: str
    consumer_key: Secret
    consumer_secret: Secret
    passkey: Secret
    store_number: str | None = None
    initiator: str | None = None
    security_credential: Secret | None = None
    result_url: str | None = None
    timeout_url: str | None = None
    nominated_number: Msisdn | None = None
    account_reference: str | None = None
    owner_id: str | None = None
    is_allowed: bool = False
    is_default: bool = True
    updated_at: datetime
    retired_at: datetime | None = field(default=None)

    @property
    def kind(self) -> Literal["paybill", "till"]:
        """What the receiver is."""
        return "paybill" if self.store_number is None else "till"

    @property
    def is_owner(self) -> bool:
        """True unless another merchant owns the receiver."""
        return self.owner_id in {None, self.merchant_id}

    @property
    def wants_owner(self) -> bool:
        """True if the first call about the receiver that Safaricom accepts makes this merchant its owner."""
        return self.env == "live" and self.owner_id is None

    @property
    def daraja(self) -> DarajaCredentials:
        """The part that the Daraja client needs."""
        return DarajaCredentials(
            env=self.env,
            consumer_key=self.consumer_key,
            consumer_secret=self.consumer_secret,
            shortcode=self.store_number or self.shortcode,
            passkey=self.passkey,
            till_number=None if self.store_number is None else self.shortcode,
        )

    def initiator_for(self, purpose: str) -> Initiator:
        """The initiator on the organisation portal. Raises ProviderNotConfigured, naming what ``purpose`` needs."""
        if self.initiator is None or self.security_credential is None:
            raise ProviderNotConfigured(
                f"{purpose} needs mpesa.initiator and mpesa.initiator_password (or mpesa.security_credential): "
                f"store the {self.env} credentials again with them",
                field="mpesa.initiator",
            )
        return Initiator(self.initiator, self.security_credential)

    def nominated_for(self, purpose: str) -> Msisdn:
        """The number nominated for Pull. Raises ProviderNotConfigured."""
        if self.nominated_number is None:
            raise ProviderNotConfigured(
                f"{purpose} needs mpesa.nominated_number: store the {self.env} credentials again with it",
                field="mpesa.nominated_number",
            )
        return self.nominated_number

    def check_use(self) -> None:
        """Raises ReceiverOwned unless the merchant owns the receiver, or the host allows it to use the receiver."""
        if not self.is_owner and not self.is_allowed:
            raise ReceiverOwned(
                f"{self.env} shortcode {self.shortcode} belongs to another merchant of this gateway: ask its host to "
                "let you use it (mpesa-gateway receivers allow) or to move it to you (mpesa-gateway receivers move)"
            )

    def check_owner(self, purpose: str) -> None:
        """Raises ReceiverOwned if another merchant owns the receiver."""
        if not self.is_owner:
            raise ReceiverOwned(
                f"{self.env} shortcode {self.shortcode} belongs to another merchant of this gateway, and {purpose} is "
                "its owner's: the owner's runs complete your payments too; or ask the host to move the shortcode to "
                "you (mpesa-gateway receivers move)"
            )


@dataclass(frozen=True)
class StatementSource:
    """A shortcode whose statement can be read: it has a nominated number, and its receiver's owner or none."""

    shortcode_id: str
    merchant_id: str
    env: Env
    is_retired: bool


@dataclass(frozen=True)
class OpenWork:
    """A contribution (``Plugin.contributes``): what a plugin still has open of shortcodes.

    ``what`` names it in the plural; ``count`` returns the number for each of the given shortcode ids that has any.
    The secrets of a retired shortcode are kept while a count is not 0.
    """

    what: str
    count: Callable[[Runtime, Sequence[str]], Awaitable[Mapping[str, int]]]


class Credentials(Protocol):
    """Knows the credentials of each merchant's shortcodes."""

    async def get(self, merchant_id: str, env: Env, shortcode: str | None = None) -> MpesaCredentials:
        """The credentials to use now: of the default shortcode of (merchant, env), or of the number that payers pay.

        A retired shortcode is not found. Raises ProviderNotConfigured.
        """
        ...

    async def of_shortcode(self, shortcode_id: str) -> MpesaCredentials:
        """The newest credentials of a shortcode, also of a retired one: for what exists, never for a new payment.

        Raises ProviderNotConfigured where its secrets have been wiped.
        """
        ...

    async def accepted(self, credentials: MpesaCredentials) -> bool:
        """Safaricom accepted a call about the receiver: in live its first merchant becomes the owner.

        Returns False if another merchant owns it. Needs the open transaction that writes the outcome of the call.
        Concurrent calls are decided in Postgres.
        """
        ...

    async def statement_sources(self) -> list[StatementSource]:
        """The shortcodes of active merchants that a regular reconciliation run is for, retired ones while open."""
        ...
