"""Protects field rules: they accept exactly what the OpenAPI document describes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.http.admin import NAME
from tests.routes import document


@pytest.mark.parametrize(
    "name", ["Duka la Amina", "d", " d ", "Café №1", "دكان", "店", "😀", "\U0001fabf", "\ue000", "n" * 100]
)
def test_name_rule_accepts_every_script(name: str) -> None:
    assert NAME(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a\n", "a\tb", "a\x00", "a\x7f", "a\x85", "\xa0", "a\xadb", "a\u200bb", "a\u202eb", "\u3000", "n" * 101],
)
def test_name_rule_refuses_invisible_and_reversing_characters(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 100 printable characters"):
        NAME(name)


PATTERN: str = document()["components"]["schemas"]["MerchantCreate"]["properties"]["name"]["pattern"]


@given(st.text(max_size=8) | st.text(st.sampled_from(" a\xa0\u200f\u2010\u2028\u3000\ufeff\n"), max_size=4))
def test_name_rule_agrees_with_the_document(name: str) -> None:
    try:
        NAME(name)
    except ValueError:
        assert re.match(PATTERN[:-1] + r"\Z", name) is None
    else:
        assert re.match(PATTERN, name) is not None


def test_text_fields_refuse_nul_and_the_document_states_it() -> None:
    schemas = document()["components"]["schemas"]
    note, confirm = (schemas["Resolution"]["properties"][name] for name in ("note", "confirm"))
    assert (note["pattern"], note["maxLength"], confirm["pattern"]) == (r"^[^\x00]*$", 500, r"^[^\x00]*$")
    (search,) = (
        parameter["schema"]
        for parameter in document()["paths"]["/v1/payments"]["get"]["parameters"]
        if parameter["name"] == "search"
    )
    assert re.match(search["pattern"], "a b\n")
    assert not re.match(search["pattern"], "a\x00")
    assert "pattern" not in schemas["PaymentView"]["properties"]["description"]


def test_document_states_what_a_new_key_needs() -> None:
    create = document()["paths"]["/v1/admin/merchants/{merchant_id}/keys"]["post"]
    assert "CONFLICT: " in create["responses"]["409"]["description"]
    assert document()["components"]["schemas"]["KeyCreate"]["properties"]["scopes"]["minItems"] == 1


def test_document_states_which_credentials_belong_together() -> None:
    fields = document()["components"]["schemas"]["MpesaFields"]
    initiated = [("initiator", "initiator_password"), ("initiator", "security_credential")]
    names = ("initiator", "initiator_password", "security_credential")
    assert fields["if"] == {"properties": {name: {"type": "null"} for name in names}}
    ways = fields["else"]["anyOf"]
    assert [tuple(way["required"]) for way in ways] == initiated
    assert [[name for name, of in way["properties"].items() if of == {"type": "null"}] for way in ways] == [
        ["security_credential"],
        ["initiator_password"],
    ]
    # The same in both envs: fields that a live receiver lacks are listed in `meta.missing` and do not refuse it.
    assert "then" not in fields
    assert set(fields["required"]) == {"env", "consumer_key", "consumer_secret", "passkey", "shortcode"}


def test_document_states_that_list_parameters_may_be_empty() -> None:
    queries = [
        parameter
        for path in document()["paths"].values()
        for operation in path.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query" and parameter["name"] != "challenge"
    ]
    assert len(queries) > 50
    assert [parameter for parameter in queries if parameter.get("allowEmptyValue") is not True] == []
