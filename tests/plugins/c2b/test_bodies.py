"""Protects the reading of Safaricom's C2B bodies: every known form, and no invented fact."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from mpesa_gateway.daraja.wire import ContradictoryCallback, InvalidCallback
from mpesa_gateway_c2b.wire import C2bBody, Payer, read_body
from tests.daraja import c2b_body
from tests.plugins.c2b.c2b_site import DIGEST


def read(**changes: Any) -> C2bBody:
    return read_body(json.dumps(c2b_body(**changes)).encode())


@pytest.mark.parametrize(
    ("text", "payer"),
    [
        ("2547 ***** 126", Payer(shown="2547*****126")),
        ("2547*****126", Payer(shown="2547*****126")),
        ("25470****149", Payer(shown="25470****149")),
        ("254708374149", Payer(shown="254708374149")),
        (254708374149, Payer(shown="254708374149")),
        ("0708374149", Payer(shown="254708374149")),
        (DIGEST, Payer(digest=DIGEST)),
        (DIGEST.upper(), Payer(digest=DIGEST)),
        ("ec595053 ***** 134bbb95", Payer()),
        (f"{DIGEST[:28]} ***** {DIGEST[-28:]}", Payer()),
        ("", Payer()),
        (None, Payer()),
        ("JANE", Payer()),
    ],
)
def test_payer_is_recognised_by_its_look(text: Any, payer: Payer) -> None:
    assert read(phone=text).payer == payer


def test_time_is_east_africa_time() -> None:
    assert read(TransTime="20261130101509").paid_at == datetime(2026, 11, 30, 7, 15, 9, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", None, "yesterday", "2026113010150", "20261330101509"])
def test_time_unreadable_is_absent(text: Any) -> None:
    assert read(TransTime=text).paid_at is None


@pytest.mark.parametrize(
    ("text", "cents"), [("5.00", 500), ("10", 1000), (10, 1000), ("5.5", 550), ("0.25", 25), ("1,500.00", 150_000)]
)
def test_amount_is_read_in_cents(text: Any, cents: int) -> None:
    assert read(amount=text).amount_cents == cents


@pytest.mark.parametrize("text", ["", None, "ten", "-5.00", "0", "0.00", "5.005", "NaN", True, "KES 5", "1,50", "1e15"])
def test_amount_unreadable_is_no_confirmation(text: Any) -> None:
    with pytest.raises(InvalidCallback):
        read(amount=text)


@pytest.mark.parametrize("field", ["TransID", "BusinessShortCode"])
@pytest.mark.parametrize("text", ["", None, "no receipt", {}])
def test_receipt_or_shortcode_unreadable_is_no_confirmation(field: str, text: Any) -> None:
    with pytest.raises(InvalidCallback):
        read(**{field: text})


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'"x"', b"{", json.dumps({"Body": c2b_body()}).encode(), b"\xff\xfe"]
)
def test_other_json_is_no_confirmation(body: bytes) -> None:
    with pytest.raises(InvalidCallback):
        read_body(body)


def test_field_repeated_with_another_value_is_a_contradiction() -> None:
    text = json.dumps(c2b_body())
    with pytest.raises(ContradictoryCallback):
        read_body(f'{text[:-1]}, "TransAmount": "5.00"}}'.encode())
    assert read_body(f'{text[:-1]}, "TransAmount": "500"}}'.encode()).amount_cents == 50_000


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ({}, "JANE"),
        ({"FirstName": "", "MiddleName": "", "LastName": ""}, None),
        ({"FirstName": "JANE", "MiddleName": "W", "LastName": "DOE"}, "JANE W DOE"),
        ({"FirstName": None}, None),
    ],
)
def test_names_may_be_empty_or_absent(names: dict[str, Any], name: str | None) -> None:
    assert read(**names).payer_name == name


@pytest.mark.parametrize("kind", ["Pay Bill", "Customer Merchant Payment", "Buy Goods", "Something New"])
def test_transaction_type_is_kept_as_stated(kind: str) -> None:
    assert read(TransactionType=kind).transaction_type == kind


def test_account_number_is_kept_as_typed_and_absent_for_tills() -> None:
    assert read(account=" a 7/x ").account_number == "a 7/x"
    assert read(account=41).account_number == "41"
    assert read(account="").account_number is None
    assert read(account=None).account_number is None
