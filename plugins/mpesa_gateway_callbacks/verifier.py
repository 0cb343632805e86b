"""Verification of tokens, source addresses and signatures."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache

import structlog

from mpesa_gateway.client_ip import is_within, read_address, read_networks
from mpesa_gateway.clock import Clock
from mpesa_gateway.config import ConfigError, DarajaConfig
from mpesa_gateway.daraja.callbacks import StandingAddresses
from mpesa_gateway.daraja.certificates import Certificate, CertificateError, certificate_for
from mpesa_gateway.daraja.signatures import (
    CallbackSecrets,
    is_signed_with_certificate,
    is_signed_with_passkey,
    read_signature,
)
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway_callbacks.callback_kinds import CallbackKinds
from mpesa_gateway_callbacks.errors import SignatureRejected, SourceRejected, TokenRejected
from mpesa_gateway_callbacks.incoming import CallbackPost
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.tokens import Subject, read_token

log = structlog.get_logger(__name__)

_READ_CERTIFICATE_AGAIN = timedelta(minutes=1)
"""Pause before an unusable certificate is read again."""

_STANDING = re.compile(r"[sl]-[a-z]{3}_[0-9a-z]{26}\.[0-9a-f]{32}\Z", re.ASCII)
"""The form of a standing address's token."""

_LOOK_UPS_A_SECOND = 20
"""Queries that unlisted senders' unknown tokens cause in one process."""


