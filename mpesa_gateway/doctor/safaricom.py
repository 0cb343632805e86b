"""Daraja's reachability and clock, and Safaricom's certificates."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from mpesa_gateway.check_result import CheckContext, CheckResult, Level, note, ok, problem, warning
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.daraja.certificates import Certificate, CertificateError, read_certificate
from mpesa_gateway.daraja.client import NotSent
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env

_SKEW, _FAR = 5.0, 60.0
"""Seconds of clock skew: normal (Daraja's Date has whole seconds), and a problem."""

_SOON = timedelta(days=30)
"""Time before its expiry at which a certificate should be replaced."""


async def check_daraja(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    for env in _envs(examination):
        before = gateway.clock.now()
        try:
            theirs = await gateway.daraja.server_time(env)
        except NotSent as fault:
            yield problem(
                f"daraja.{env}",
                f"Daraja's {env} cannot be reached: {fault.meaning}",
                "allow outgoing connections to it (TCP 443, DNS), and check whether Safaricom announces maintenance",
            )
            continue
        yield _clock(env, before, theirs, gateway.clock.now())


def _clock(env: Env, before: datetime, theirs: datetime | None, after: datetime) -> CheckResult:
    if theirs is None:
        return note(f"daraja.{env}", f"Daraja's {env} answers without a Date header")
    off = max((before - theirs).total_seconds() - 1, (theirs - after).total_seconds(), 0.0)
    if off <= _SKEW:
        return ok(f"daraja.{env}", f"Daraja's {env} answers, and its clock and ours agree")
    ours_is = "ahead of" if before > theirs else "behind"
    text = f"Postgres' clock, which all processes use, is {off:.0f} seconds {ours_is} Daraja's {env}"
    fix = "synchronise the machine of Postgres with NTP (timedatectl set-ntp true)"
    if off <= _FAR:
        return warning(f"daraja.{env}", text, fix)
    return problem(
        f"daraja.{env}", f"{text}: requests carry a timestamp, and statements are requested by this clock", fix
    )


async def check_certificates(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    config = gateway.config.daraja
    found: dict[Env, Certificate] = {}
    for env in _envs(examination):
        level = Level.PROBLEM if env == "live" else Level.NOTE
        try:
            found[env] = _read(config, env)
        except CertificateError as refusal:
            lost = "no initiator password can be encrypted"
            lost += ", and signed callbacks are refused" if env == "live" else ""
            fix = f"download it from Safaricom's developer portal (certs/README.md) as daraja.{env}_certificate"
            yield CheckResult(name=f"certificate.{env}", level=level, text=f"{refusal}: {lost}", fix=fix)
            continue
        for observation in _validity(env, found[env], examination.now):
            yield observation
    if found and _is_same_key(_read_if_valid(gateway, "sandbox"), _read_if_valid(gateway, "live")):
        yield CheckResult(
            name="certificate.differ",
            level=examination.if_live,
            text="the files for sandbox and live hold the same certificate, and Safaricom's differ",
            fix="download both again from the developer portal",
        )


def _validity(env: Env, certificate: Certificate, now: datetime) -> Sequence[CheckResult]:
    name, until = f"certificate.{env}", f"{certificate.not_after:%Y-%m-%d}"
    download = f"see whether Safaricom's developer portal has a newer one, as daraja.{env}_certificate"
    seen: list[CheckResult] = []
    if now >= certificate.not_after:
        # Safaricom's published certificates expired years ago, and M-Pesa still accepts data encrypted with them.
        text = (
            f"Safaricom's {env} certificate expired on {until}: it encrypts, and signatures cannot be verified with it"
        )
        seen.append(warning(name, text, download))
    elif now < certificate.not_before:
        text = f"Safaricom's {env} certificate is valid from {certificate.not_before:%Y-%m-%d} only"
        seen.append(warning(name, text, "check this machine's clock, or download the certificate again"))
    elif certificate.not_after - now < _SOON:
        days = (certificate.not_after - now).days
        text = f"Safaricom's {env} certificate expires on {until}, in {days} days"
        seen.append(warning(name, text, f"{download}, and store the initiator passwords again"))
    else:
        seen.append(ok(name, f"Safaricom's {env} certificate is valid until {until} ({certificate.subject})"))
    if env == "live" and any(word in certificate.subject.lower() for word in ("sandbox", "simulator")):
        text = f"the certificate for live calls itself {certificate.subject}"
        seen.append(problem("certificate.differ", text, download))
    return seen


def _read(config: DarajaConfig, env: Env) -> Certificate:
    return read_certificate(Path(config.live_certificate if env == "live" else config.sandbox_certificate))


def _read_if_valid(gateway: Runtime, env: Env) -> Certificate | None:
    try:
        return _read(gateway.config.daraja, env)
    except CertificateError:
        return None


def _is_same_key(one: Certificate | None, other: Certificate | None) -> bool:
    if one is None or other is None:
        return False
    return one.public_key.public_numbers() == other.public_key.public_numbers()


def _envs(examination: CheckContext) -> Sequence[Env]:
    used: set[Env] = {env for merchant in examination.merchants for env in merchant.envs}
    if examination.is_live:
        used.add("live")
    return sorted(used or {"sandbox"})
