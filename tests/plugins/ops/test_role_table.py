"""Protects the role table: every page and action admits the roles of the table, for their own merchant only."""

import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from mpesa_gateway.ops_contract import Action, Page, Pages
from mpesa_gateway.permissions import (
    GRANTS,
    MerchantRole,
    Permission,
    Role,
    host_permissions,
    is_of_merchant,
    member_permissions,
    role_table,
)
from mpesa_gateway.plugin import Plugin, PluginError
from mpesa_gateway.testing.serving import INITIATED, Api, shop
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.page_registry import PageRegistry
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD, Browser, set_up_factor, signed_in
from tests.house.tree import ROOT
from tests.plugins.ops.conftest import OpsSite

OTHER = "Duka la pili"

READS = {Permission.ACCOUNT, Permission.VIEW, Permission.GATEWAY, Permission.AUDIT}


@dataclass
class Town:
    """Two shops with a payment and a refund each, and a browser of each role of the first one."""

    site: OpsSite
    own: dict[str, str]
    other: dict[str, str]
    browsers: dict[Role | MerchantRole | str, Browser] = field(default_factory=dict[Any, Browser])

    def paths(self, it: Page | Action, values: dict[str, str]) -> str:
        """Return the address with the values of a shop."""
        return "/" + re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], "xxx_00000000000000000000000000"), it.path)


async def _objects(site: OpsSite, api: Api, merchant_id: str, key: str) -> dict[str, str]:
    made = (await api.pay("254711000001", key=key)).data
    await api.settled(made["id"], "completed")
    refund = await api.call("POST", "/v1/refunds", {"payment_id": made["id"]})
    assert refund.status == 201, refund
    db = site.gateway.db
    found = {"merchant_id": merchant_id, "payment_id": made["id"], "refund_id": refund.data["id"]}
    found["endpoint_id"] = await db.fetchval(
        "SELECT endpoint_id FROM webhook_endpoint WHERE merchant_id = $1", merchant_id
    )
    found["key_id"] = await db.fetchval("SELECT key_id FROM api_key WHERE merchant_id = $1", merchant_id)
    found["callback_id"] = await db.fetchval(
        "SELECT callback_id FROM callback WHERE merchant_id = $1 LIMIT 1", merchant_id
    )
    found["event_id"] = await db.fetchval("SELECT event_id FROM event WHERE merchant_id = $1 LIMIT 1", merchant_id)
    found["delivery_id"] = await db.fetchval(
        "SELECT delivery_id FROM delivery WHERE merchant_id = $1 LIMIT 1", merchant_id
    )
    run = (await api.call("POST", "/v1/payments/mpesa/reconcile", {})).data
    found["run_id"] = run["id"]
    line = await db.fetchval("SELECT transaction_id FROM transaction WHERE merchant_id = $1 LIMIT 1", merchant_id)
    found["line_id"] = found["transaction_id"] = line
    return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
