"""The interface of credentials for other plugins."""

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

ENTER_FIRST = "no {} M-Pesa credentials are stored: enter them in the form M-Pesa credentials of this merchant"
"""The message of pages, for an env."""


class ReceiverOwned(Conflict):
    """The receiver belongs to another merchant."""


@dataclass(frozen=True, kw_only=True)
class MpesaCredentials:
    """The unsealed credentials of one shortcode. Keep them only for the call that needs them.

    ``shortcode`` is the number that payers pay, a paybill or till; ``store_number`` is a till's BusinessShortCode.
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
    name: str | None = None
    initiator: str | None = None
    security_credential: Secret | None = None
    result_url: str | None = None
    timeout_url: str | None = None
    nominated_number: Msisdn | None = None
    account_reference: str | None = None
    owner_id: str | None = None
    is_allowed: bool = False
    is_default: bool = True
    created_at: datetime
    updated_at: datetime
    retired_at: datetime | None = field(default=None)
    verified_at: datetime | None = None
    """Time of the last token that M-Pesa returned for these keys; None after a refusal."""

    @property
    def kind(self) -> Literal["paybill", "till"]:
        return "paybill" if self.store_number is None else "till"

    @property
    def is_owner(self) -> bool:
        return self.owner_id in {None, self.merchant_id}

    @property
    def wants_owner(self) -> bool:
        """True if the first accepted call makes this merchant the receiver's owner."""
        return self.env == "live" and self.owner_id is None

    @property
    def daraja(self) -> DarajaCredentials:
        return DarajaCredentials(
            env=self.env,
            consumer_key=self.consumer_key,
            consumer_secret=self.consumer_secret,
            shortcode=self.store_number or self.shortcode,
            passkey=self.passkey,
            till_number=None if self.store_number is None else self.shortcode,
        )

    def initiator_for(self, purpose: str) -> Initiator:
        """Return the initiator. Raises ProviderNotConfigured with what ``purpose`` needs."""
        if self.initiator is None or self.security_credential is None:
            raise ProviderNotConfigured(
                f"{purpose} needs mpesa.initiator and mpesa.initiator_password (or mpesa.security_credential): "
                f"store the {self.env} credentials again with them",
                field="mpesa.initiator",
            )
        return Initiator(self.initiator, self.security_credential)

    def nominated_for(self, purpose: str) -> Msisdn:
        """Return the number nominated for Pull. Raises ProviderNotConfigured."""
        if self.nominated_number is None:
            raise ProviderNotConfigured(
                f"{purpose} needs mpesa.nominated_number: store the {self.env} credentials again with it",
                field="mpesa.nominated_number",
            )
        return self.nominated_number

    def check_use(self) -> None:
        """Raise ReceiverOwned unless the merchant owns the receiver or the host allows its use."""
        if not self.is_owner and not self.is_allowed:
            raise ReceiverOwned(
                f"{self.env} shortcode {self.shortcode} belongs to another merchant of this gateway: ask its host to "
                "let you use it (mpesa-gateway receivers allow) or to move it to you (mpesa-gateway receivers move)"
            )

    def check_owner(self, purpose: str) -> None:
        """Raises ReceiverOwned."""
        if not self.is_owner:
            raise ReceiverOwned(
                f"{self.env} shortcode {self.shortcode} belongs to another merchant of this gateway, and {purpose} is "
                "its owner's: the owner's runs complete your payments too; or ask the host to move the shortcode to "
                "you (mpesa-gateway receivers move)"
            )


@dataclass(frozen=True)
class StatementSource:
    """A shortcode whose statement can be read, with a nominated number."""

    shortcode_id: str
    merchant_id: str
    env: Env
    is_retired: bool


@dataclass(frozen=True)
class OpenWork:
    """A plugin's open work on shortcodes, which keeps the secrets of retired ones.

    ``what`` is a plural noun; ``count`` returns the number by shortcode id.
    """

    what: str
    count: Callable[[Runtime, Sequence[str]], Awaitable[Mapping[str, int]]]


class Credentials(Protocol):
    """Reads the credentials of merchants' shortcodes."""

    async def get(self, merchant_id: str, env: Env, shortcode: str | None = None) -> MpesaCredentials:
        """Return the credentials of the merchant's default shortcode in ``env``, or of the given number.

        Raises ProviderNotConfigured, also for a retired shortcode.
        """
        ...

    async def active(self, merchant_id: str, env: Env, number: str) -> MpesaCredentials:
        """Return the merchant's active shortcode in ``env`` that payers pay by ``number``, a paybill or till.

        Raises NotFound, also for a retired shortcode and another merchant's.
        """
        ...

    async def all_active(self, merchant_id: str, env: Env) -> list[MpesaCredentials]:
        """Return the merchant's active shortcodes in ``env``: the default one first, then oldest first."""
        ...

    async def of_shortcode(self, shortcode_id: str) -> MpesaCredentials:
        """Return a shortcode's newest credentials, also if retired, for existing payments.

        Raises ProviderNotConfigured if its secrets are erased.
        """
        ...

    async def accepted(self, credentials: MpesaCredentials) -> bool:
        """Record that Safaricom accepted a call: in live the first merchant becomes the receiver's owner.

        Returns False if another merchant owns it. Needs the open transaction that writes the call's outcome. Postgres
        decides between concurrent calls.
        """
        ...

    async def receivers_named(self, env: Env, number: str) -> frozenset[str]:
        """Return the numbers of all receivers that M-Pesa may name by ``number``.

        They are the receiver with this number and the tills that have or had this store number, also of retired
        shortcodes: payers can still pay those.
        """
        ...

    async def has_stated(self, merchant_id: str, env: Env, receiver_id: str, store_number: str) -> bool:
        """Return whether the receiver is a till that has or had this store number by credentials of the merchant.

        Another merchant's statement admits no money at the till.
        """
        ...

    async def stores_of(self, env: Env, number: str) -> frozenset[str]:
        """Return the store numbers that credentials of a receiver have stated, former ones too."""
        ...

    async def statement_sources(self) -> list[StatementSource]:
        """Return the shortcodes to reconcile; retired ones while they have open work."""
        ...
