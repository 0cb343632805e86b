"""The operators' forms for a merchant's credentials, and their steps of the set-up."""

from typing import Any

import msgspec

from mpesa_gateway.env import Env
from mpesa_gateway.errors import InvalidFields, ProviderNotConfigured
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.local_time import format_near
from mpesa_gateway.ops_contract import Action, Page, PageRequest, Permission, Redirect, Rendered, SetupState, SetupStep
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway_credentials.api import MpesaCredentials
from mpesa_gateway_credentials.reader import CredentialReader
from mpesa_gateway_credentials.schemas import MpesaFields, SetProvider
from mpesa_gateway_credentials.service import CredentialStore

_KEYS = ("consumer_key", "consumer_secret", "passkey")
_SECRETS = {*_KEYS, "security_credential", "initiator_password"}
_PLAIN = tuple(name for name in MpesaFields.__struct_fields__ if name not in _SECRETS | {"env"})


async def edit(visit: PageRequest) -> Rendered:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    stored = await _stored(visit)
    filled = {name: visit.text(name) for name in _PLAIN} if visit.form else _plain(stored)
    return Rendered(
        "credentials_form.html",
        {
            "merchant": merchant,
            "fields": filled,
            "kept": _masked(stored),
            "shortcode": None if stored is None else stored.shortcode,
        },
        title=f"M-Pesa credentials of {merchant.name}",
    )


async def save(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    wanted = _wanted(visit, await _stored(visit))
    body = read_body(msgspec.json.encode({"provider": "mpesa", "mpesa": wanted}), SetProvider)
    if visit.env == "live":
        _confirmed(visit, "tick the box: payments use these live keys at once")
    done = await visit.gateway.port(CredentialStore).store(visit.caller(merchant, visit.env), body)
    retired = "" if done.retired is None else f" Shortcode {done.retired.shortcode} is retired: no new payments."
    return Redirect(
        f"merchants/{merchant.merchant_id}",
        f"{visit.env.capitalize()} credentials of shortcode {body.mpesa.till_number or body.mpesa.shortcode} stored."
        f"{retired}",
    )


async def retire(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require(visit.values["merchant_id"])
    _confirmed(visit, "tick the box: no new payments until credentials are stored again")
    retired = await visit.gateway.port(CredentialStore).retire(visit.caller(merchant, visit.env))
    pending = ", ".join(f"{count:,} {what}" for what, count in retired.open.items() if count)
    return Redirect(
        f"credentials/{merchant.merchant_id}",
        f"Shortcode {retired.shortcode} is retired: no new payments. "
        f"{f'Still open: {pending}.' if pending else 'Nothing of it is open.'}",
    )


def _confirmed(visit: PageRequest, message: str) -> None:
    if visit.text("confirm") != visit.values["merchant_id"]:
        raise InvalidFields.field_error("confirm", message)


async def _stored(visit: PageRequest) -> MpesaCredentials | None:
    try:
        return await visit.gateway.port(CredentialReader).get(visit.values["merchant_id"], visit.env)
    except ProviderNotConfigured:
        return None


def _plain(stored: MpesaCredentials | None) -> dict[str, str]:
    if stored is None:
        return dict.fromkeys(_PLAIN, "")
    wire = {"shortcode": stored.daraja.shortcode, "till_number": stored.daraja.till_number}
    return {name: str((wire[name] if name in wire else getattr(stored, name)) or "") for name in _PLAIN}


def _masked(stored: MpesaCredentials | None) -> dict[str, str]:
    """Return the last four characters of each stored secret, empty without one."""
    values = {name: getattr(stored, name, None) for name in (*_KEYS, "security_credential")}
    return {name: value.masked if isinstance(value, Secret) else "" for name, value in values.items()}


def _wanted(visit: PageRequest, stored: MpesaCredentials | None) -> dict[str, Any]:
    """Return the body of ``PUT /v1/merchant/providers``: an empty secret keeps the stored one of the same shortcode."""
    filled = {name: visit.text(name) for name in (*_PLAIN, *_SECRETS) if visit.text(name)}
    kept: dict[str, str] = {}
    if stored is not None and all(
        filled.get(name, "") == _plain(stored)[name] for name in ("shortcode", "till_number")
    ):
        kept = {name: getattr(stored, name).reveal() for name in _KEYS}
        is_same_initiator = stored.initiator is not None and filled.get("initiator") == stored.initiator
        if is_same_initiator and stored.security_credential is not None and "initiator_password" not in filled:
            kept["security_credential"] = stored.security_credential.reveal()
    return {"env": visit.env} | kept | filled


# -- set-up -----------------------------------------------------------------------------------------------------------


async def _read(gateway: Runtime, merchant_id: str, env: Env) -> MpesaCredentials | None:
    try:
        return await gateway.port(CredentialReader).get(merchant_id, env)
    except ProviderNotConfigured:
        return None


async def _credentials(gateway: Runtime, merchant_id: str, env: Env) -> SetupState:
    found = await _read(gateway, merchant_id, env)
    if found is not None:
        return SetupState(is_done=True, text=f"shortcode {found.shortcode}")
    return SetupState(
        is_done=False,
        text=f"Payments are off: no {env} credentials are stored.",
        action="Enter credentials",
        to=f"credentials/{merchant_id}/edit",
    )


async def _verified(gateway: Runtime, merchant_id: str, env: Env) -> SetupState:
    found = await _read(gateway, merchant_id, env)
    if found is None:
        return SetupState(is_done=False, text="Needs credentials.")
    if found.verified_at is not None:
        at = format_near(found.verified_at, gateway.clock.now())
        return SetupState(is_done=True, text=f"M-Pesa returned a token for these keys at {at}")
    return SetupState(
        is_done=False,
        text="Asks M-Pesa for a token with the consumer key and secret. Moves no money.",
        action="Verify",
        to=f"credentials/{merchant_id}/verify",
        is_post=True,
    )


PAGES = (Page("credentials/{merchant_id}/edit", "M-Pesa credentials", edit, Permission.CREDENTIALS),)
ACTS = (
    Action("credentials/{merchant_id}/edit", "store", save, Permission.CREDENTIALS),
    Action(
        "credentials/{merchant_id}/retire", "retire", retire, Permission.CREDENTIALS, back="credentials/{merchant_id}"
    ),
)
STEPS = (
    SetupStep(name="credentials", title="M-Pesa credentials", order=20, read=_credentials),
    SetupStep(name="verified", title="Verified by M-Pesa", order=30, read=_verified),
)