class CallbackVerifier:
    """Checks callbacks, and stores nothing."""

    def __init__(
        self,
        *,
        settings: CallbacksSettings,
        daraja: DarajaConfig,
        clock: Clock,
        token_key: Callable[[], bytes],
        merchants: Merchants,
        secrets: CallbackSecrets | None,
        kinds: CallbackKinds,
        standing: Callable[[str], StandingAddresses | None],
    ) -> None:
        """``secrets`` is None if no plugin provides passkeys; ``standing`` returns a kind's standing addresses."""
        self._settings = settings
        self._daraja = daraja
        self._clock = clock
        self._token_key = token_key
        self._merchants = merchants
        self._secrets = secrets
        self._kinds = kinds
        self._standing = standing
        self._look_ups = (0, 0)
        self._allowlist = read_networks(settings.allowlist, "callbacks.allowlist")
        self._listed = lru_cache(maxsize=4096)(self._is_within_allowlist)
        self._certificate: Certificate | None = None
        self._certificate_read_at: datetime | None = None

    async def load_certificate(self) -> None:
        """Read the live certificate. Raises ConfigError if signatures are required and it is unusable."""
        try:
            self._read_certificate()
        except CertificateError as problem:
            if self._settings.signature == "required" and await self._merchants.any_live():
                raise ConfigError(f"callbacks.signature is `required`, and {problem}") from None
            log.info("live_certificate_unavailable", problem=str(problem))

    def is_known(self, path: str, source: str) -> bool:
        """Return True for a listed source or a valid token in the path. No I/O."""
        if self.is_listed(source):
            return True
        token, key = path.rpartition("/")[2], self._token_key()
        for kind in self._kinds.names:
            addresses = self._standing(kind)
            if addresses is not None and addresses.find(token) is not None:
                return True
        return any(read_token(key, kind, token) is not None for kind in self._kinds.names)

    async def look_up(self, kind: str, token: str | None, source: str) -> None:
        """Read a standing address that this process does not know yet. Raises asyncpg's errors.

        Unlisted senders cause a limited number of queries.
        """
        addresses = self._standing(kind)
        if addresses is None or token is None or _STANDING.match(token) is None or addresses.find(token) is not None:
            return
        if self.is_listed(source) or self._admit_look_up():
            await addresses.look_up(token)

    def _admit_look_up(self) -> bool:
        this_second = int(self._clock.now().timestamp())
        second, count = self._look_ups
        self._look_ups = (this_second, count + 1 if second == this_second else 1)
        return self._look_ups[1] <= _LOOK_UPS_A_SECOND

    def is_trusted(self, kind: str, token: str | None, source: str) -> bool:
        """Return True for a valid token or a listed source."""
        return self.open_token(kind, token) is not None or self.is_listed(source)

    def is_listed(self, source: str) -> bool:
        return self._listed(source)

    def _is_within_allowlist(self, source: str) -> bool:
        address = read_address(source)
        return address is not None and is_within(address, self._allowlist)

    def open_token(self, address: str, token: str | None) -> tuple[Subject, str] | None:
        """Return a valid token's subject and kind, or None. A token fits every address of its family."""
        if token is None:
            return None
        addresses = self._standing(address)
        if addresses is not None:
            known = addresses.find(token)
            return None if known is None else (Subject(known.env, "", known.subject_id), address)
        key = self._token_key()
        for kind in self._kinds.family(address):
            subject = read_token(key, kind, token)
            if subject is not None:
                return subject, self._kinds.merged(address, kind)
        return None

    def check_token(self, incoming: CallbackPost) -> tuple[Subject | None, str]:
        """Return the token's subject and the callback's kind.

        Raises TokenRejected, and before it SourceRejected if every source is checked, to reveal nothing about tokens.
        """
        if self._settings.enforce_allowlist == "always":
            self._check_listed(incoming.source)
        if incoming.token is None:
            return None, self._kinds.of_body(incoming.kind, incoming.body)
        found = self.open_token(incoming.kind, incoming.token)
        if found is None:
            raise TokenRejected("there is nothing at this address")
        return found

    def check_source(self, incoming: CallbackPost, subject: Subject | None) -> None:
        """Raise SourceRejected if the settings or a missing token require a listed source."""
        mode = self._settings.enforce_allowlist
        # Without a token the address is the only proof, unless Daraja can be queried.
        is_checked = mode != "never" and (subject is None or subject.env == "live")
        kind = self._kinds.get(incoming.kind)
        if is_checked or (subject is None and not (kind is not None and kind.can_be_queried)):
            self._check_listed(incoming.source)

    async def check_signature(self, incoming: CallbackPost, subject: Subject | None) -> bool:
        """Return True for a valid signature, False without one. Raises SignatureRejected."""
        if self._settings.signature == "off":
            return False
        if incoming.signature is None:
            if self._settings.signature == "required":
                raise SignatureRejected(f"the header {self._settings.signature_header} is required")
            return False
        signature = read_signature(incoming.signature)
        if signature is None or not await self._is_signed(incoming.body, signature, subject):
            raise SignatureRejected("the signature does not fit the body")
        return True

    def _check_listed(self, source: str) -> None:
        if not self.is_listed(source):
            raise SourceRejected("this address is not on the allowlist of Safaricom's addresses")

    async def _is_signed(self, body: bytes, signature: bytes, subject: Subject | None) -> bool:
        if subject is not None and subject.env == "sandbox":
            if self._secrets is None:
                return False
            passkeys = await self._secrets.passkeys_of(subject.merchant_id, subject.env)
            return any(is_signed_with_passkey(passkey, body, signature) for passkey in passkeys)
        # Without a token the passkey is unknown: only Safaricom's key can have signed.
        certificate = self._live_certificate()
        return certificate is not None and is_signed_with_certificate(certificate, body, signature)

    def _live_certificate(self) -> Certificate | None:
        """Return the certificate while valid, then its successor."""
        now = self._clock.now()
        if self._certificate is not None and self._certificate.not_before <= now < self._certificate.not_after:
            return self._certificate
        if self._certificate_read_at is None or now - self._certificate_read_at >= _READ_CERTIFICATE_AGAIN:
            try:
                self._read_certificate()
            except CertificateError as problem:
                log.warning("live_certificate_unavailable", problem=str(problem))
        else:
            self._certificate = None
        return self._certificate

    def _read_certificate(self) -> None:
        self._certificate, self._certificate_read_at = None, self._clock.now()
        certificate = certificate_for(self._daraja, "live")
        certificate.check_time(self._certificate_read_at)
        self._certificate = certificate
