"""The API's description of itself: complete, and served from our own files alone."""

import re

import niquests

from mpesa_gateway.http.auth import scope_of
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
    assert "<script" not in page
