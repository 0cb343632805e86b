"""Pages of merchants and their API keys."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

import msgspec

from mpesa_gateway.errors import InvalidFields, check_fields
from mpesa_gateway.http.admin import NAME
from mpesa_gateway.local_time import parse_local
from mpesa_gateway.ops_contract import Action, Menu, Page, PageRequest, Permission, Redirect, Rendered
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Scope
from mpesa_gateway_ops.people import names_of
from mpesa_gateway_ops.setup import read_checklist

_A_PAGE = 50


class _Query(msgspec.Struct, frozen=True, kw_only=True):
    cursor: str | None = None
    new: str | None = None


async def merchants(visit: PageRequest) -> Rendered:
    query = visit.read_query(_Query)
    page = await visit.gateway.merchants.page(_A_PAGE, query.cursor)
    shown = {"rows": page.rows, "name": visit.text("name"), "is_new_open": query.new is not None}
    return Rendered("merchants.html", shown | visit.pager("merchants", page.next_cursor))


async def create(visit: PageRequest) -> Redirect:
    with check_fields() as checks:
        name = checks.take("name", NAME, visit.text("name"))
    merchant = await visit.gateway.merchants.create(name or "", actor=visit.visitor.actor)
    return Redirect(f"merchants/{merchant.merchant_id}", f"Merchant {merchant.name} created.")


async def owner_of(_: Runtime, merchant_id: str) -> str | None:
    return merchant_id


async def merchant(visit: PageRequest) -> Rendered:
    found = await visit.gateway.merchants.require(visit.values["merchant_id"])
    keys = await visit.gateway.api_keys.list(found.merchant_id)
    return Rendered(
        "merchant.html",
        {
            "merchant": found,
            "setup": await read_checklist(visit, found.merchant_id) if found.is_active else None,
            "is_new_key_open": bool(visit.problems or visit.query.get("new")),
            "keys": keys,
            "makers": await names_of(visit.gateway.db, {key.created_by for key in keys}),
            "scopes": [scope.name for scope in _grantable(visit)],
            "chosen": visit.form.get("scopes", [scope.name for scope in visit.gateway.scopes.of_merchants]),
            "fields": {name: visit.text(name) for name in ("name", "expires_at")},
        },
        title=found.name,
    )


def _grantable(visit: PageRequest) -> Sequence[Scope]:
    """Only an admin of the host can create a key for the whole gateway."""
    is_admin = visit.visitor.may(Permission.ADMINISTER)
    return visit.gateway.scopes.all if is_admin else visit.gateway.scopes.of_merchants


async def create_key(visit: PageRequest) -> Redirect:
    found = await visit.gateway.merchants.require_active(visit.values["merchant_id"])
    with check_fields() as checks:
        name = checks.take("name", NAME, visit.text("name"))
        scopes = checks.take("scopes", partial(_named_scopes, visit), visit.form.get("scopes", ()))
        expires_at = checks.take("expires_at", partial(_expiry, visit), visit.text("expires_at"))
        env = checks.take("env", _env, visit.text("env"))
        if env == "live" and visit.text("confirm") != found.merchant_id:
            checks.fail("confirm", "tick the box: a live key moves real money")
    _, secret = await visit.gateway.api_keys.create(
        found.merchant_id,
        name=name or "",
        scopes=scopes or (),
        env="live" if env == "live" else "sandbox",
        actor=visit.visitor.actor,
        expires_at=expires_at,
    )
    return Redirect(f"merchants/{found.merchant_id}", f"API key `{name}` created.", secret)


def _named_scopes(visit: PageRequest, names: Sequence[str]) -> Sequence[Scope]:
    scopes = visit.gateway.scopes.named(names)
    if refused := [scope.name for scope in scopes if scope not in _grantable(visit)]:
        raise ValueError(f"only the host creates keys with {', '.join(refused)}")
    return scopes


def _env(text: str) -> str:
    if text not in {"sandbox", "live"}:
        raise ValueError("choose sandbox or live")
    return text


def _expiry(visit: PageRequest, text: str) -> datetime | None:
    expires_at = parse_local(text) if text else None
    if expires_at is not None and expires_at <= visit.gateway.clock.now():
        raise ValueError("must be in the future: this key could never be used")
    return expires_at


async def revoke_key(visit: PageRequest) -> Redirect:
    merchant_id, key_id = visit.values["merchant_id"], visit.values["key_id"]
    _confirmed(visit, key_id)
    key = await visit.gateway.api_keys.revoke(merchant_id, key_id, actor=visit.visitor.actor)
    return Redirect(f"merchants/{merchant_id}", f"API key `{key.name}` revoked.")


async def deactivate(visit: PageRequest) -> Redirect:
    merchant_id = visit.values["merchant_id"]
    _confirmed(visit, merchant_id)
    found = await visit.gateway.merchants.deactivate(merchant_id, actor=visit.visitor.actor)
    return Redirect(f"merchants/{merchant_id}", f"Merchant {found.name} deactivated: its keys are refused.")


def _confirmed(visit: PageRequest, subject_id: str) -> None:
    if visit.text("confirm") != subject_id:
        raise InvalidFields.field_error("confirm", "tick the box: this cannot be undone")


PAGES = (
    Page(
        "merchants", "Merchants", merchants, Permission.GATEWAY, menu=Menu("Merchants and keys", 52, "Merchants", "m")
    ),
    Page("merchants/{merchant_id}", "Merchant", merchant, Permission.VIEW, names="mer", place="merchant"),
)
ACTS = (
    Action("merchants", "create_merchant", create, Permission.ADMINISTER),
    Action("merchants/{merchant_id}", "create_key", create_key, Permission.KEYS),
    Action(
        "merchants/{merchant_id}/deactivate",
        "deactivate",
        deactivate,
        Permission.ADMINISTER,
        back="merchants/{merchant_id}",
    ),
    Action(
        "merchants/{merchant_id}/keys/{key_id}/revoke",
        "revoke_key",
        revoke_key,
        Permission.KEYS,
        back="merchants/{merchant_id}",
    ),
)
