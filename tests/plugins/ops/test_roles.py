"""Protects roles, the host's own login and the audit of every act."""

from typing import Any
from urllib.parse import urljoin

import pytest
from argon2 import PasswordHasher, Type

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.ops_contract import Action, Page, PageRequest, Pages, Permission, Redirect, Rendered, Role
from mpesa_gateway.plugin import Plugin, PluginError
from mpesa_gateway.testing.serving import running_gateway
from mpesa_gateway_ops.api import HostOperator
from mpesa_gateway_ops.page_registry import PageRegistry, RegisteredPage
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD, Browser, signed_in
from tests.plugins.ops.conftest import OpsSite

done: list[str] = []


def test_password_hasher_meets_the_owasp_minimum(real_hasher: PasswordHasher) -> None:
    # The minimum of OWASP's Password Storage Cheat Sheet for Argon2id.
    assert real_hasher.type is Type.ID
    assert real_hasher.memory_cost >= 19 * 1024
    assert real_hasher.time_cost >= 2


async def show(visit: PageRequest) -> Rendered:
    """A page of a host's plugin with its own template."""
    return Rendered("shelf.html", {"said": visit.text("said"), "items": ["pay_00000000000000000000000000", "x"]})


async def put(visit: PageRequest) -> Redirect:
    """An act of that page."""
    done.append(visit.visitor.actor)
    return Redirect("shelf", f"Put there by {visit.visitor.name}.")


def _shelf(name: str = "shelf") -> Plugin:
    pages = Pages(
        templates="tests.plugins.ops.shelf",
        pages=(
            Page("shelf", "Shelf", show, Permission.VIEW),
            Page("shelf/hidden", "Hidden", show, Permission.ADMINISTER),
            Page("shelf/of/{item}", "One", show, Permission.GATEWAY),
        ),
        acts=(
            Action("shelf/put", "put", put, Permission.OPERATE, back="shelf"),
            Action("shelf/burn", "burn", put, Permission.ADMINISTER, back="shelf"),
        ),
    )
    return Plugin(name=name, summary="A shelf.", pages=pages)


