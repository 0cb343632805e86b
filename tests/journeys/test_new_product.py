"""Protects extensibility: a new product is one folder and one line of configuration."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.http.openapi import document_of
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.security.scopes import ADMIN, MERCHANT_READ
from mpesa_gateway.testing.serving import Answer, Api, running_gateway, shop
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD, signed_in
from tests.journeys.tickets.plugin import TICKETS_WRITE
from tests.kernel.scripted import ScriptedRequest, ScriptedServer, scripted, write_json

REGISTER = "/mpesa/c2b/v2/registerurl"


@dataclass(frozen=True)
class TicketSite:
    """A gateway with the product, a merchant that sells tickets, and a Daraja stand-in."""

    gateway: Gateway
    base: str
    api: Api
    daraja: ScriptedServer

    async def sell(self, number: str) -> str:
        """Sell a ticket and return the path that Safaricom posts its validation request to."""
        assert (await self.api.call("POST", "/v1/tickets", {"number": number})).status == 201
        url: str = json.loads(self.daraja.of(REGISTER)[-1].body)["ValidationURL"]
        return urlsplit(url).path

    async def validate(self, path: str, number: str, receipt: str) -> Answer:
        """Post a validation request for this account number, as Safaricom does."""
        return await self.api.call("POST", path, {"TransID": receipt, "BillRefNumber": number})


async def as_daraja(asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
    """Issue tokens and accept every registration."""
    if asked.path.startswith("/oauth/"):
        write_json(writer, 200, {"access_token": "token-of-tests", "expires_in": "3599"})
    else:
        write_json(writer, 200, {"ResponseCode": "0", "ResponseDescription": "Success"})


@pytest.fixture
async def ticket_site(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[TicketSite]:
    """Install the product's folder and add its name to ``plugins``, the only two steps."""
    info = tmp_path / "tickets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tickets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mpesa_gateway.plugins]\ntickets = tests.journeys.tickets.plugin:plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    values["plugins"] = [*values["plugins"], "tickets"]
    async with scripted(as_daraja) as daraja:
        values["daraja"] = {"sandbox_url": daraja.base}
        async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
            yield TicketSite(gateway, base, api, daraja)


async def test_new_product_answers_a_validation_request(ticket_site: TicketSite) -> None:
    path = await ticket_site.sell("A7")
    assert path.startswith("/v1/cb/ticket/")
    sold = await ticket_site.validate(path, "A7", "TKN0000001")
    assert (sold.status, sold.body) == (200, {"ResultCode": "0", "ResultDesc": "Accepted"})
    unsold = await ticket_site.validate(path, "B9", "TKN0000002")
    assert (unsold.status, unsold.body) == (200, {"ResultCode": "C2B00012", "ResultDesc": "Rejected"})
    assert (await ticket_site.validate(path, "A7", "TKN0000001")).body == sold.body
    assert await ticket_site.gateway.db.fetchval("SELECT asked FROM ticket WHERE number = 'A7'") == 1
    kept = await ticket_site.gateway.db.fetch(
        "SELECT kind, repeats, applied_at IS NOT NULL AS used FROM callback ORDER BY 2"
    )
    assert [tuple(row) for row in kept] == [("ticket", 0, True), ("ticket", 1, True)]
    assert (await ticket_site.api.call("POST", path, {"Body": {}})).status == 422
    # At the specification's address, the sandbox accepts results from Safaricom's addresses only.
    assert (await ticket_site.validate("/v1/webhooks/mpesa/ticket/question", "A7", "TKN0000003")).status == 403


async def test_new_product_route_needs_its_scope(ticket_site: TicketSite) -> None:
    sale = ("POST", "/v1/tickets", {"number": "A7"})
    async with shop(ticket_site.gateway, ticket_site.base, scopes=(MERCHANT_READ,), is_configured=False) as other:
        refused = await other.call(*sale)
        assert (refused.status, refused.error["code"]) == (403, "AUTH_INSUFFICIENT_SCOPE")
        assert TICKETS_WRITE.name in refused.error["message"]
    async with shop(ticket_site.gateway, ticket_site.base, scopes=(ADMIN,), is_configured=False) as admin:
        merchant_id = (await ticket_site.api.call("GET", "/v1/merchant/me")).data["id"]
        keys = f"/v1/admin/merchants/{merchant_id}/keys"
        made = (await admin.call("POST", keys, {"name": "till", "scopes": ["tickets:write"]})).data["api_key"]
        listed = await admin.call("GET", "/v1/admin/callbacks?kind=ticket")
        assert (listed.status, listed.data) == (200, [])
    till = Api(ticket_site.base, made)
    assert (await till.call(*sale)).status == 201
    await till.close()


async def test_new_product_page_shows_its_table_and_resolves_its_ids(ticket_site: TicketSite) -> None:
    await ticket_site.sell("A7")
    await ticket_site.gateway.services.get(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
    ticket_id = await ticket_site.gateway.db.fetchval("SELECT ticket_id FROM ticket")
    async with signed_in(f"{ticket_site.base}/ops") as browser:
        page = await browser.open("/tickets")
        assert page.unbalanced_tags == []
        assert "A7, asked about 0 times" in page.words
        assert page.link(f"/ops/tickets/{ticket_id}")
        merchants = await browser.open(
            f"/merchants/{(await ticket_site.api.call('GET', '/v1/merchant/me')).data['id']}"
        )
        assert "tickets:write" in merchants.words


async def test_new_product_is_in_the_openapi_document_and_the_metrics(ticket_site: TicketSite) -> None:
    document = document_of(ticket_site.gateway.asgi.litestar)
    assert "tickets:write" in document["components"]["schemas"]["Scope"]["enum"]
    assert "tickets:write" in document["components"]["schemas"]["KeyCreate"]["properties"]["scopes"]["default"]
    assert document["paths"]["/v1/tickets"]["post"]["x-scope"] == "tickets:write"
    neutral = document["paths"]["/v1/cb/{kind}/{token}"]["post"]
    assert "ticket" in neutral["parameters"][0]["schema"]["enum"]
    answered = neutral["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert answered[1] == {"type": "object", "required": ["ResultCode", "ResultDesc"]}
    assert "anyOf" not in str(document["paths"]["/v1/webhooks/mpesa"]["post"]["responses"]["200"])
    value_of = ticket_site.gateway.metrics.registry.get_sample_value
    assert value_of("mpesa_callbacks_total", {"kind": "ticket", "verdict": "accepted", "reason": ""}) is not None
    call = {"env": "sandbox", "operation": "ticket_register", "outcome": "ok", "code": ""}
    assert value_of("mpesa_daraja_calls_total", call) is not None


async def test_new_product_disabled_leaves_no_trace(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, base), shop(gateway, base, is_configured=False) as api:
        assert "tickets:write" not in gateway.scopes.names
        assert (await api.call("POST", "/v1/tickets", {"number": "A7"})).status == 404
        assert (await api.call("POST", "/v1/cb/ticket/x", {})).status == 404
        assert await gateway.db.fetchval("SELECT to_regclass('ticket')") is None
