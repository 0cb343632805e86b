"""The OpenAPI document as generators of clients read it: everything has a name and a type."""

import re
from collections import Counter
from typing import Any

import pytest

from mpesa_gateway.http.components import inside
from tests.routes import document

SCHEMAS: dict[str, dict[str, Any]] = document()["components"]["schemas"]
OPERATIONS: dict[str, dict[str, Any]] = {
    f"{method.upper()} {path}": operation
    for path, item in document()["paths"].items()
    for method, operation in item.items()
}


def test_every_call_has_a_name_of_its_own() -> None:
    names = Counter(operation["operationId"] for operation in OPERATIONS.values())
    assert {name for name, count in names.items() if count > 1 or not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)} == set()
    assert OPERATIONS["POST /v1/payments"]["operationId"] == "create_payment"


@pytest.mark.parametrize("call", OPERATIONS)
def test_every_refusal_has_the_same_type(call: str) -> None:
    for status, answer in OPERATIONS[call]["responses"].items():
        if int(status) >= 400:
            schema = answer["content"]["application/json"]["schema"]
            assert {"$ref": "#/components/schemas/Failure"} in [schema, *schema.get("anyOf", ())], status
        assert "X-Request-ID" in answer["headers"]


def test_a_refusal_says_its_code_as_one_of_the_catalogue() -> None:
    problem = SCHEMAS["Problem"]
    assert problem["properties"]["code"] == {"$ref": "#/components/schemas/ErrorCode"}
    assert "IDEMPOTENCY_MISMATCH" in SCHEMAS["ErrorCode"]["enum"]
    # What is left out of an answer is never null in it.
    assert problem["properties"]["field"] == {"type": "string"}
    assert problem["required"] == ["code", "message"]


@pytest.mark.parametrize(
    "name",
    ["PaymentStatus", "RefundStatus", "DeliveryStatus", "FailureReason", "RefundOutcome", "Environment", "Currency"],
)
def test_words_that_stand_in_several_places_are_one_type(name: str) -> None:
    words = SCHEMAS[name]["enum"]
    reference = {"$ref": f"#/components/schemas/{name}"}
    everything = [*inside(document()["paths"]), *inside(SCHEMAS)]
    assert any(reference.items() <= part.items() for part in everything)
    alike = [part for part in everything if set(part.get("enum", ())) == set(words) and part is not SCHEMAS[name]]
    assert alike == []


def test_a_filter_has_the_type_of_what_it_filters() -> None:
    parameters = {each["name"]: each["schema"] for each in OPERATIONS["GET /v1/payments"]["parameters"]}
    assert parameters["status"] == SCHEMAS["PaymentView"]["properties"]["status"]
    assert [each["format"] for each in parameters["since"]["anyOf"]] == ["date-time", "date"]
    assert {each["type"] for each in parameters["since"]["anyOf"]} == {"string"}


def test_credentials_are_one_kind_of_object() -> None:
    """A generator takes ``anyOf`` beside the fields for several kinds, each without them."""
    fields = SCHEMAS["MpesaFields"]
    assert {"properties", "if", "else"} <= fields.keys()
    assert not {"anyOf", "oneOf", "allOf"} & fields.keys()


def test_no_description_is_written_for_python() -> None:
    texts = [part["description"] for part in inside(document()) if isinstance(part.get("description"), str)]
    assert [text for text in texts if "``" in text or "\n    " in text] == []


def test_every_call_takes_a_request_id() -> None:
    for operation in OPERATIONS.values():
        assert "X-Request-ID" in [each["name"] for each in operation["parameters"]]
