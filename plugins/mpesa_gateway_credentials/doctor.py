"""Checks of merchants' credentials."""

import base64
import binascii
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from urllib.parse import urlsplit

import msgspec

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, Level, note, ok, problem, warning
from mpesa_gateway.daraja.addresses import find_filtered_words, find_tunnel
from mpesa_gateway.daraja.certificates import CertificateError, certificate_for
from mpesa_gateway.daraja.client import NotSent, Rejected
from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.sealing import UnsealError
from mpesa_gateway_credentials.api import MpesaCredentials
from mpesa_gateway_credentials.reader import CredentialReader, how_to_store
from mpesa_gateway_credentials.readiness import again, foreign_receiver, missing_fields

SANDBOX_SHORTCODE = "174379"
"""Daraja's public shortcode for first payments."""


async def check_credentials(gateway: Runtime, context: CheckContext) -> AsyncIterator[CheckResult]:
    merchant = context.require_merchant
    reader = gateway.port(CredentialReader)
    try:
        active = await reader.all_active(merchant.merchant_id, context.env)
        if not active:
            await reader.get(merchant.merchant_id, context.env)
    except ProviderNotConfigured as refusal:
        yield CheckResult(
            name="credentials.stored",
            level=Level.WARNING if context.is_live else Level.NOTE,
            text=f"no M-Pesa credentials for {context.env} are stored: it cannot take payments",
            fix=refusal.message,
        )
        return
    except UnsealError as refusal:
        fix = f"store the credentials again: {how_to_store(merchant.merchant_id, context.env)}"
        yield problem("credentials.stored", f"its stored credentials cannot be read: {refusal}", fix)
        return
    for credentials in active:
        prefix = "" if len(active) == 1 else f"shortcode {credentials.shortcode}: "
        async for result in _check_shortcode(gateway, credentials, context):
            yield msgspec.structs.replace(result, text=f"{prefix}{result.text}")


async def _check_shortcode(
    gateway: Runtime, credentials: MpesaCredentials, context: CheckContext
) -> AsyncIterator[CheckResult]:
    for result in (*_completeness(credentials, context), *_addresses(credentials, context)):
        yield result
    if credentials.security_credential is not None:
        yield _security_credential(gateway, credentials, stored_at=credentials.updated_at)
    yield await _token(gateway, credentials)


def _completeness(credentials: MpesaCredentials, context: CheckContext) -> Iterator[CheckResult]:
    missing = [*missing_fields(credentials), *foreign_receiver(credentials)]
    level = Level.WARNING if credentials.env == "live" else Level.NOTE
    if missing:
        text, fix = "; ".join(lack.message for lack in missing), "; ".join(lack.fix for lack in missing)
        yield CheckResult(name="credentials.whole", level=level, text=text, fix=fix)
    else:
        yield ok("credentials.whole", f"its {credentials.env} credentials for {credentials.shortcode} are complete")
    if credentials.env == "live" and credentials.shortcode == SANDBOX_SHORTCODE:
        text = f"{SANDBOX_SHORTCODE} is the sandbox's public shortcode"
        yield problem("credentials.live", text, f"{again(credentials)}, the live ones")
    elif credentials.env == "sandbox" and context.is_live and "live" not in context.require_merchant.envs:
        yield note(
            "credentials.live",
            "it is in the sandbox: no real money moves",
            "to go live: mpesa-gateway apikeys create --live, and PUT the live credentials with that key",
        )


def _addresses(credentials: MpesaCredentials, context: CheckContext) -> Iterator[CheckResult]:
    for name in ("result_url", "timeout_url"):
        url: str | None = getattr(credentials, name)
        if url is None:
            continue
        wrong = [f"contains {word}, which M-Pesa filters" for word in find_filtered_words(url)]
        if urlsplit(url).scheme != "https":
            wrong.append("is not https")
        if through := find_tunnel(url):
            wrong.append(f"leads through a tunnel ({through})")
        if wrong:
            yield CheckResult(
                name=f"credentials.{name}",
                level=Level.PROBLEM if credentials.env == "live" else context.if_live,
                text=f"its {name} {' and '.join(wrong)}",
                fix=f"{again(credentials)} without {name}, to use the gateway's own address",
            )


def _security_credential(gateway: Runtime, credentials: MpesaCredentials, *, stored_at: datetime) -> CheckResult:
    # Without Safaricom's private key only the form and the date can be checked.
    name, fix = "credentials.initiator", f"{again(credentials)}, with initiator_password: it is encrypted here"
    secret = credentials.security_credential
    try:
        sealed = base64.b64decode(secret.reveal() if secret else "", validate=True)
    except (binascii.Error, ValueError):
        return problem(name, "its security_credential is not base64, so it is no encrypted password", fix)
    try:
        certificate = certificate_for(gateway.config.daraja, credentials.env)
    except CertificateError:
        return note(name, f"the {credentials.env} certificate is missing: its initiator's password cannot be checked")
    numbers = certificate.public_key.public_numbers()
    if len(sealed) != (numbers.n.bit_length() + 7) // 8 or int.from_bytes(sealed, "big") >= numbers.n:
        text = f"its security_credential was not encrypted with the current {credentials.env} certificate"
        return problem(name, text, fix)
    if stored_at < certificate.not_before:
        text = f"its initiator's password was stored before the current {credentials.env} certificate was valid"
        return warning(name, text, fix)
    return ok(name, f"its initiator's password fits the current {credentials.env} certificate")


async def _token(gateway: Runtime, credentials: MpesaCredentials) -> CheckResult:
    try:
        await gateway.daraja.verify(credentials.daraja)
    except Rejected as fault:
        text = f"M-Pesa returns no access token: {fault.meaning}"
        return problem("credentials.token", text, fault.mitigation or again(credentials))
    except NotSent as fault:
        return warning(
            "credentials.token", f"M-Pesa could not be asked for an access token: {fault.meaning}", "try again later"
        )
    return ok("credentials.token", "M-Pesa returns an access token for them")


CHECKS = (Check("Credentials", check_credentials, of_each_merchant=True),)
