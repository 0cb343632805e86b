"""Readiness of a merchant's credentials."""

from collections.abc import Iterator

from mpesa_gateway.daraja.certificates import CertificateError, certificate_for
from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway.readiness import Missing, Need
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_credentials.api import MpesaCredentials
from mpesa_gateway_credentials.reader import CredentialReader


async def missing_credentials(gateway: Runtime, merchant_id: str, env: Env) -> list[Missing]:
    reader = gateway.port(CredentialReader)
    active = await reader.all_active(merchant_id, env)
    if not active:
        try:
            await reader.get(merchant_id, env)
        except ProviderNotConfigured as problem:
            text = "payments are off: no credentials are stored"
            return [Missing(name="credentials", message=text, fix=problem.message)]
    fields = [each for credentials in active for each in missing_fields(credentials)]
    receivers = [each for credentials in active for each in foreign_receiver(credentials)]
    return [*fields, *_unusable_certificate(gateway, env), *receivers]


def again(credentials: MpesaCredentials) -> str:
    """Return the ways to store its credentials again: the page for persons, the call for programs."""
    number, merchant_id = credentials.shortcode, credentials.merchant_id
    form, call = ("edit", "providers") if credentials.is_default else (f"shortcodes/{number}", f"shortcodes/{number}")
    page = f"/ops/credentials/{merchant_id}/{form}?env={credentials.env}"
    return f"store the credentials again at {page}, or with PUT /v1/merchant/{call}"


def missing_fields(credentials: MpesaCredentials) -> Iterator[Missing]:
    """Yield the missing optional fields, with what does not work without them."""
    fix = again(credentials)
    if credentials.initiator is None:
        yield Missing(
            name="initiator",
            message="refunds and status queries are off: mpesa.initiator is not stored",
            fix=f"{fix}, with mpesa.initiator and mpesa.initiator_password (or mpesa.security_credential)",
            shortcode=credentials.shortcode,
        )
    if credentials.nominated_number is None:
        yield Missing(
            name="nominated_number",
            message="reconciliation (Pull) is off: mpesa.nominated_number is not stored",
            fix=f"{fix}, with mpesa.nominated_number",
            shortcode=credentials.shortcode,
        )


def _unusable_certificate(gateway: Runtime, env: Env) -> Iterator[Missing]:
    try:
        certificate_for(gateway.config.daraja, env).check_time(gateway.clock.now())
    except CertificateError as problem:
        yield Missing(
            name="certificate",
            message=f"initiator_password cannot be encrypted here: no usable {env} certificate ({problem})",
            fix=f"the host sets daraja.{env}_certificate; until then send mpesa.security_credential",
        )


def foreign_receiver(credentials: MpesaCredentials) -> Iterator[Missing]:
    if not credentials.is_owner and not credentials.is_allowed:
        yield Missing(
            name="receiver",
            message=f"payments are off: shortcode {credentials.shortcode} belongs to another merchant of this gateway",
            fix="ask the host to run `mpesa-gateway receivers allow` or `mpesa-gateway receivers move`",
            shortcode=credentials.shortcode,
        )


NEEDS = (Need(missing_credentials),)
