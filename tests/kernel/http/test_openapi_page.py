"""Protects the OpenAPI document and its page: complete, with valid examples, and no foreign files."""

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import msgspec
import niquests
import pytest

from mpesa_gateway.errors import NEXT_STEPS, Code
from mpesa_gateway.http import openapi
from mpesa_gateway.http.auth import scope_of
from mpesa_gateway.http.openapi import document_of
from mpesa_gateway.http.query import query_types
from mpesa_gateway.http.templating import asset
from mpesa_gateway_c2b.callbacks import BODY
from mpesa_gateway_payments.callbacks import STK_BODY
from tests.conftest import Harness
from tests.house.tree import ROOT
from tests.routes import document, operations, operations_of, whole_gateway


async def _get(url: str) -> niquests.Response:
    async with niquests.AsyncSession() as session:
        return await session.get(url)


async def test_document_has_the_scope_of_each_call_and_the_filters_of_each_list(harness: Harness) -> None:
    document = (await _get(f"{harness.base}/schema/openapi.json")).json()
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
        for route in harness.gateway.asgi.litestar.routes
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


def test_document_has_each_query_parameter_of_each_call() -> None:
    paths, read = document()["paths"], set[tuple[str, str, str]]()
    for one in operations():
        for kind in query_types(one.handler):
            read |= {(one.path, one.method.lower(), field.encode_name) for field in msgspec.structs.fields(kind)}
    listed = {
        (path, method, parameter["name"])
        for path, item in paths.items()
        for method, operation in item.items()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query"
    }
    assert {one for one in read if one[0] in paths and one[1] in paths[one[0]]} - listed == set()
    assert ("/v1/account-numbers/{number}", "put", "shortcode") in read


@pytest.mark.parametrize("path", ["schema", "schema/"])
async def test_openapi_page_loads_only_the_files_of_this_release(harness: Harness, path: str) -> None:
    page = await _get(f"{harness.base}/{path}")
    assert page.status_code == 200
    assert (page.headers["content-type"] or "").startswith("text/html")
    policy = str(page.headers["content-security-policy"])
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'" in policy
    sources = re.findall(r'src="([^"]+)"', page.text or "")
    assert [source.rpartition("/")[2] for source in sources] == ["scalar.js.gz", "openapi_page.js"]
    for source in sources:
        script = await _get(urljoin(f"{harness.base}/{path}", source))
        assert script.status_code == 200
        assert (script.headers["content-type"] or "").startswith("text/javascript")
        assert "immutable" in str(script.headers["cache-control"])
        assert script.headers.get("content-encoding") == ("gzip" if source.endswith(".gz") else None)


async def test_openapi_page_reader_is_the_file_in_its_readme(harness: Harness) -> None:
    page = await _get(f"{harness.base}/schema")
    (source,) = re.findall(r'src="([^"]+scalar.js.gz)"', page.text or "")
    script = (await _get(f"{harness.base}/{source}")).content or b""
    static = ROOT / "mpesa_gateway/http/static"
    assert script == gzip.decompress((static / "scalar.js.gz").read_bytes())
    assert hashlib.sha256(script).hexdigest() in (static / "README.md").read_text(encoding="utf-8")


async def test_static_file_without_media_type_is_not_served(harness: Harness) -> None:
    assert (await _get(f"{harness.base}/{asset('README.md')}")).status_code == 404


async def test_document_callbacks_have_a_schema_for_each_body(harness: Harness) -> None:
    document = (await _get(f"{harness.base}/schema/openapi.json")).json()
    neutral = document["paths"]["/v1/cb/{kind}/{token}"]["post"]["requestBody"]["content"]["application/json"]
    kinds = neutral["schema"]["anyOf"]
    c2b = sorted(BODY["properties"])
    assert [sorted(kind.get("properties", ())) for kind in kinds] == [["Body"], ["Result"], c2b, []]
    text = json.dumps(kinds)
    for name in ("CheckoutRequestID", "MpesaReceiptNumber", "OriginatorConversationID", "TransactionStatus"):
        assert name in text


@pytest.mark.parametrize(
    "sample", sorted(Path(ROOT, "tests/samples").glob("stk_callback_*.json")), ids=lambda it: it.stem
)
def test_document_callback_schema_fits_every_observed_sample(sample: Path) -> None:
    callback = json.loads(sample.read_text(encoding="utf-8"))["Body"]["stkCallback"]
    described = STK_BODY["properties"]["Body"]["properties"]["stkCallback"]
    assert set(callback) <= set(described["properties"])
    assert set(described["required"]) <= set(callback)
    for name in ("ResultCode", "MerchantRequestID"):
        kinds = described["properties"][name].get("type", [])
        assert not kinds or isinstance(callback[name], str | int)


async def test_document_example_of_a_payment_is_accepted(harness: Harness) -> None:
    schemas = (await _get(f"{harness.base}/schema/openapi.json")).json()["components"]["schemas"]
    (body,) = schemas["CreatePayment"]["examples"]
    made = await harness.api.call("POST", "/v1/payments", body, headers={"Idempotency-Key": "order-1041"})
    assert made.status == 201, made.body


def test_document_success_responses_have_an_example_of_their_type() -> None:
    app = whole_gateway().asgi.litestar
    responses: list[tuple[dict[str, Any], Any]] = []
    for each in operations_of(app.state.gateway):
        if not each.is_shown or each.method == "HEAD":
            continue
        operation = document_of(app)["paths"][each.path][each.method.lower()]
        answers = openapi._answers(each.handler)  # pyright: ignore[reportPrivateUsage] - the types of the responses
        responses += [(operation["responses"][str(status)], kind) for status, kind in answers.items()]
    examples = [
        (content["example"], kind)
        for response, kind in responses
        if "example" in (content := response.get("content", {}).get("application/json", {}))
    ]
    assert len(examples) > 50
    for example, kind in examples:
        msgspec.json.decode(msgspec.json.encode(example), type=kind, strict=False)


def test_document_error_examples_state_the_next_step() -> None:
    responses = document()["paths"]["/v1/payments"]["post"]["responses"]
    (example,) = responses["401"]["content"]["application/json"]["examples"].values()
    assert example["value"]["errors"] == [{"code": "AUTH_INVALID_KEY", "message": NEXT_STEPS[Code.AUTH_INVALID_KEY]}]
