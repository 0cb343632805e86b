"""The operators' pages of credentials."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from mpesa_gateway.daraja.certificates import CertificateError, certificate_for
from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway.local_time import format_local
from mpesa_gateway.ops_contract import (
    Action,
    AttentionItem,
    Concern,
    Menu,
    Page,
    PageRequest,
    Pages,
    Panel,
    Permission,
    Redirect,
    Rendered,
)
from mpesa_gateway.readiness import missing_of
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_credentials import forms
from mpesa_gateway_credentials.api import ENTER_FIRST
from mpesa_gateway_credentials.reader import CredentialReader, summary_of

_A_PAGE = 50
_SOON = timedelta(days=30)
"""Time before a certificate expires from which operators are warned."""

_ENVS: tuple[Env, ...] = ("sandbox", "live")


class _Query(msgspec.Struct, frozen=True, kw_only=True):
    cursor: str | None = None


class CertificateHealth(msgspec.Struct, frozen=True):
    """The state of one of Safaricom's certificates, its end, and a problem."""

    env: Env
    state: str
    until: datetime | None
    problem: str


def certificates(gateway: Runtime) -> list[CertificateHealth]:
    return [_certificate(gateway, env) for env in _ENVS]


def _certificate(gateway: Runtime, env: Env) -> CertificateHealth:
    now = gateway.clock.now()
    try:
        certificate = certificate_for(gateway.config.daraja, env)
    except CertificateError as problem:
        return CertificateHealth(env, "missing", None, str(problem))
    outside = certificate.time_problem(now)
    if outside is not None:
        return CertificateHealth(env, "expired", certificate.not_after, f"{outside}; it still encrypts")
    state = "expiring" if certificate.not_after - now < _SOON else "valid"
    return CertificateHealth(env, state, certificate.not_after, "")


async def credentials(visit: PageRequest) -> Rendered:
    query, gateway = visit.read_query(_Query), visit.gateway
    page = await gateway.port(CredentialReader).page(query.cursor, _A_PAGE)
    rows = [(each, await gateway.daraja.token_expiry(each.credentials.daraja)) for each in page.rows]
    return Rendered(
        "credentials.html",
        {"rows": rows, "certificates": certificates(gateway)} | visit.pager("credentials", page.next_cursor),
    )


async def of_merchant(visit: PageRequest) -> Rendered:
    gateway = visit.gateway
    merchant = await gateway.merchants.require(visit.values["merchant_id"])
    reader = gateway.port(CredentialReader)
    stored: list[dict[str, Any]] = []
    for env in merchant.envs:
        active = await reader.all_active(merchant.merchant_id, env)
        stored += [
            {
                "env": env,
                "number": credentials.shortcode,
                "name": credentials.name,
                "is_default": credentials.is_default,
                "is_one_of_several": len(active) > 1,
                "summary": msgspec.to_builtins(summary_of(credentials)),
                "until": await gateway.daraja.token_expiry(credentials.daraja),
                "missing": await missing_of(gateway, merchant.merchant_id, env, credentials.shortcode),
            }
            for credentials in active
        ]
    retired = [
        each
        for env in merchant.envs
        for each in await reader.shortcodes(merchant.merchant_id, env)
        if each.retired_at is not None
    ]
    return Rendered(
        "credentials_of.html",
        {
            "merchant": merchant,
            "stored": stored,
            "retired": retired,
            "certificates": [each for each in certificates(gateway) if each.env in merchant.envs],
        },
        title=f"Credentials of {merchant.name}",
    )


async def verify(visit: PageRequest) -> Redirect:
    merchant_id = visit.values["merchant_id"]
    known: dict[str, Env] = {each: each for each in _ENVS}
    env = known.get(visit.text("env"), visit.env)
    try:
        result = await visit.gateway.port(CredentialReader).verify(merchant_id, env, visit.values.get("number"))
    except ProviderNotConfigured:
        raise ProviderNotConfigured(ENTER_FIRST.format(env)) from None
    text = " ".join(f"{check.message}. {check.mitigation or ''}".strip() for check in result.checks)
    back = f"merchants/{merchant_id}" if visit.text("from") == "setup" else f"credentials/{merchant_id}"
    if result.ok:
        text += " They are this app's; the first payment shows if passkey and shortcode are right."
    return Redirect(
        back,
        f"{'Credentials valid' if result.ok else 'Credentials rejected'}: {text}",
        is_warning=not result.ok,
    )


async def summary(visit: PageRequest, merchant_id: str) -> Rendered | None:
    reader = visit.gateway.port(CredentialReader)
    stored = [each for env in _ENVS for each in await reader.all_active(merchant_id, env)]
    return Rendered("summary.html", {"stored": stored, "merchant_id": merchant_id})


async def endangered(visit: PageRequest) -> Sequence[AttentionItem]:
    # Only the live certificate matters to operators, once a merchant is live.
    used: list[Env] = ["live"] if await visit.gateway.merchants.any_live() else []
    found = [each for each in certificates(visit.gateway) if each.env in used and each.state != "valid"]
    return [
        AttentionItem(
            text=f"Safaricom's {each.env} certificate is {each.state}"
            + (f", until {format_local(each.until, 'date')}" if each.until else ""),
            to="credentials",
            state="attention" if each.state == "expiring" else "failed",
        )
        for each in found
    ]


PAGES = Pages(
    templates="mpesa_gateway_credentials",
    pages=(
        Page(
            "credentials",
            "Credentials",
            credentials,
            Permission.GATEWAY,
            menu=Menu("Credentials", 53, "Merchants", "d"),
        ),
        Page("credentials/{merchant_id}", "Credentials", of_merchant, Permission.VIEW, place="credentials"),
        *forms.PAGES,
    ),
    acts=(
        Action(
            "credentials/{merchant_id}/verify", "verify", verify, Permission.QUERY, back="credentials/{merchant_id}"
        ),
        Action(
            "credentials/{merchant_id}/shortcodes/{number}/verify",
            "verify_shortcode",
            verify,
            Permission.QUERY,
            back="credentials/{merchant_id}",
        ),
        *forms.ACTS,
    ),
    panels=(Panel("merchant", summary, Permission.VIEW, 20),),
    concerns=(Concern(endangered, Permission.GATEWAY),),
    setup=forms.STEPS,
)
