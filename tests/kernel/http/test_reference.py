"""The API's description of itself: complete, and served from our own files alone."""

import html
import json
import re
import shlex
from typing import Any

import niquests

from mpesa_gateway.http.auth import scope_of
from mpesa_gateway.http.html import asset
from mpesa_gateway.http.reference import render_reference
from tests.conftest import Town


async def _get(url: str) -> niquests.Response:
    async with niquests.AsyncSession() as session:
        return await session.get(url)


async def test_the_document_has_each_call_with_its_scope_and_each_list_with_its_filters(town: Town) -> None:
    document = (await _get(f"{town.base}/schema/openapi.json")).json()
    listed = document["paths"]["/v1/payments"]["get"]
    assert listed["x-scope"] == "payments:read"
    names = {parameter["name"] for parameter in listed["parameters"]}
    assert names >= {"limit", "cursor", "count", "status", "since", "until", "search", "min_amount", "phone"}
    status = next(parameter for parameter in listed["parameters"] if parameter["name"] == "status")
    assert "partially_reversed" in status["schema"]["enum"]
    assert document["paths"]["/v1/cb/{kind}/{token}"]["post"]["security"] == []
    scoped = {
        (route.path_format, method.lower())
        for route in town.gateway.asgi.litestar.routes
        for handler in getattr(route, "route_handlers", ())
        if scope_of(handler) is not None
        for method in handler.http_methods - {"OPTIONS"}
    }
    shown = {
        (path, method)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if "x-scope" in operation
    }
    assert shown == scoped


async def test_the_page_shows_every_call_and_fetches_nothing_from_elsewhere(town: Town) -> None:
    answer = await _get(f"{town.base}/schema")
    assert answer.status_code == 200
    assert (answer.headers["content-type"] or "").startswith("text/html")
    page = answer.text or ""
    assert "payments:write" in page
    assert "Idempotency-Key" in page
    assert re.findall(r"(?:src|href)=['\"]?(?:https?:)?//", page) == []
    assert re.findall(r"<script[^>]*>", page) == [f"<script src='{asset('reference.js')}' defer>"]
    script = await _get(f"{town.base}/{asset('reference.js')}")
    assert script.status_code == 200
    assert (script.headers["content-type"] or "").startswith("text/javascript")


async def test_each_call_has_an_example_that_the_gateway_takes(town: Town) -> None:
    """The lines for a shell, with the example of each body: read as the gateway reads them."""
    document = (await _get(f"{town.base}/schema/openapi.json")).json()
    lines = [html.unescape(line) for line in re.findall(r"<pre>(.*?)</pre>", render_reference(document))]
    calls = [(path, method) for path, item in document["paths"].items() for method in item]
    assert len(lines) == len(calls)
    words = [shlex.split(line) for line in lines]
    create = next(line for line in words if line[-1].startswith("{") and "$BASE/v1/payments" in line)
    assert create[:5] == ["curl", "-sS", "-X", "POST", "$BASE/v1/payments"]
    assert "X-API-Key: $KEY" in create
    assert "Idempotency-Key: order-1041" in create
    made = await town.api.call(
        "POST", "/v1/payments", json.loads(create[-1]), headers={"Idempotency-Key": "order-1041"}
    )
    assert made.status == 201, made.body
    bodies = [line for line in words if "-d" in line]
    assert len(bodies) == sum(
        "requestBody" in operation for item in document["paths"].values() for operation in item.values()
    )
    for line in bodies:
        json.loads(line[-1])


def test_what_a_call_refuses_is_named() -> None:
    refused = {"description": "`CONFLICT`: It is not so. `PROVIDER_REJECTED`: M-Pesa said no."}
    usual: dict[str, Any] = {"429": {"description": "`RATE_LIMITED`: Too often."}, "200": {"description": "`OK`"}}
    paths: dict[str, Any] = {
        "/x": {"get": {"responses": {"409": refused} | usual}},
        "/y": {"get": {"responses": usual}},
        "/z": {"get": {"responses": usual}},
    }
    page = render_reference({"info": {"title": "t", "version": "1"}, "paths": paths})
    assert "Also refused with 409 <code>CONFLICT</code>, 409 <code>PROVIDER_REJECTED</code>." in page
    assert page.count("RATE_LIMITED") == 1
    assert "OK" not in page
