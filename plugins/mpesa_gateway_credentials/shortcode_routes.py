"""Routes of a merchant's shortcodes."""

import re
from typing import Any

from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.errors import Conflict, NotFound, ProviderUnavailable
from mpesa_gateway.http.envelope import Page, Success
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.http.query import ListQuery, query_dependency
from mpesa_gateway.readiness import missing_of
from mpesa_gateway.security.scopes import MerchantRead, MerchantWrite
from mpesa_gateway.services import Services
from mpesa_gateway_credentials.reader import NO_SHORTCODE, CredentialReader, shortcode_view
from mpesa_gateway_credentials.schemas import (
    ProviderMeta,
    RemovedProvider,
    ShortcodeFields,
    ShortcodeView,
    ShortcodeWithWork,
    ShownShortcode,
    StoredShortcode,
    Verification,
)
from mpesa_gateway_credentials.service import CredentialStore, StoreResult

_NUMBER = re.compile("[0-9]{5,7}", re.ASCII)
_PATH = {"shortcode": {"pattern": "^[0-9]{5,7}$", "examples": ["600000"], "description": "The number that payers pay."}}


def _read(number: str) -> str:
    if _NUMBER.fullmatch(number) is None:
        raise NotFound(NO_SHORTCODE)
    return number


@get("/v1/merchant/shortcodes", dependencies={"filters": query_dependency(ListQuery)}, tags=["Merchant"])
async def list_shortcodes(
    filters: NamedDependency[ListQuery], caller: MerchantRead, services: NamedDependency[Services]
) -> Page[ShortcodeView]:
    """List the shortcodes of the key's env, also retired ones until their secrets are erased, newest first."""
    reader = services.get(CredentialReader)
    page = await reader.page_of(caller.merchant_id, caller.env, filters.cursor, filters.limit, count=filters.count)
    return page_of(page.map(shortcode_view))


@post("/v1/merchant/shortcodes", tags=["Merchant"], refuses=(Conflict,))
async def add_shortcode(
    data: JSONBody[ShortcodeFields], caller: MerchantWrite, services: NamedDependency[Services]
) -> StoredShortcode:
    """Store one more shortcode of the key's env, or a retired one again."""
    return _stored(await services.get(CredentialStore).add(caller, data))


@get("/v1/merchant/shortcodes/{shortcode:str}", tags=["Merchant"], described=_PATH)
async def get_shortcode(
    shortcode: FromPath[str],
    caller: MerchantRead,
    services: NamedDependency[Services],
    gateway: NamedDependency[Any],
) -> ShownShortcode:
    """Return a shortcode with its open work."""
    found = await services.get(CredentialReader).find(caller.merchant_id, caller.env, _read(shortcode))
    store = services.get(CredentialStore)
    missing = (
        []
        if found.retired_at is not None
        else await missing_of(gateway, caller.merchant_id, caller.env, found.shortcode)
    )
    shown = shortcode_view(found)
    fields = {name: getattr(shown, name) for name in shown.__struct_fields__}
    return ShownShortcode(
        data=ShortcodeWithWork(**fields, open=await store.open_work_of(found.shortcode_id)),
        meta=ProviderMeta(missing=missing),
    )


@put("/v1/merchant/shortcodes/{shortcode:str}", status_code=200, tags=["Merchant"], described=_PATH)
async def replace_shortcode(
    shortcode: FromPath[str],
    data: JSONBody[ShortcodeFields],
    caller: MerchantWrite,
    services: NamedDependency[Services],
) -> StoredShortcode:
    """Replace the whole configuration of an active shortcode; its number stays."""
    return _stored(await services.get(CredentialStore).replace(caller, _read(shortcode), data))


@delete(
    "/v1/merchant/shortcodes/{shortcode:str}", status_code=200, tags=["Merchant"], described=_PATH, refuses=(Conflict,)
)
async def retire_shortcode(
    shortcode: FromPath[str], caller: MerchantWrite, services: NamedDependency[Services]
) -> Success[RemovedProvider]:
    """Retire a shortcode: no new payments. `open` counts its open work.

    The default one is refused while others are active.
    """
    retired = await services.get(CredentialStore).retire(caller, _read(shortcode))
    return Success(data=RemovedProvider(shortcode=retired.shortcode, open=retired.open))


@post("/v1/merchant/shortcodes/{shortcode:str}/default", status_code=200, tags=["Merchant"], described=_PATH)
async def make_default(
    shortcode: FromPath[str], caller: MerchantWrite, services: NamedDependency[Services]
) -> Success[ShortcodeView]:
    """Make a shortcode the default: for payments and calls that name none."""
    made = await services.get(CredentialStore).make_default(caller, _read(shortcode))
    return Success(data=shortcode_view(made))


@post(
    "/v1/merchant/shortcodes/{shortcode:str}/verify",
    status_code=200,
    tags=["Merchant"],
    described=_PATH,
    refuses=(ProviderUnavailable,),
)
async def verify_shortcode(
    shortcode: FromPath[str], caller: MerchantWrite, services: NamedDependency[Services]
) -> Success[Verification]:
    """Check a shortcode's stored keys: fetch an access token with them."""
    return Success(data=await services.get(CredentialReader).verify(caller.merchant_id, caller.env, _read(shortcode)))


def _stored(stored: StoreResult) -> StoredShortcode:
    return StoredShortcode(
        data=shortcode_view(stored.credentials), meta=ProviderMeta(missing=stored.missing, retired=stored.retired)
    )


routes = (
    list_shortcodes,
    add_shortcode,
    get_shortcode,
    replace_shortcode,
    retire_shortcode,
    make_default,
    verify_shortcode,
)
