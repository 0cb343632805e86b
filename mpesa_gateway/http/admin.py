"""Administration routes: merchants, API keys and the audit log."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.db.keyset import KeysetPage
from mpesa_gateway.errors import Conflict, check_fields
from mpesa_gateway.http.confirmation import Confirmation
from mpesa_gateway.http.envelope import Page, Success
from mpesa_gateway.http.field_rules import checked_by_service, checked_with_plugins, matching
from mpesa_gateway.http.fields import example_id, path_id
from mpesa_gateway.http.openapi import SCOPE
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.http.query import ListQuery, Moment, query_dependency
from mpesa_gateway.security.api_keys import ApiKey
from mpesa_gateway.security.audit import AuditEntry
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway.security.scopes import ADMIN, Admin, AuditRead, Environment

NAME = matching(
    # Rejects blank text, control, invisible and bidirectional characters.
    r"(?=.*[^ ])[^\x00-\x1f\x7f-\xa0\xad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb]{1,100}",
    "must be 1 to 100 printable characters",
    examples=["Duka la Amina"],
)

_MERCHANT = path_id("merchant_id", "mer")


class MerchantCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A merchant to create."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"name": NAME}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"name": "Duka la Amina"}

    name: str


class KeyCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A key to create. Default ``scopes``: all except administration; ``env``: the calling key's."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "name": checked_by_service(**NAME.schema),
        "scopes": checked_with_plugins(
            lambda gateway: {"default": [scope.name for scope in gateway.scopes.of_merchants]}, items=SCOPE, minItems=1
        ),
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "name": "till",
        "env": "sandbox",
        "scopes": ["payments:read", "payments:write"],
        "expires_at": "2027-01-01T00:00:00Z",
    }

    name: str
    env: Environment | None = None
    scopes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    expires_at: Moment | None = None


class CreatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A new key with its secret, shown only once."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"api_key": f"sk_test_{example_id('')[1:]}…"}

    api_key: str
    key: ApiKey


@post("/v1/admin/merchants", tags=["Administration"])
async def create_merchant(
    data: JSONBody[MerchantCreate], caller: Admin, gateway: NamedDependency[Any]
) -> Response[Success[Merchant]]:
    """Create a merchant."""
    merchant: Merchant = await gateway.merchants.create(data.name.strip(), actor=caller.actor)
    location = gateway.url(f"/v1/admin/merchants/{merchant.merchant_id}")
    return Response(Success(data=merchant), headers={"Location": location})


@get("/v1/admin/merchants", dependencies={"filters": query_dependency(ListQuery)}, tags=["Administration"])
async def list_merchants(
    filters: NamedDependency[ListQuery],
    caller: Admin,  # noqa: ARG001 - its annotation is the check
    gateway: NamedDependency[Any],
) -> Page[Merchant]:
    """List all merchants, newest first."""
    found: KeysetPage[Merchant] = await gateway.merchants.page(filters.limit, filters.cursor, count=filters.count)
    return page_of(found)


@get("/v1/admin/merchants/{merchant_id:str}", tags=["Administration"], described=_MERCHANT)
async def get_merchant(
    merchant_id: FromPath[str],
    caller: Admin,  # noqa: ARG001 - its annotation is the check
    gateway: NamedDependency[Any],
) -> Success[Merchant]:
    """Return one merchant."""
    return Success(data=await gateway.merchants.require(merchant_id))


@post(
    "/v1/admin/merchants/{merchant_id:str}/deactivate",
    status_code=200,
    tags=["Administration"],
    described=_MERCHANT,
    refuses=(Conflict,),
)
async def deactivate_merchant(
    merchant_id: FromPath[str], data: JSONBody[Confirmation], caller: Admin, gateway: NamedDependency[Any]
) -> Success[Merchant]:
    """Deactivate a merchant and reject its keys. Irreversible: ``confirm`` repeats its id."""
    data.check(merchant_id)
    if caller.env == "sandbox" and await gateway.api_keys.has_live_key(merchant_id):
        raise Conflict("this merchant has live API keys: deactivate it with an admin key that starts with sk_live_")
    return Success(data=await gateway.merchants.deactivate(merchant_id, actor=caller.actor))


@post("/v1/admin/merchants/{merchant_id:str}/keys", tags=["Administration"], described=_MERCHANT, refuses=(Conflict,))
async def create_key(
    merchant_id: FromPath[str], data: JSONBody[KeyCreate], caller: Admin, gateway: NamedDependency[Any]
) -> Success[CreatedKey]:
    """Create a key for a merchant. The secret is shown only once."""
    with check_fields() as checks:
        checks.take("name", NAME, data.name)
        scopes = gateway.scopes.of_merchants
        if data.scopes is not msgspec.UNSET:
            scopes = checks.take("scopes", gateway.scopes.named, data.scopes)
        if data.expires_at is not None and data.expires_at <= gateway.clock.now():
            checks.fail("expires_at", "must be in the future: this key could never be used")
        if data.env not in {None, caller.env}:
            prefix = "sk_live_" if data.env == "live" else "sk_test_"
            checks.fail("env", f"a {data.env} key is created with an admin key that starts with {prefix}")
    await gateway.merchants.require_active(merchant_id)
    key, secret = await gateway.api_keys.create(
        merchant_id,
        name=data.name,
        scopes=scopes,
        env=caller.env,
        actor=caller.actor,
        expires_at=data.expires_at,
    )
    return Success(data=CreatedKey(api_key=secret.reveal(), key=key))


@get("/v1/admin/merchants/{merchant_id:str}/keys", tags=["Administration"], described=_MERCHANT)
async def list_keys(merchant_id: FromPath[str], caller: Admin, gateway: NamedDependency[Any]) -> Success[list[ApiKey]]:
    """List a merchant's keys in the calling key's env, newest first, without secrets."""
    await gateway.merchants.require(merchant_id)
    return Success(data=await gateway.api_keys.list(merchant_id, caller.env))


@post(
    "/v1/admin/merchants/{merchant_id:str}/keys/{key_id:str}/revoke",
    status_code=200,
    tags=["Administration"],
    described=_MERCHANT,
    refuses=(Conflict,),
)
async def revoke_key(
    merchant_id: FromPath[str],
    key_id: FromPath[str],
    data: JSONBody[Confirmation],
    caller: Admin,
    gateway: NamedDependency[Any],
) -> Success[ApiKey]:
    """Revoke a key. Irreversible: ``confirm`` repeats its id."""
    data.check(key_id)
    return Success(data=await gateway.api_keys.revoke(merchant_id, key_id, actor=caller.actor, env=caller.env))


class AuditQuery(ListQuery, frozen=True, kw_only=True):
    """Filters of the audit log."""

    action: str | None = None


@get("/v1/audit/logs", dependencies={"filters": query_dependency(AuditQuery)}, tags=["Operators"])
async def list_audit(
    filters: NamedDependency[AuditQuery], caller: AuditRead, gateway: NamedDependency[Any]
) -> Page[AuditEntry]:
    """List changes to this merchant in the key's env, newest first; with the admin scope, all merchants.

    ``from`` in ``detail`` is shown for changes with the merchant's own keys.
    """
    merchant_id = None if ADMIN.name in caller.scopes else caller.merchant_id
    found: KeysetPage[AuditEntry] = await gateway.audit.page(
        filters.limit, merchant_id, filters.action, filters.cursor, env=caller.env, count=filters.count
    )
    if merchant_id is not None:
        # Addresses of operators and of M-Pesa are hidden from merchants.
        own = {f"key:{key.key_id}" for key in await gateway.api_keys.list(merchant_id)}
        found = found.map(lambda entry: entry if entry.actor in own else _without_address(entry))
    return page_of(found)


def _without_address(entry: AuditEntry) -> AuditEntry:
    detail = {name: value for name, value in entry.detail.items() if name != "from"}
    return msgspec.structs.replace(entry, detail=detail)


routes = (
    create_merchant,
    list_merchants,
    get_merchant,
    deactivate_merchant,
    create_key,
    list_keys,
    revoke_key,
    list_audit,
)
