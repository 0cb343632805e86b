"""The API's description of itself: complete, and served from our own files alone."""

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import niquests
import pytest

from mpesa_gateway.http.auth import scope_of
from mpesa_gateway.http.html import asset
from mpesa_gateway.http.reference import render_reference
from mpesa_gateway_payments.callbacks import STK_BODY
from tests.conftest import Town
from tests.house.tree import ROOT


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
    assert status["schema"] == {"$ref": "#/components/schemas/PaymentStatus"}
    assert "partially_reversed" in document["components"]["schemas"]["PaymentStatus"]["enum"]
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


async def test_the_page_is_small_and_says_nothing_twice(town: Town) -> None:
    answer = await _get(f"{town.base}/schema")
    assert len(answer.content or b"") < 100_000
    page = answer.text or ""
    create = page[page.index("<article id=post-v1-payments>") :]
    create = create[: create.index("</article>")]
    assert "<caption>Answer 200, 201" in create
    assert create.count("data.receipt") == 1
    assert "<caption>Headers<tr><td>Idempotency-Key<td>string<td>required" in create


async def test_callbacks_are_described_as_they_are_taken(town: Town) -> None:
    document = (await _get(f"{town.base}/schema/openapi.json")).json()
    page = render_reference(document)
    for part in ("Body.stkCallback.CheckoutRequestID", "Body.stkCallback.CallbackMetadata.Item", "MpesaReceiptNumber"):
        assert part in page
    for part in ("Result.OriginatorConversationID", "Result.ResultParameters.ResultParameter", "TransactionStatus"):
        assert part in page
    neutral = document["paths"]["/v1/cb/{kind}/{token}"]["post"]["requestBody"]["content"]["application/json"]
    kinds = neutral["schema"]["anyOf"]
    assert [sorted(kind.get("properties", ())) for kind in kinds] == [["Body"], ["Result"], []]
    assert all(kind["description"].split(".")[0] in page for kind in kinds)


@pytest.mark.parametrize(
    "sample", sorted(Path(ROOT, "tests/samples").glob("stk_callback_*.json")), ids=lambda it: it.stem
)
def test_every_shape_that_was_seen_fits_the_description_of_a_callback(sample: Path) -> None:
    callback = json.loads(sample.read_text(encoding="utf-8"))["Body"]["stkCallback"]
    described = STK_BODY["properties"]["Body"]["properties"]["stkCallback"]
    assert set(callback) <= set(described["properties"])
    assert set(described["required"]) <= set(callback)
    for name in ("ResultCode", "MerchantRequestID"):
        kinds = described["properties"][name].get("type", [])
        assert not kinds or isinstance(callback[name], str | int)


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