async def town(ops_site: OpsSite) -> AsyncGenerator[Town]:
    """Two shops, a person of each role, a member of the other shop and a person without any role."""
    site = ops_site
    people, memberships = site.gateway.port(People), site.gateway.port(Memberships)
    async with (
        shop(site.gateway, site.url.removesuffix("/ops"), webhook_url=site.receiver.url) as second,
        AsyncExitStack() as stack,
    ):
        assert (await second.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        other_id = (await second.call("GET", "/v1/merchant/me")).data["id"]
        town = Town(
            site,
            await _objects(site, site.api, site.merchant_id, "own"),
            await _objects(site, second, other_id, "other"),
        )
        persons: dict[Any, tuple[str, MerchantRole]] = {role: (site.merchant_id, role) for role in MerchantRole} | {
            "stranger": (other_id, MerchantRole.OWNER)
        }
        for key, (merchant_id, role) in persons.items():
            email = f"{key}@town.example"
            person = await people.create(email, PASSWORD, role=None, actor="test")
            await memberships.add(merchant_id, person.person_id, role, actor="test")
            town.browsers[key] = await stack.enter_async_context(signed_in(site.url, email))
        await people.create("roleless@town.example", PASSWORD, role=None, actor="test")
        town.browsers["roleless"] = await stack.enter_async_context(_account_of(site.url, "roleless@town.example"))
        for host in Role:
            town.browsers[f"host {host}"] = await stack.enter_async_context(site.browser(host))
        town.browsers["anonymous"] = await stack.enter_async_context(Browser(site.url))
        yield town


class _account_of(Browser):  # noqa: N801 - reads as `signed_in` does
    """A browser of a person who may see the account only."""

    def __init__(self, ops: str, email: str) -> None:
        super().__init__(ops)
        self._email = email

    async def __aenter__(self) -> Self:
        await self.sign_in(self._email)
        assert (await self.open("/account")).status == 200
        return self


def _granted(who: Role | MerchantRole | str) -> frozenset[Permission]:
    if isinstance(who, MerchantRole):
        return member_permissions(who)
    if who.startswith("host "):
        return host_permissions(Role(who.removeprefix("host ")))
    return {"stranger": member_permissions(MerchantRole.OWNER), "roleless": frozenset({Permission.ACCOUNT})}.get(
        str(who), frozenset()
    )


async def test_every_page_admits_the_roles_of_the_table_and_shows_no_other_merchant(town: Town) -> None:
    pages, _ = town.site.gateway.port(PageRegistry).every()
    secrets = set(town.other.values())
    tried = shown = 0
    for page in pages:
        path = town.paths(page, town.own)
        for who, browser in town.browsers.items():
            answer = await browser.open(path, follows=False, accept="text/html")
            tried += 1
            may = page.needs in _granted(who)
            if who == "stranger" and "{" in page.path and is_of_merchant(page.needs):
                assert answer.status == 404, (page.path, who)
                continue
            if who == "anonymous":
                assert (answer.status, answer.headers["Location"].endswith("/login")) == (303, True), page.path
                continue
            assert (answer.status != 403) is may, (page.path, who, answer.status)
            if may and isinstance(who, MerchantRole):
                shown += 1
                found = [value for value in secrets if value in answer.text]
                assert found == [], (page.path, who)
    assert tried == len(pages) * len(town.browsers)
    assert shown > 50


async def test_pages_of_the_other_merchant_are_not_found(town: Town) -> None:
    pages, _ = town.site.gateway.port(PageRegistry).every()
    owner = town.browsers[MerchantRole.OWNER]
    tried = 0
    for page in pages:
        if "{" in page.path and is_of_merchant(page.needs):
            answer = await owner.open(town.paths(page, town.other), follows=False)
            assert answer.status == 404, page.path
            tried += 1
        elif "{" not in page.path and is_of_merchant(page.needs):
            answer = await owner.open(f"{town.paths(page, {})}?merchant={town.other['merchant_id']}", follows=False)
            assert not [value for value in town.other.values() if value in answer.text], page.path
            tried += 1
    assert tried > 15


async def test_every_action_admits_the_roles_of_the_table(town: Town) -> None:
    _, acts = town.site.gateway.port(PageRegistry).every()
    tried = 0
    for act in acts:
        path = town.paths(act, town.own)
        for who, browser in town.browsers.items():
            if act.needs in _granted(who) and who != "stranger":
                continue
            if act.needs in _granted(who) and ("{" not in act.path or not is_of_merchant(act.needs)):
                continue
            fields = {} if who == "anonymous" else {"form_token": (await browser.open("/account")).field("form_token")}
            answer = await browser.send(path, fields, follows=False)
            tried += 1
            if who == "anonymous":
                assert (answer.status, answer.headers["Location"].endswith("/login")) == (303, True), act.path
            else:
                assert answer.status in {403, 404}, (act.path, who, answer.status)
    assert tried > 150
    acted = await town.site.gateway.audit.page(100, None, "operator.acted", None)
    assert acted.rows == []


async def test_actions_on_the_other_merchants_objects_are_not_found(town: Town) -> None:
    _, acts = town.site.gateway.port(PageRegistry).every()
    owner = town.browsers[MerchantRole.OWNER]
    token = (await owner.open("/account")).field("form_token")
    tried = 0
    for act in acts:
        if "{" in act.path and is_of_merchant(act.needs):
            answer = await owner.send(town.paths(act, town.other), {"form_token": token}, follows=False)
            assert answer.status == 404, act.path
            tried += 1
    assert tried > 15


async def test_form_of_the_other_env_is_answered_for_every_object(town: Town) -> None:
    _, acts = town.site.gateway.port(PageRegistry).every()
    browser = town.browsers["host admin"]
    await set_up_factor(browser)
    fields = {"form_token": (await browser.open("/account")).field("form_token"), "form_env": "live"}
    objects = {name: value for name, value in town.own.items() if name != "merchant_id"}
    tried, not_done = 0, set[str]()
    for act in acts:
        if set(re.findall(r"\{(\w+)\}", act.path)) & set(objects):
            answer = await browser.send(town.paths(act, town.own), fields)
            assert answer.status < 500, (act.path, answer.status)
            tried += 1
            if "Not done: this is a sandbox object" in answer.words:
                not_done.add(act.path)
    assert tried > 15
    assert "transactions/{transaction_id}/allocate" in not_done


async def test_member_sees_numbers_by_role_and_cannot_search_by_them(town: Town) -> None:
    number = "254711000001"
    for role in MerchantRole:
        page = await town.browsers[role].open("/payments")
        assert (number in page.text) is (Permission.NUMBERS in member_permissions(role)), role
    cashier = town.browsers[MerchantRole.CASHIER]
    for text in (number, "0711000001", "254711000", "711000001"):
        found = await cashier.submit(await cashier.open("/payments"), "/payments/look", search=text)
        assert "does not show phone numbers" in found.words or town.own["payment_id"] not in found.text, text
    missed = await cashier.open("/payments?search=nothing+like+it")
    assert ("Search finds" in missed.words, "digits" in missed.words) == (True, False)


async def test_refused_member_reads_the_roles_of_members_only(town: Town) -> None:
    refused = await town.browsers[MerchantRole.CASHIER].open("/audit")
    assert (refused.status, "takes the role owner, and yours is cashier" in refused.words) == (403, True)
    refused = await town.browsers[f"host {Role.VIEWER}"].open(f"/credentials/{town.own['merchant_id']}/edit")
    assert (refused.status, "takes the role admin or owner, and yours is viewer" in refused.words) == (403, True)


async def test_owner_cannot_create_a_key_for_the_whole_gateway(town: Town) -> None:
    owner, merchant_id = town.browsers[MerchantRole.OWNER], town.site.merchant_id
    page = await owner.open(f"/merchants/{merchant_id}")
    assert '"admin"' not in page.text
    form = page.form(f"/merchants/{merchant_id}")
    refused = await owner.send(form.action, form.fields | {"name": "x", "scopes": "admin", "env": "sandbox"})
    assert (refused.status, "only the host creates keys" in refused.words) == (422, True)
    made = await owner.send(form.action, form.fields | {"name": "till", "scopes": "payments:read", "env": "sandbox"})
    assert "API key `till` created" in made.words, made.words
    key = (await town.site.gateway.api_keys.list(merchant_id))[0]
    person = await town.site.gateway.port(People).find("owner@town.example")
    assert key.created_by == f"person:{person.person_id}"
    assert "by owner" in (await owner.open(f"/merchants/{merchant_id}")).words


# -- declarations -----------------------------------------------------------------------------------------------------


async def _show(_: Any) -> Any:
    raise AssertionError


def test_page_or_action_without_a_permission_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="needs"):
        Page("shelf", "Shelf", _show)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue] - what is refused
    with pytest.raises(TypeError, match="needs"):
        Action("shelf", "put", _show)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue] - what is refused


def test_object_page_for_members_without_an_owner_is_refused() -> None:
    class Runtime:
        """A runtime with one plugin."""

        def contributed(self, _: Any) -> list[Plugin]:
            page = Page("shelf/{book_id}", "Book", _show, Permission.VIEW)
            return [Plugin(name="shelf", summary="A shelf.", pages=Pages(pages=(page,)))]

    with pytest.raises(PluginError, match="no plugin finds the merchant of `book_id`"):
        PageRegistry(Runtime())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - a part of one


def test_documented_role_table_is_the_one_in_code() -> None:
    rows = ["| " + " | ".join(row) + " |" for row in role_table()]
    text = (ROOT / "docs/people.md").read_text(encoding="utf-8")
    missing = [row for row in rows if row not in text]
    assert missing == [], "\n".join(rows)
    assert text.count("\n| `") == len(GRANTS)
