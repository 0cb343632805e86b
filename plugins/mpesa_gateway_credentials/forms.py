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
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway_credentials.api import MpesaCredentials
from mpesa_gateway_credentials.reader import CredentialReader
from mpesa_gateway_credentials.schemas import MpesaFields, SetProvider, ShortcodeFields
from mpesa_gateway_credentials.service import CredentialStore, StoreResult

_KEYS = ("consumer_key", "consumer_secret", "passkey")
_SECRETS = {*_KEYS, "security_credential", "initiator_password"}
_PLAIN = tuple(name for name in MpesaFields.__struct_fields__ if name not in _SECRETS | {"env"})


async def edit(visit: PageRequest) -> Rendered:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    return _form(visit, merchant, await _default(visit), "edit")


async def edit_one(visit: PageRequest) -> Rendered:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    return _form(visit, merchant, await _chosen(visit), f"shortcodes/{visit.values['number']}")


async def add(visit: PageRequest) -> Rendered:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    return _form(visit, merchant, None, "add")


def _form(visit: PageRequest, merchant: Merchant, stored: MpesaCredentials | None, to: str) -> Rendered:
    filled = {name: visit.text(name) for name in (*_PLAIN, "name")} if visit.form else _plain(stored)
    return Rendered(
        "credentials_form.html",
        {
            "merchant": merchant,
            "fields": filled,
            "kept": _masked(stored),
            "shortcode": None if stored is None else stored.shortcode,
            "to": to,
        },
        title=f"M-Pesa credentials of {merchant.name}",
    )


async def save(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    wanted = _wanted(visit, await _default(visit))
    body = read_body(msgspec.json.encode({"provider": "mpesa", "mpesa": wanted}), SetProvider)
    _confirm_live(visit)
    done = await visit.gateway.port(CredentialStore).store(visit.caller(merchant, visit.env), body)
    retired = "" if done.retired is None else f" Shortcode {done.retired.shortcode} is retired: no new payments."
    return Redirect(
        f"merchants/{merchant.merchant_id}",
        f"{visit.env.capitalize()} credentials of shortcode {done.credentials.shortcode} stored.{retired}",
    )


async def save_one(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    body = _read_shortcode(visit, _wanted(visit, await _chosen(visit)))
    done = await visit.gateway.port(CredentialStore).replace(
        visit.caller(merchant, visit.env), visit.values["number"], body
    )
    return _stored(visit, done)


async def save_added(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    body = _read_shortcode(visit, _wanted(visit, None))
    return _stored(visit, await visit.gateway.port(CredentialStore).add(visit.caller(merchant, visit.env), body))


def _read_shortcode(visit: PageRequest, wanted: dict[str, Any]) -> ShortcodeFields:
    named = {"name": visit.text("name")} if visit.text("name") else {}
    body = read_body(msgspec.json.encode(wanted | named), ShortcodeFields)
    _confirm_live(visit)
    return body


def _stored(visit: PageRequest, done: StoreResult) -> Redirect:
    return Redirect(
        f"credentials/{visit.values['merchant_id']}",
        f"{visit.env.capitalize()} credentials of shortcode {done.credentials.shortcode} stored.",
    )


async def make_default(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    made = await visit.gateway.port(CredentialStore).make_default(
        visit.caller(merchant, visit.env), visit.values["number"]
    )
    return Redirect(
        f"credentials/{merchant.merchant_id}",
        f"Shortcode {made.shortcode} is the {visit.env} default: payments that name no shortcode use it.",
    )


async def retire(visit: PageRequest) -> Redirect:
    merchant = await visit.gateway.merchants.require(visit.values["merchant_id"])
    number = visit.values.get("number")
    _confirmed(
        visit,
        "tick the box: no new payments until credentials are stored again"
        if number is None
        else f"tick the box: no new payments at shortcode {number}",
    )
    retired = await visit.gateway.port(CredentialStore).retire(visit.caller(merchant, visit.env), number)
    pending = ", ".join(f"{count:,} {what}" for what, count in retired.open.items() if count)
    return Redirect(
        f"credentials/{merchant.merchant_id}",
        f"Shortcode {retired.shortcode} is retired: no new payments. "
        f"{f'Still open: {pending}.' if pending else 'Nothing of it is open.'}",
    )


def _confirm_live(visit: PageRequest) -> None:
    if visit.env == "live":
        _confirmed(visit, "tick the box: payments use these live keys at once")


def _confirmed(visit: PageRequest, message: str) -> None:
    if visit.text("confirm") != visit.values["merchant_id"]:
        raise InvalidFields.field_error("confirm", message)


async def _default(visit: PageRequest) -> MpesaCredentials | None:
    return await _read(visit.gateway, visit.values["merchant_id"], visit.env)


async def _chosen(visit: PageRequest) -> MpesaCredentials:
    reader = visit.gateway.port(CredentialReader)
    return await reader.active(visit.values["merchant_id"], visit.env, visit.values["number"])


def _plain(stored: MpesaCredentials | None) -> dict[str, str]:
    if stored is None:
        return dict.fromkeys((*_PLAIN, "name"), "")
    wire = {"shortcode": stored.daraja.shortcode, "till_number": stored.daraja.till_number}
    return {name: str((wire[name] if name in wire else getattr(stored, name)) or "") for name in (*_PLAIN, "name")}


def _masked(stored: MpesaCredentials | None) -> dict[str, str]:
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
    active = await gateway.port(CredentialReader).all_active(merchant_id, env)
    if not active:
        return SetupState(is_done=False, text="Needs credentials.")
    found = next((each for each in active if each.verified_at is None), active[0])
    if found.verified_at is not None:
        at = format_near(found.verified_at, gateway.clock.now())
        return SetupState(is_done=True, text=f"M-Pesa returned a token for these keys at {at}")
    named = "" if found.is_default else f" of shortcode {found.shortcode}"
    return SetupState(
        is_done=False,
        text=f"Asks M-Pesa for a token with the consumer key and secret{named}. Moves no money.",
        action="Verify",
        to=f"credentials/{merchant_id}{'' if found.is_default else f'/shortcodes/{found.shortcode}'}/verify",
        is_post=True,
    )


_ONE = "credentials/{merchant_id}/shortcodes/{number}"

PAGES = (
    Page("credentials/{merchant_id}/edit", "M-Pesa credentials", edit, Permission.CREDENTIALS),
    Page("credentials/{merchant_id}/add", "M-Pesa credentials", add, Permission.CREDENTIALS),
    Page(_ONE, "M-Pesa credentials", edit_one, Permission.CREDENTIALS),
)
ACTS = (
    Action("credentials/{merchant_id}/edit", "store", save, Permission.CREDENTIALS),
    Action(
        "credentials/{merchant_id}/retire", "retire", retire, Permission.CREDENTIALS, back="credentials/{merchant_id}"
    ),
    Action("credentials/{merchant_id}/add", "add_shortcode", save_added, Permission.CREDENTIALS),
    Action(_ONE, "replace_shortcode", save_one, Permission.CREDENTIALS),
    Action(f"{_ONE}/default", "make_default", make_default, Permission.CREDENTIALS, back="credentials/{merchant_id}"),
    Action(f"{_ONE}/retire", "retire_shortcode", retire, Permission.CREDENTIALS, back="credentials/{merchant_id}"),
)
STEPS = (
    SetupStep(name="credentials", title="M-Pesa credentials", order=20, read=_credentials),
    SetupStep(name="verified", title="Verified by M-Pesa", order=30, read=_verified),
)