@pytest.fixture
def ops_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with the ops plugin only."""
    del values["simulator"]
    return values | {"plugins": ["ops"]}


async def test_role_is_limited_to_its_pages_and_acts(ops_settings: dict[str, Any]) -> None:
    done.clear()
    async with running_gateway(ops_settings, plugins=(_shelf(),)) as (gateway, base):
        operators = gateway.services.get(People)
        for name, role in (("viola", Role.VIEWER), ("otieno", Role.OPERATOR), ("amina", Role.ADMIN)):
            await operators.create(f"{name}@shop.example", PASSWORD, role=role, actor="test")
        allowed: dict[str, list[int]] = {}
        for name in ("viola", "otieno", "amina"):
            async with signed_in(f"{base}/ops", name) as browser:
                token = (await browser.open("/shelf")).field("form_token")
                answers = [
                    await browser.open("/shelf"),
                    await browser.open("/shelf/hidden"),
                    await browser.send("/shelf/put", {"form_token": token}),
                    await browser.send("/shelf/burn", {"form_token": token}),
                ]
                allowed[name] = [answer.status for answer in answers]
                assert all("ask an admin" in answer.words for answer in answers if answer.status == 403)
        assert allowed == {
            "viola": [200, 403, 403, 403],
            "otieno": [200, 403, 200, 403],
            "amina": [200, 200, 200, 200],
        }
        assert len(done) == 3
        entries = (await gateway.audit.page(10, None, "operator.acted", None)).rows
        assert [(entry.actor, entry.detail["act"]) for entry in reversed(entries)] == [
            (done[0], "shelf.put"),
            (done[1], "shelf.put"),
            (done[2], "shelf.burn"),
        ]


async def test_role_change_applies_to_the_next_request(ops_settings: dict[str, Any]) -> None:
    async with running_gateway(ops_settings, plugins=(_shelf(),)) as (gateway, base):
        operators = gateway.services.get(People)
        await operators.create("viola@shop.example", PASSWORD, role=Role.VIEWER, actor="test")
        async with signed_in(f"{base}/ops", "viola") as browser:
            assert (await browser.open("/shelf/hidden")).status == 403
            await operators.set_role("viola@shop.example", Role.ADMIN, actor="test")
            assert (await browser.open("/shelf/hidden")).status == 200
            entry = (await gateway.audit.page(1, None, "person.role_set", None)).rows[0]
            assert entry.detail == {"role": "admin"}


async def test_host_plugin_page_has_our_layout_and_escaped_text(ops_settings: dict[str, Any]) -> None:
    async with running_gateway(ops_settings, plugins=(_shelf(),)) as (gateway, base):
        await gateway.services.get(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
        async with signed_in(f"{base}/ops") as browser:
            assert (await browser.open("/shelf/of/<b>")).status == 404
            page = await browser.open("/shelf/of/b~1.2")
            assert page.status == 200
            assert "SANDBOX" in page.words
            assert page.unbalanced_tags == []
            again = await browser.submit(page, "/shelf/put")
            assert again.url.startswith(f"{base}/ops/shelf?note=")
            assert "Put there by amina." in again.words
            # A flash message is shown once.
            assert "Put there" not in (await browser.open(again.url)).words
            # A GET of an act redirects to its page.
            assert (await browser.open("/shelf/put")).url == f"{base}/ops/shelf"


async def test_plugins_with_two_pages_at_one_path_are_refused() -> None:
    other = _shelf("other")
    values = {"database": {"url": "postgresql://x"}, "valkey": {"url": "valkey://x"}, "plugins": ["ops"]}
    values["security"] = {"master_key": "A" * 43 + "="}
    gateway = Gateway(GatewayConfig.from_values(values), plugins=(_shelf(), other))
    with pytest.raises(PluginError, match="/ops/shelf"):
        gateway.services.get(PageRegistry)


# -- the host's own login ---------------------------------------------------------------------------------------------


async def test_host_login_signs_in_and_disables_passwords(ops_settings: dict[str, Any]) -> None:
    ops_settings["ops"] = {"login_url": "https://shop.example/login"}
    async with running_gateway(ops_settings, plugins=(_shelf(),)) as (gateway, base), Browser(f"{base}/ops") as browser:
        signed_in_operators: list[HostOperator] = []

        @gateway.services.get(People).signed_in_by
        async def read_operator(scope: Any) -> HostOperator | None:
            assert scope["type"] == "http"
            return signed_in_operators[0] if signed_in_operators else None

        assert read_operator is gateway.port(People).host_login
        redirect = await browser.open(follows=False)
        assert (redirect.status, redirect.headers["Location"]) == (303, "https://shop.example/login")
        # Operators' passwords are disabled.
        await gateway.port(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
        assert "Sign in to the host application" in (await browser.sign_in()).words
        signed_in_operators.append(HostOperator(name="wanjiru", role=Role.OPERATOR))
        page = await browser.open("/shelf")
        assert "wanjiru, operator" in page.words
        assert not page.has_form("/logout")
        assert (await browser.send("/shelf/put", {"form_token": "0" * 64})).status == 403
        assert "Put there by wanjiru." in (await browser.submit(page, "/shelf/put")).words
        assert (await browser.open("/shelf/hidden")).status == 403
        entry = (await gateway.audit.page(1, None, "operator.acted", None)).rows[0]
        assert entry.actor == "operator:host:wanjiru"
        signed_in_operators.clear()
        assert (await browser.open(follows=False)).status == 303


async def no_operator(_: Any) -> HostOperator | None:
    """A host's login that recognises no operator."""
    return None


async def test_host_login_setting_that_cannot_be_imported_is_refused(ops_settings: dict[str, Any]) -> None:
    ops_settings["ops"] = {"login": "tests.plugins.ops.test_roles:no_operator"}
    async with running_gateway(ops_settings) as (gateway, base), Browser(f"{base}/ops") as browser:
        assert gateway.port(People).host_login is not None
        page = await browser.open(follows=False)
        assert urljoin(page.url, page.headers["Location"]) == f"{base}/ops/login"
    gateway = Gateway(GatewayConfig.from_values(ops_settings | {"ops": {"login": "tests.plugins.ops.nowhere:nobody"}}))
    with pytest.raises(ConfigError, match=r"`ops\.login`: tests\.plugins\.ops\.nowhere:nobody cannot be imported"):
        await gateway.start()
    with pytest.raises(ConfigError, match=r"ops\.login"):
        Gateway(GatewayConfig.from_values(ops_settings | {"ops": {"login": "no callable"}}))


async def test_acts_each_have_a_name_and_a_page_to_return_to(ops_site: OpsSite) -> None:
    found = ops_site.gateway.services.get(PageRegistry)
    acts = [(plugin.name, act) for plugin in ops_site.gateway.plugins for act in plugin.pages.acts]
    assert len(acts) > 3
    assert len({(plugin, act.name) for plugin, act in acts}) == len(acts)
    for plugin, act in acts:
        assert found.page_of(RegisteredPage(plugin, act, {})) is not None or act.back, (plugin, act.name)
