"""Protects the OpenAPI document for client generators: everything has a name and a type."""

import ast
import re
from collections import Counter
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.http.openapi import document_of
from mpesa_gateway.http.openapi_schemas import iter_objects
from mpesa_gateway.testing.serving import gateway_values
from tests.house.tree import ROOT
from tests.routes import document

SCHEMAS: dict[str, dict[str, Any]] = document()["components"]["schemas"]
OPERATIONS: dict[str, dict[str, Any]] = {
    f"{method.upper()} {path}": operation
    for path, item in document()["paths"].items()
    for method, operation in item.items()
}


def test_document_calls_have_unique_names() -> None:
    names = Counter(operation["operationId"] for operation in OPERATIONS.values())
    assert {
        name for name, count in names.items() if count > 1 or not re.fullmatch(r"[a-z]+(_[a-z][a-z0-9]*)*", name)
    } == set()
    assert OPERATIONS["POST /v1/payments"]["operationId"] == "create_payment"


@pytest.mark.parametrize("call", OPERATIONS)
def test_document_refusals_have_one_type(call: str) -> None:
    for status, answer in OPERATIONS[call]["responses"].items():
        if int(status) >= 400:
            schema = answer["content"]["application/json"]["schema"]
            assert {"$ref": "#/components/schemas/Failure"} in [schema, *schema.get("anyOf", ())], status
        assert "X-Request-ID" in answer["headers"]


def test_document_refusal_code_is_one_of_the_catalogue() -> None:
    problem = SCHEMAS["Problem"]
    assert problem["properties"]["code"] == {"$ref": "#/components/schemas/ErrorCode"}
    assert "IDEMPOTENCY_MISMATCH" in SCHEMAS["ErrorCode"]["enum"]
    # An omitted field of an answer is never null.
    assert problem["properties"]["field"] == {"type": "string"}
    assert problem["required"] == ["code", "message"]


@pytest.mark.parametrize(
    "name",
    ["PaymentStatus", "RefundStatus", "DeliveryStatus", "FailureReason", "RefundOutcome", "Environment", "Currency"],
)
def test_document_repeated_enums_are_one_type(name: str) -> None:
    words = SCHEMAS[name]["enum"]
    reference = {"$ref": f"#/components/schemas/{name}"}
    everything = [*iter_objects(document()["paths"]), *iter_objects(SCHEMAS)]
    assert any(reference.items() <= part.items() for part in everything)
    alike = [part for part in everything if set(part.get("enum", ())) == set(words) and part is not SCHEMAS[name]]
    assert alike == []


def test_document_filter_has_the_type_of_its_field() -> None:
    parameters = {each["name"]: each["schema"] for each in OPERATIONS["GET /v1/payments"]["parameters"]}
    assert parameters["status"] == SCHEMAS["PaymentView"]["properties"]["status"]
    assert [each["format"] for each in parameters["since"]["anyOf"]] == ["date-time", "date"]
    assert {each["type"] for each in parameters["since"]["anyOf"]} == {"string"}


def test_document_credentials_are_one_object() -> None:
    """For generators, ``anyOf`` beside the fields means several kinds, each without them."""
    fields = SCHEMAS["MpesaFields"]
    assert {"properties", "if", "else"} <= fields.keys()
    assert not {"anyOf", "oneOf", "allOf"} & fields.keys()


def test_document_descriptions_have_no_python_markup() -> None:
    texts = [part["description"] for part in iter_objects(document()) if isinstance(part.get("description"), str)]
    assert [text for text in texts if "``" in text or "\n    " in text] == []


def test_document_calls_accept_a_request_id() -> None:
    for operation in OPERATIONS.values():
        assert "X-Request-ID" in [each["name"] for each in operation["parameters"]]


def test_document_schemas_have_no_name_that_a_generator_constructs() -> None:
    """For a schema X the generator for Go creates NewX, NewXWithDefaults, NullableX and NewNullableX."""
    made = {
        form.format(name) for name in SCHEMAS for form in ("New{}", "New{}WithDefaults", "Nullable{}", "NewNullable{}")
    }
    assert made & SCHEMAS.keys() == set()
    assert [name for name in SCHEMAS if re.match(r"(New|Nullable|Api)[A-Z](?!ey)", name)] == []
    plain = Counter(name.replace("_", "").lower() for name in SCHEMAS)
    assert {name for name, count in plain.items() if count > 1} == set()


def test_document_enum_constants_with_their_type_prefix_are_unique() -> None:
    """With enumClassPrefix, as in docs/clients.md, constants are TYPE_WORD: no two are equal."""
    constants = Counter(
        re.sub(r"[^A-Z0-9]", "_", f"{name}_{word}".upper())
        for name, schema in SCHEMAS.items()
        for word in schema.get("enum", ())
    )
    assert {name for name, count in constants.items() if count > 1} == set()
    assert "enumClassPrefix=true" in (ROOT / "docs/clients.md").read_text(encoding="utf-8")


def test_document_success_is_a_plain_boolean() -> None:
    for part in iter_objects(document()):
        assert "const" not in part, part
    shown = SCHEMAS["Success_PaymentView"]["properties"]["success"]
    assert (shown["type"], SCHEMAS["Failure"]["properties"]["success"]["type"]) == ("boolean", "boolean")


def test_document_has_contact_terms_and_tag_descriptions() -> None:
    info = document()["info"]
    assert info["contact"] == {"name": "The host of this gateway", "url": document()["servers"][0]["url"]}
    assert info["license"] == {"name": "The host's terms", "identifier": "LicenseRef-host-terms"}
    described = {tag["name"]: tag["description"] for tag in document()["tags"]}
    used = {tag for operation in OPERATIONS.values() for tag in operation["tags"]}
    assert used == described.keys()
    assert all(described.values())


def test_document_contact_and_terms_are_the_hosts_settings() -> None:
    said = {
        "contact_url": "https://x/help",
        "contact_email": "help@x",
        "terms_name": "Terms",
        "terms_url": "https://x/t",
    }
    values = gateway_values("postgresql://nowhere", "redis://nowhere") | {"openapi": said}
    info = document_of(Gateway(GatewayConfig.from_values(values)).asgi.litestar)["info"]
    assert (info["contact"]["url"], info["contact"]["email"]) == ("https://x/help", "help@x")
    assert info["license"] == {"name": "Terms", "url": "https://x/t"}


def test_client_programs_of_the_docs_import_generated_names() -> None:
    """`just clients` and `just interop` run them. openapi-python-client creates a module for each call."""
    page = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
    made = re.findall(r"(?:--output-path|--package-name) (\w+)", page)
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(programs) == len(made) == 2
    tags = {tag for operation in OPERATIONS.values() for tag in operation["tags"]}
    calls = {(tag.lower(), each["operationId"]) for each in OPERATIONS.values() for tag in each["tags"]}
    ours = {*SCHEMAS, *(f"{tag}Api" for tag in tags), "CreatePaymentAmount"}
    theirs = {"ApiClient", "ApiException", "AuthenticatedClient", "Configuration"}
    for program, package in zip(programs, made, strict=True):
        imports = [node for node in ast.parse(program).body if isinstance(node, ast.ImportFrom)]
        assert imports
        for node in imports:
            (first, *within) = str(node.module).split(".")
            names = {alias.name for alias in node.names}
            assert first == package
            if within[:1] == ["api"]:
                assert {(within[1], name) for name in names} <= calls
            else:
                assert names <= ours | theirs, names
