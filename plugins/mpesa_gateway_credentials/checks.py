"""Checks of credentials before they are stored."""

from collections.abc import Callable
from urllib.parse import urlsplit

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.certificates import Certificate, CertificateError
from mpesa_gateway.errors import FieldChecks, InvalidFields, check_fields
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Caller, Env, key_prefix
from mpesa_gateway_credentials.reader import SECRET_FIELDS
from mpesa_gateway_credentials.schemas import MpesaFields
from mpesa_gateway_credentials.settings import CredentialsSettings

log = structlog.get_logger(__name__)


class CredentialChecks:
    """Checks fields against the caller's key and the settings."""

    def __init__(
        self,
        *,
        clock: Clock,
        settings: CredentialsSettings,
        certificate_of: Callable[[Env], Certificate],
        public_url: str,
    ) -> None:
        """``certificate_of`` returns the certificate for an env's passwords, or raises CertificateError."""
        self._clock = clock
        self._settings = settings
        self._certificate_of = certificate_of
        self._public_url = public_url

    def read(self, caller: Caller, fields: MpesaFields, at: str) -> tuple[str | None, dict[str, str | None]]:
        """Return the nominated number, and the secrets with the initiator's password encrypted.

        ``at`` is the fields' path in the body, with its dot. Raises InvalidFields.
        """
        with check_fields() as checks:
            self._check_env(checks, caller, fields, at)
            _check_initiator(checks, fields, at)
            for name in ("result_url", "timeout_url"):
                value = getattr(fields, name)
                if value is not None:
                    self._check_url(checks, f"{at}{name}", value)
        nominated = None if fields.nominated_number is None else str(Msisdn.parse(fields.nominated_number))
        secrets = {name: getattr(fields, name) for name in SECRET_FIELDS}
        if fields.initiator_password is not None:
            secrets["security_credential"] = self._encrypt(caller.env, fields.initiator_password, at)
        return nominated, secrets

    def _encrypt(self, env: Env, password: str, at: str) -> str:
        try:
            certificate = self._certificate_of(env)
        except CertificateError as problem:
            raise InvalidFields.field_error(
                f"{at}initiator_password",
                f"it cannot be encrypted here ({problem}); or send security_credential, encrypted by yourself",
            ) from None
        outside = certificate.time_problem(self._clock.now())
        if outside is not None:
            log.warning("certificate_not_valid_now", env=env, problem=outside)
        return certificate.encrypt(Secret(password)).reveal()

    def _check_env(self, checks: FieldChecks, caller: Caller, fields: MpesaFields, at: str) -> None:
        if fields.env != caller.env:
            checks.fail(
                f"{at}env",
                f"{fields.env} credentials are stored with a key that starts with "
                f"{key_prefix('live' if fields.env == 'live' else 'sandbox')}; this key starts with "
                f"{key_prefix(caller.env)} and stores {caller.env} credentials only. Nothing was changed",
            )
        elif fields.env == "live" and urlsplit(self._public_url).scheme != "https":
            checks.fail(f"{at}env", "live needs the gateway's public_url to be https: M-Pesa calls nothing else back")

    def _check_url(self, checks: FieldChecks, field: str, url: str) -> None:
        own = urlsplit(self._public_url)
        try:
            parts = urlsplit(url)
            is_ours = (parts.scheme, parts.hostname, parts.port) == (own.scheme, own.hostname, own.port)
        except ValueError:
            checks.fail(field, "must be an https address")
            return
        is_allowed = parts.scheme == "https" and parts.hostname in self._settings.allowed_callback_hosts
        if not (is_ours or is_allowed) or len(url) > 500 or not url.isascii() or not url.isprintable():
            checks.fail(
                field,
                f"its host must be this gateway's ({own.netloc}) or allowed in its configuration "
                "(credentials.allowed_callback_hosts); leave it out to use the gateway's own address",
            )


def _check_initiator(checks: FieldChecks, fields: MpesaFields, at: str) -> None:
    has_secret = fields.security_credential is not None or fields.initiator_password is not None
    if fields.security_credential is not None and fields.initiator_password is not None:
        checks.fail(f"{at}initiator_password", "send this or security_credential, not both")
    if has_secret and fields.initiator is None:
        checks.fail(f"{at}initiator", "is required with initiator_password and security_credential")
    if fields.initiator is not None and not has_secret:
        checks.fail(f"{at}initiator_password", "is required with initiator (or security_credential)")
