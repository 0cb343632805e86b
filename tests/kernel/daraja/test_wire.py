"""Protects the parser of Daraja's messages: every observed shape is read, and no amount passes through a float."""

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mpesa_gateway.clock import EAT
from mpesa_gateway.daraja.wire import (
    ContradictoryCallback,
    DuplicateField,
    Fault,
    InvalidCallback,
    StkCallback,
    decode_text,
    is_equal_json,
    read_amount,
    read_answer,
    read_fault_body,
    read_json,
    read_json_leniently,
    read_json_with_duplicates,
    read_moments,
    read_result,
    read_statement,
    read_stk_callback,
    read_text,
    says_no_transactions,
    to_stored_text,
)
from mpesa_gateway.money import Kes

ITEMS: list[dict[str, Any]] = [
    {"Name": "Amount", "Value": 500},
    {"Name": "MpesaReceiptNumber", "Value": "SKE52PAWR9"},
    {"Name": "Balance"},
    {"Name": "TransactionDate", "Value": 20261123101512},
    {"Name": "PhoneNumber", "Value": 254711000001},
]


def callback(**changes: Any) -> dict[str, Any]:
    """Return a callback as in Safaricom's portal, with these fields changed; None removes a field."""
    fields: dict[str, Any] = {
        "MerchantRequestID": "29115-34620561-1",
        "CheckoutRequestID": "ws_CO_191220191020363925",
        "ResultCode": 0,
        "ResultDesc": "The service request is processed successfully.",
        "CallbackMetadata": {"Item": ITEMS},
    } | changes
    return {"Body": {"stkCallback": {name: value for name, value in fields.items() if value is not None}}}


def read(**changes: Any) -> StkCallback:
    return read_stk_callback(json.dumps(callback(**changes)).encode())


def item(name: str, value: Any) -> list[dict[str, Any]]:
    """Return the usual items, one of them with another value."""
    return [one | {"Value": value} if one["Name"] == name else one for one in ITEMS]


def test_read_stk_callback_paid_push_is_read_whole() -> None:
    assert read() == StkCallback(
        merchant_request_id="29115-34620561-1",
        checkout_request_id="ws_CO_191220191020363925",
        result_code="0",
        result_desc="The service request is processed successfully.",
        amount=Kes(500),
        amount_text="500",
        receipt="SKE52PAWR9",
        phone="254711000001",
        paid_at=datetime(2026, 11, 23, 7, 15, 12, tzinfo=UTC),
    )


def test_read_stk_callback_failed_push_has_no_metadata() -> None:
    found = read(ResultCode=1032, ResultDesc="Request cancelled by user", CallbackMetadata=None)
    assert (found.result_code, found.result_desc) == ("1032", "Request cancelled by user")
    assert (found.amount, found.amount_text, found.receipt, found.phone, found.paid_at) == (None,) * 5


@pytest.mark.parametrize(
    ("code", "text"), [(0, "0"), ("0", "0"), (" 0 ", "0"), (1037, "1037"), ("SFC_IC0003", "SFC_IC0003"), (-1, "-1")]
)
def test_read_stk_callback_result_code_is_number_or_text(code: Any, text: str) -> None:
    assert read(ResultCode=code).result_code == text


@pytest.mark.parametrize("metadata", [None, {}, [], "", 0, {"Item": None}, {"Item": []}, {"Item": "x"}, {"Item": [1]}])
def test_read_stk_callback_success_without_metadata_is_success(metadata: Any) -> None:
    found = read(CallbackMetadata=metadata)
    assert (found.result_code, found.checkout_request_id) == ("0", "ws_CO_191220191020363925")
    assert (found.amount, found.receipt, found.phone, found.paid_at) == (None,) * 4


def elsewhere(amount: Any) -> list[Any]:
    """Return successes with amount and receipt at unusual places."""
    items = [{"Name": "Amount", "Value": amount}, {"Name": "MpesaReceiptNumber", "Value": "SKE52PAWR9"}]
    named = {one["Name"]: one["Value"] for one in items}
    lower = [{key.lower(): value for key, value in one.items()} for one in items]
    metadata: list[Any] = [
        {"Item": lower},
        {"Item": [{"NAME": one["Name"], "VALUE": one["Value"]} for one in items]},
        {"Item": [{"Key": one["Name"], "Value": one["Value"]} for one in items]},
        {"Item": [{"name": one["Name"].lower(), "value": one["Value"]} for one in items]},
        {"Item": [{"Name": "TransAmount", "Value": amount}, items[1]]},
        {"Item": [{"Name": "\uff21mount", "Value": amount}, items[1]]},
        {"Item": named},
        {"item": items},
        {"Items": items},
        {"Item": json.dumps(items)},
        named,
        json.dumps({"Item": items}),
        json.dumps(named),
    ]
    bodies = [callback(CallbackMetadata=one) for one in metadata]
    bodies.append(callback(CallbackMetadata=None, callbackMetadata={"Item": items}))
    bodies.append(callback(CallbackMetadata=None, **named))
    beside = callback(CallbackMetadata=None)
    beside["Body"]["CallbackMetadata"] = {"Item": items}
    return [*bodies, beside]


@pytest.mark.parametrize("at", range(len(elsewhere(0))))
def test_read_stk_callback_amount_at_an_unusual_place_is_stated(at: int) -> None:
    """A missed amount would complete a payment of another amount."""
    for amount, read_as in ((500, Kes(500)), ("500.00", Kes(500)), (5, Kes(5)), ("five", None), ({"KES": 5}, Kes(5))):
        found = read_stk_callback(json.dumps(elsewhere(amount)[at]).encode())
        assert (found.amount, found.receipt) == (read_as, "SKE52PAWR9")
        assert found.amount_text == ("5" if isinstance(amount, dict) else str(amount))


@pytest.mark.parametrize("at", range(len(elsewhere(0))))
def test_read_stk_callback_empty_amount_at_an_unusual_place_is_absent(at: int) -> None:
    for amount in (None, "", " "):
        found = read_stk_callback(json.dumps(elsewhere(amount)[at]).encode())
        assert (found.amount, found.amount_text) == (None, None)


def test_read_stk_callback_two_amounts_at_unusual_places_are_contradictory() -> None:
    for metadata in (
        {"Item": [{"name": "Amount", "value": 5}, {"name": "Amount", "value": 500}]},
        {"amount": 5, "AMOUNT": 500},
        {"Item": [{"Name": "TransAmount", "Value": 5}, {"Name": "OrigAmount", "Value": 500}]},
    ):
        with pytest.raises(ContradictoryCallback, match="amount"):
            read(CallbackMetadata=metadata)
    raw = json.dumps(callback(CallbackMetadata={"amount": 7})).replace('"amount": 7', '"amount": 5, "amount": 500')
    with pytest.raises(ContradictoryCallback, match="amount"):
        read_stk_callback(raw.encode())


def test_read_stk_callback_text_about_an_amount_is_no_amount() -> None:
    found = read(CallbackMetadata=None, ResultDesc="The amount was paid, receipt follows")
    assert (found.amount_text, found.receipt) == (None, None)


@pytest.mark.parametrize(
    "stated", ["SKE52\u200bPAWR9", "SKE52-PAWR9", "SKE52PAWR9 or SKE52PAWR8", ["SKE52PAWR9"], {"Value": 1}, True]
)
def test_read_stk_callback_unreadable_receipt_is_stated(stated: Any) -> None:
    found = read(CallbackMetadata={"Item": [ITEMS[0], {"Name": "MpesaReceiptNumber", "Value": stated}]})
    assert (found.receipt, found.is_receipt_unread) == (None, True)


@pytest.mark.parametrize("stated", ["SKE52PAWR9", " ske52pawr9 ", "\uff33\uff2b\uff2552PAWR9"])
def test_read_stk_callback_receipt_is_read_in_any_width_and_case(stated: str) -> None:
    found = read(CallbackMetadata={"Item": [ITEMS[0], {"Name": "MpesaReceiptNumber", "Value": stated}]})
    assert (found.receipt, found.is_receipt_unread) == ("SKE52PAWR9", False)


@pytest.mark.parametrize("stated", [None, "", " "])
def test_read_stk_callback_empty_receipt_is_not_stated(stated: str | None) -> None:
    found = read(CallbackMetadata={"Item": [ITEMS[0], {"Name": "MpesaReceiptNumber", "Value": stated}]})
    assert (found.receipt, found.is_receipt_unread) == (None, False)


def test_read_stk_callback_single_item_in_place_of_a_list_is_read() -> None:
    found = read(CallbackMetadata={"Item": ITEMS[0]})
    assert (found.amount, found.receipt) == (Kes(500), None)
    assert read(CallbackMetadata={"Item": ITEMS[1]}).receipt == "SKE52PAWR9"


def test_read_stk_callback_items_in_any_order_with_unknown_ones_are_read() -> None:
    strangers: list[Any] = [None, 7, "x", [], {}, {"Name": 7, "Value": 1}, {"Value": 9}, {"Name": "New", "Value": {}}]
    assert read(CallbackMetadata={"Item": [*strangers, *reversed(ITEMS)]}) == read()


@pytest.mark.parametrize("name", ["Amount", "MpesaReceiptNumber", "PhoneNumber"])
def test_read_stk_callback_item_twice_with_different_values_is_contradictory(name: str) -> None:
    for value in (1, "SKE52PAWR1", "x"):
        for items in ([*ITEMS, {"Name": name, "Value": value}], [{"Name": name.upper(), "Value": value}, *ITEMS]):
            with pytest.raises(ContradictoryCallback, match=f"(?i){name}"):
                read(CallbackMetadata={"Item": items})


def test_read_stk_callback_item_twice_with_one_value_is_read() -> None:
    again = [{"Name": "Amount", "Value": "500.00"}, {"Name": "PhoneNumber", "Value": "254711000001"}]
    assert read(CallbackMetadata={"Item": [*ITEMS, *ITEMS, *again]}) == read()


@pytest.mark.parametrize("missing", ["MerchantRequestID", "CheckoutRequestID"])
def test_read_stk_callback_missing_ids_are_none(missing: str) -> None:
    changes: dict[str, Any] = {missing: None}
    found = read(**changes)
    ids = {"MerchantRequestID": found.merchant_request_id, "CheckoutRequestID": found.checkout_request_id}
    assert ids.pop(missing) is None
    assert all(ids.values())
    odds: list[Any] = ["", "  ", {}, [], True]
    for odd in odds:
        assert read(CheckoutRequestID=odd).checkout_request_id is None
    assert read(MerchantRequestID=29115).merchant_request_id == "29115"


@pytest.mark.parametrize(
    ("written", "amount", "text"),
    [
        ("500", 500, "500"),
        ("500.0", 500, "500.0"),
        ("500.00", 500, "500.00"),
        ('"500"', 500, "500"),
        ('" 500.00 "', 500, "500.00"),
        ("1", 1, "1"),
        ("250000.00", 250_000, "250000.00"),
        ("0", 0, "0"),
        ("500.5", None, "500.5"),
        ("500.10", None, "500.10"),
        ("0.1", None, "0.1"),
        ("499.99999999999999999", None, "499.99999999999999999"),
        ("500.00000000000000001", None, "500.00000000000000001"),
        ("-500", None, "-500"),
        ("5e2", 500, "5e2"),
        ("5E+2", 500, "5E+2"),
        ('"1e2"', 100, "1e2"),
        ("0.5e3", 500, "0.5e3"),
        ("500.0000000000", 500, "500.0000000000"),
        ("5e-1", None, "5e-1"),
        ("1e30", None, "1e30"),
        ("1e999", None, "1e999"),
        ("NaN", None, "NaN"),
        ("Infinity", None, "Infinity"),
        ("-Infinity", None, "-Infinity"),
        ('"500 "', 500, "500"),
        ('"1_000"', None, "1_000"),
        ('"\u0665\u0660\u0660"', None, "\u0665\u0660\u0660"),
        ('"five"', None, "five"),
        ('"5,000"', None, "5,000"),
        ('"NaN"', None, "NaN"),
        ("null", None, None),
        ("true", None, "True"),
        ("[500]", None, "[500]"),
        ('{"Value": 500}', None, "{'Value': 500}"),
        ("9" * 400, None, "a number of too many digits"),
        ('""', None, None),
        ('"call 0711 000 001"', None, "call 07****001"),
        ('"Bearer x9Qk3sWWhmdVRlyh0zh8gZDTkub2\\u001b[2J\\n"', None, "Bearer **** [2J"),
        ('["254711000001"]', None, "['2547****001']"),
        ('{"token": "x9Qk3sWWhmd"}', None, "{'token': '****'}"),
        ('"' + "5" * 30 + '.5"', None, "5" * 30 + ".5"),
        ('"' + "x" * 400 + '"', None, "x" * 64),
    ],
)
def test_read_stk_callback_amount_is_read_digit_for_digit(written: str, amount: int | None, text: str | None) -> None:
    body = json.dumps(callback(CallbackMetadata={"Item": item("Amount", "@")})).replace('"@"', written)
    found = read_stk_callback(body.encode())
    assert (found.amount, found.amount_text) == (amount, text)
    assert found.amount is None or type(found.amount) is Kes
    assert (found.receipt, found.result_code) == ("SKE52PAWR9", "0")


@pytest.mark.parametrize(
    ("written", "receipt"),
    [
        ("SKE52PAWR9", "SKE52PAWR9"),
        (" ske52pawr9 ", "SKE52PAWR9"),
        ("0", None),
        ("SKE52 PAWR9", None),
        ("SKE52PAWR9\n", "SKE52PAWR9"),
        ("SKE52PAWR9'; --", None),
        ("X" * 21, None),
        ("", None),
        (None, None),
        (True, None),
        (1234567890, "1234567890"),
    ],
)
def test_read_stk_callback_receipt_is_capital_letters_and_digits_or_none(written: Any, receipt: str | None) -> None:
    assert read(CallbackMetadata={"Item": item("MpesaReceiptNumber", written)}).receipt == receipt


@pytest.mark.parametrize(
    ("written", "phone"),
    [
        (254711000001, "254711000001"),
        ("254711000001", "254711000001"),
        ("254711000001.0", "254711000001"),
        ("2.54711000001e11", "254711000001"),
        ("0711000001", "0711000001"),
        ("2547****0001", "2547****0001"),
        (None, None),
    ],
)
def test_read_stk_callback_phone_is_number_text_or_masked(written: Any, phone: str | None) -> None:
    assert read(CallbackMetadata={"Item": item("PhoneNumber", written)}).phone == phone


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        (20261123101512, datetime(2026, 11, 23, 7, 15, 12, tzinfo=UTC)),
        ("20261123101512", datetime(2026, 11, 23, 7, 15, 12, tzinfo=UTC)),
        ("20261123101512.0", datetime(2026, 11, 23, 7, 15, 12, tzinfo=UTC)),
        (20261124010000, datetime(2026, 11, 23, 22, 0, tzinfo=UTC)),
        (20261331101512, None),
        (2026112310151, None),
        ("2026-11-23 10:15:12", datetime(2026, 11, 23, 7, 15, 12, tzinfo=UTC)),
        ("2026-11-23T10:15:12Z", None),
        ("00010101000000", None),
        ("99999999999999", None),
        (20, None),
        ([], None),
        ("\u0662\u0660\u0662\u0666\u0661\u0661\u0662\u0663\u0661\u0660\u0661\u0665\u0661\u0662", None),
        (None, None),
    ],
)
def test_read_stk_callback_date_is_east_africa_time_or_none(written: Any, moment: datetime | None) -> None:
    assert read(CallbackMetadata={"Item": item("TransactionDate", written)}).paid_at == moment


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"Body"',
        b"\xff\xfe",
        b"<html><body>busy</body></html>",
        b"Body=stkCallback",
        b"{}",
        b'{"Body": null}',
        b'{"Body": []}',
        b'{"Body": "stkCallback"}',
        b'{"Body": {}}',
        b'{"Body": {"stkCallback": null}}',
        b'{"Body": {"stkCallback": []}}',
        b'{"Body": {"stkCallback": {}}}',
        b'{"Body": {"stkCallback": {"ResultCode": null}}}',
        b'{"Body": {"stkCallback": {"ResultCode": ""}}}',
        b'{"Body": {"stkCallback": {"ResultCode": true}}}',
        b'{"Body": {"stkCallback": {"ResultCode": {}}}}',
        b'{"Body": {"stkCallback": {"ResultCode": NaN}}}',
        b'{"body": {"stkCallback": {"ResultCode": 0}}}',
        b'{"Result": {"ResultCode": 0}}',
        b'{"Body": ' + b"[" * 60_000,
        b'{"Body": ' * 60_000,
    ],
    ids=lambda body: body[:44].decode("latin-1"),
)
def test_read_stk_callback_anything_else_is_no_callback(body: bytes) -> None:
    with pytest.raises(InvalidCallback) as refused:
        read_stk_callback(body)
    assert str(refused.value)


def test_read_stk_callback_refusal_names_what_is_missing() -> None:
    for body, missing in (
        (b'{"Body": null}', "stkCallback"),
        (b'{"Body": {"stkCallback": {}}}', "ResultCode"),
        (b"{", "JSON"),
    ):
        with pytest.raises(InvalidCallback, match=missing):
            read_stk_callback(body)


def test_read_stk_callback_nul_and_long_texts_are_cut() -> None:
    found = read(ResultDesc="a\x00b" + "x" * 9000, MerchantRequestID="m\x00")
    assert found.result_desc == "ab" + "x" * 498
    assert found.merchant_request_id == "m"


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from(["0", 0, "500.00", 500.5, 20261123101512, "SKE52PAWR9"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["Name", "Value", "Item", "stkCallback", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a JSON value."""
    found = [path]
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        pairs = list(cast("dict[str, Any]", content).items())
    elif isinstance(content, list):
        pairs = list(enumerate(cast("Sequence[Any]", content)))
    for name, inner in pairs:
        found += places(inner, (*path, name))
    return found


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a JSON value with another one at this path."""
    if not path:
        return value
    copy: Any = content.copy()
    copy[path[0]] = put(content[path[0]], path[1:], value)
    return copy


def is_read_or_refused(body: bytes) -> None:
    """Read the body; any error except NotACallback fails the test."""
    try:
        found = read_stk_callback(body)
    except InvalidCallback:
        return
    assert type(found) is StkCallback
    assert found.result_code
    assert found.amount is None or type(found.amount) is Kes
    for text in (found.amount_text, found.receipt, found.phone, found.merchant_request_id, found.checkout_request_id):
        assert text is None or (type(text) is str and text and "\x00" not in text)
    assert found.paid_at is None or found.paid_at.tzinfo is UTC


@given(st.sampled_from(places(callback())), ODD, st.sampled_from(places(callback())), ODD)
def test_read_stk_callback_any_mutated_callback_is_read_or_refused(
    first: tuple[Any, ...], one: Any, second: tuple[Any, ...], other: Any
) -> None:
    content = put(callback(), first, one)
    if second in places(content):
        content = put(content, second, other)
    is_read_or_refused(json.dumps(content).encode())


@given(st.integers(0, 500), st.binary(max_size=4), st.booleans())
def test_read_stk_callback_any_damaged_callback_is_read_or_refused(at: int, bytes_put: bytes, is_cut: bool) -> None:
    body = json.dumps(callback()).encode()
    is_read_or_refused(body[:at] + bytes_put + (b"" if is_cut else body[at + len(bytes_put) :]))


@given(st.binary(max_size=200))
def test_read_stk_callback_any_bytes_are_read_or_refused(body: bytes) -> None:
    is_read_or_refused(body)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=0, max_value=999_999_999))
def test_read_stk_callback_any_amount_keeps_its_digits(amount: Any) -> None:
    body = json.dumps(callback(CallbackMetadata={"Item": item("Amount", "@")})).replace('"@"', f"{amount:f}")
    found = read_stk_callback(body.encode())
    assert found.amount_text == f"{amount:f}"
    assert (found.amount is None) == (amount != int(amount))
    assert found.amount is None or int(found.amount) == amount


def test_read_json_returns_no_floats() -> None:
    def has_float(content: Any) -> bool:
        inner: list[Any] = []
        if isinstance(content, dict):
            inner = list(cast("dict[str, Any]", content).values())
        elif isinstance(content, list):
            inner = list(cast("Sequence[Any]", content))
        return isinstance(content, float) or any(has_float(one) for one in inner)

    content = read_json(b'{"a": 1.10, "b": [2.0, {"c": 3e2}], "d": -0.0, "e": 4}')
    assert not has_float(content)
    assert content == {"a": "1.10", "b": ["2.0", {"c": "3e2"}], "d": "-0.0", "e": 4}
    for body in (b"", b"{", b"\xff", b"NaN", b"[" * 60_000, b"<html>"):
        with pytest.raises(ValueError, match="not JSON"):
            read_json(body)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            {"requestId": "1", "errorCode": "404.001.03", "errorMessage": "Invalid Access Token"},
            ("404.001.03", "Invalid Access Token"),
        ),
        ({"errorCode": 401, "errorMessage": ""}, ("401", None)),
        ({"errorcode": "429.001.01", "ErrorMessage": "Slow down"}, ("429.001.01", "Slow down")),
        ({"fault": "Spike arrest"}, (None, "Spike arrest")),
        ({"Fault": {"FaultString": "Quota", "detail": "x"}}, (None, "Quota")),
        ({"errorCode": None, "errorMessage": ["x"]}, (None, None)),
        ({"ResponseCode": "0"}, (None, None)),
        ({}, (None, None)),
        ([], (None, None)),
        ("errorCode", (None, None)),
        (None, (None, None)),
    ],
)
def test_read_fault_body_has_a_code_and_a_message_or_neither(
    content: Any, fault: tuple[str | None, str | None]
) -> None:
    assert read_fault_body(content) == Fault(code=fault[0], message=fault[1])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"a": " x "}, "x"),
        ({"a": 0}, "0"),
        ({"a": True}, None),
        ({"a": {}}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_read_text_field_is_text_or_none(content: Any, text: str | None) -> None:
    assert read_text(content, "a") == text


READERS: list[Callable[[Any], Any]] = [read_fault_body, lambda content: read_text(content, "Name")]


@given(ODD, st.sampled_from(READERS))
def test_fault_readers_accept_any_json(content: Any, reader: Callable[[Any], Any]) -> None:
    reader(content)


PAID = (
    b'{"Body": {"stkCallback": {"CheckoutRequestID": "ws_CO_1", "ResultCode": 0, "ResultDesc": "%s", '
    b'"CallbackMetadata": {"Item": [{"Name": "Amount", "Value": 500}, {"Name": "Who", "Value": "%s"}]}}}}'
)

NOT_STRICT = [
    PAID % (b"Caf\xe9 pay\xe9", b"x"),
    PAID % (b"Caf\xc3\xa9 and \xe9", b"x"),
    PAID % (b"raw\ttab", b"line\nbreak"),
    PAID % (b"\x01\x1f\x7f", b"x"),
    PAID % (b"nul\x00", b"x"),
    PAID % (b"\\ud800", b"\\udc00\\ud800"),
    PAID % (b"\xed\xa0\x80", b"x"),
    PAID % (b"\xff\xfe\xfa", b"\x80\x81"),
    b"\xef\xbb\xbf" + PAID % (b"ok", b"x"),
    (PAID % (b"ok", b"x")).decode().encode("utf-16"),
    (PAID % (b"ok", b"x")).decode().encode("utf-16-le"),
    (PAID % (b"ok", b"x")).decode().encode("utf-32"),
    b" \r\n\t" + PAID % (b"ok", b"x") + b"\r\n\r\n",
    PAID % (b"ok", b"x") + b"\x00\x00",
    PAID % (b"ok", b"x") + b"garbage } <!-- -->",
    PAID % (b"ok", b"x") + PAID % (b"again", b"x"),
]


@pytest.mark.parametrize("body", NOT_STRICT)
def test_read_stk_callback_accepts_what_strict_json_forbids(body: bytes) -> None:
    found = read_stk_callback(body)
    assert (found.checkout_request_id, found.result_code, found.amount) == ("ws_CO_1", "0", 500)
    assert found.result_desc.isprintable()
    found.result_desc.encode()
    decode_text(body).encode()
    assert "\x00" not in decode_text(body)
    assert "ws_CO_1" in decode_text(body), decode_text(body)


@given(st.sampled_from(NOT_STRICT), st.integers(0, 400), st.binary(max_size=3))
def test_read_json_leniently_any_bytes_are_read_or_refused(body: bytes, at: int, put_in: bytes) -> None:
    changed = body[:at] + put_in + body[at:]
    decode_text(changed).encode()
    is_read_or_refused(changed)


@given(ODD)
def test_read_json_leniently_agrees_with_strict_json(content: Any) -> None:
    body = msgspec.json.encode(content)
    assert read_json_leniently(body) == read_json_leniently(b"\xef\xbb\xbf" + body) == read_json(body)


@pytest.mark.parametrize(
    "body", [b"", b" ", b"\x00", b"<html>", b"[" * 60_000, b"\xff\xfe", b"nonsense", b"{", b"\xef\xbb\xbf"]
)
def test_read_json_leniently_refuses_what_is_no_json(body: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        read_json_leniently(body)


ONE, TWO = {"Key": "Amount", "Value": 5e2}, {"Key": "TransactionStatus", "Value": "Completed"}


@pytest.mark.parametrize(
    "parameters",
    [
        {"ResultParameter": [ONE, TWO]},
        [ONE, TWO],
        [{"ResultParameter": [ONE, TWO]}],
        [{"ResultParameter": ONE}, {"ResultParameter": TWO}],
        {"ResultParameter": [[ONE], [TWO]]},
        {"ResultParameter": {"ResultParameter": [ONE, TWO]}},
        [[ONE, TWO], None, "x", 5],
        {"ResultParameter": [ONE | {"Key": " Amount "}, TWO]},
    ],
)
def test_read_result_parameters_at_any_place_are_read(parameters: Any) -> None:
    content = {"Result": {"ResultType": 0, "ResultCode": "0.0", "ResultParameters": parameters}}
    found = read_result(json.dumps(content).encode())
    assert (found.result_code, found.first("Amount"), found.first("TransactionStatus")) == ("0", "500.0", "Completed")
    assert read_amount(found.first("Amount")) == 500


@pytest.mark.parametrize(("kind", "is_final"), [(0, True), (1, False), ("1", False), (1.0, False), ("01", False)])
def test_read_result_type_is_compared_as_a_number(kind: Any, is_final: bool) -> None:
    found = read_result(json.dumps({"Result": {"ResultType": kind, "ResultCode": 0}}).encode())
    assert found.is_final == is_final


@pytest.mark.parametrize(
    "text",
    [
        "20261129143005",
        "20261129143005.0",
        "2026-11-29T14:30:05",
        "2026-11-29 14:30:05",
        "2026-11-29 14:30:05 EAT",
        "29.11.2026 14:30:05",
        "29-11-2026 14:30:05",
        "29/11/2026 14:30:05",
        "29/11/2026T14:30:05",
    ],
)
def test_read_moments_any_notation_is_the_same_time(text: str) -> None:
    assert read_moments(text) == (datetime(2026, 11, 29, 11, 30, 5, tzinfo=UTC),)


@pytest.mark.parametrize(
    "text",
    [
        "1596611580",
        "1596611580000",
        "20261129",
        "202611291430",
        "00010101000000",
        "0001-01-01T00:00:00+03:00",
        "11/29/2026 14:30",
        "32.11.2026 14:30:05",
        "29.11.26 14:30:05",
        "",
        "soon",
        "9" * 40,
    ],
)
def test_read_moments_of_no_known_notation_is_none(text: str) -> None:
    assert read_moments(text) == ()


def test_read_stk_callback_first_stated_value_of_a_name_counts_in_any_case() -> None:
    items = [
        {"Name": "Amount"},
        {"Name": "Amount", "Value": ""},
        {"Name": "AMOUNT ", "Value": 5},
        {"Name": "Amount", "Value": "5.0"},
    ]
    found = read(CallbackMetadata={"Item": [*items, {"Name": "mpesaReceiptNumber", "Value": "SKE52PAWR9"}]})
    assert (found.amount, found.amount_text, found.receipt) == (5, "5", "SKE52PAWR9")


def test_read_result_parameter_is_known_in_any_case_and_with_spaces() -> None:
    says = [{"Key": "amount", "Value": "5"}, {"Key": "Receipt No", "Value": "SKE52PAWR9"}, {"Key": "More", "Value": 1}]
    found = read_result(json.dumps({"Result": {"ResultCode": 0, "ResultParameters": says}}).encode())
    assert found.parameters == {"Amount": ("5",), "ReceiptNo": ("SKE52PAWR9",), "More": ("1",)}


@pytest.mark.parametrize("written", [{"Transaction": "@"}, {"a": {"b": ["@"]}}, "text", ["text"]])
def test_read_statement_rows_are_found_in_objects_and_in_json_text(written: Any) -> None:
    row = {"transactionId": "TKN4A1B2C3", "trxDate": "2026-11-23T13:15:12Z", "amount": "1"}
    text = json.dumps(written).replace('"@"', json.dumps([row]))
    text = text.replace('"text"', json.dumps(json.dumps([[row, {}]])))
    page = read_statement(read_json_leniently(f'{{"Response": {text}}}'.encode()))
    assert [line.receipt for line in page.lines] == ["TKN4A1B2C3"]
    assert page.malformed == (1 if "text" in str(written) else 0)


@pytest.mark.parametrize("spell", [str.upper, str.lower, str.title])
def test_read_statement_field_is_known_in_any_case(spell: Callable[[str], str]) -> None:
    row = {
        "transactionId": "TKN4A1B2C3",
        "trxDate": "2026-11-23 10:15:12",
        "msisdn": "254711000001",
        "transactiontype": "c2b-pay-bill-debit",
        "billreference": "A1",
        "amount": 1.5e2,
        "organizationname": "SHOP",
    }
    plain, spelt = (
        read_statement(read_json_leniently(json.dumps({"Response": [[one]]}).encode()))
        for one in (row, {spell(name): value for name, value in row.items()})
    )
    assert (spelt.lines, spelt.malformed) == (plain.lines, 0)
    assert (plain.lines[0].amount, plain.lines[0].reference) == (150, "A1")


def test_read_statement_row_with_a_field_in_two_cases_is_malformed() -> None:
    row = {"transactionId": "TKN4A1B2C3", "trxDate": "2026-11-23 10:15:12", "amount": "1", "Amount": "2"}
    page = read_statement({"Response": [[row, row | {"Amount": "1"}]]})
    assert (page.lines, page.malformed) == ((), 2)


@pytest.mark.parametrize("written", ["2026-11-23 10:15:12", "23.11.2026 10:15:12", "2026-11-23T10:15:12+03:00"])
def test_read_stk_callback_transaction_date_with_separators_is_read(written: str) -> None:
    found = read(CallbackMetadata={"Item": [{"Name": "TransactionDate", "Value": written}]})
    assert found.paid_at == datetime(2026, 11, 23, 7, 15, 12, tzinfo=UTC)


def test_read_statement_texts_of_a_row_are_masked() -> None:
    row = {"transactionId": "TKN4A1B2C3", "trxDate": "2026-11-23T13:15:12Z", "amount": "of 0711000001"}
    (line,) = read_statement(
        {"Response": [row | {"transactiontype": "by 0711000001\x1b", "organizationname": "0711000001"}]}
    ).lines
    assert (line.amount_text, line.kind, line.organisation) == ("of 07****001", "by 07****001", "07****001")


def test_read_statement_takes_linear_time_and_any_depth() -> None:
    row: Any = {"transactionId": "TKN4A1B2C3", "trxDate": "2026-11-23T13:15:12Z", "amount": "1"}
    assert read_statement({"Response": [[5] * 300_000]}).malformed == 300_000
    deep = row
    for _ in range(10_000):
        deep = [deep]
    assert len(read_statement({"Response": deep}).lines) == 1


def test_read_statement_unreadable_row_is_counted_and_skipped() -> None:
    row = {"transactionId": "TKN4A1B2C3", "trxDate": "2026-11-23T13:15:12Z", "amount": "1e2", "msisdn": 254711000001.0}
    body = json.dumps({"Response": [[row, {}, 5, [row | {"transactionId": "?"}], row | {"amount": None}]]}).encode()
    page = read_statement(read_json_leniently(body))
    assert (page.rows, page.malformed) == (5, 4)
    (line,) = page.lines
    assert (line.amount, line.phone) == (100, "254711000001")


ROW = {
    "transactionId": "TKN4A1B2C3",
    "trxDate": "2026-11-23 13:15:12",
    "msisdn": "254711000001",
    "transactiontype": "c2b-pay-bill-debit",
    "billreference": "table 4",
    "amount": "500",
}


def lines_of(*rows: Any) -> Any:
    """Return the lines of a page of these rows."""
    return read_statement({"Response": [list(rows)]}).lines


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({"amount": "5"}, "amount"),
        ({"amount": "KES 500"}, "amount"),
        ({"billreference": "table 5"}, "reference"),
        ({"msisdn": "254711000002"}, "phone"),
        ({"msisdn": "2547****001"}, "phone"),
        ({"transactiontype": "Pay Bill Reversal"}, "kind"),
        ({"trxDate": "2026-11-23 14:15:12"}, "moments"),
    ],
)
def test_read_statement_field_that_rows_of_one_receipt_state_differently_is_absent(change: Any, lost: str) -> None:
    whole = lines_of(ROW)[0]
    for rows in ((ROW, ROW | change), (ROW | change, ROW), (ROW, ROW | change, ROW)):
        (line,) = lines_of(*rows)
        for name in ("moments", "amount", "phone", "reference", "kind"):
            assert getattr(line, name) == (getattr(whole, name) if name != lost else () if name == "moments" else None)
        assert (line.amount_text == "500") == (lost != "amount")


@pytest.mark.parametrize(
    "change", [{"amount": 500.0}, {"billreference": " TABLE  4"}, {"msisdn": ""}, {"trxDate": ROW["trxDate"] + "Z"}]
)
def test_read_statement_rows_of_one_receipt_that_agree_are_one_line(change: Any) -> None:
    whole = lines_of(ROW)[0]
    for rows in ((ROW, ROW | change), (ROW | change, ROW)):
        (line,) = lines_of(*[{name: str(value) for name, value in one.items()} for one in rows])
        assert (line.amount, line.phone, line.moments) == (whole.amount, whole.phone, whole.moments)
        assert line.reference is not None
        assert line.reference.split()[-1] == "4"


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("23-11-2026 01:15:12 PM", 13),
        ("23.11.2026 1:15:12pm", 13),
        ("2026-11-23 01:15:12 p.m.", 13),
        ("23/11/2026 01:15:12 AM", 1),
        ("23/11/2026 12:15:12 AM", 0),
        ("23/11/2026 12:15:12 PM", 12),
        ("23/11/2026 13:15:12 PM", None),
        ("23/11/2026 00:15:12 AM", None),
    ],
)
def test_read_moments_with_am_or_pm_is_read(text: str, hour: int | None) -> None:
    expected = () if hour is None else (datetime(2026, 11, 23, hour, 15, 12, tzinfo=EAT).astimezone(UTC),)
    assert read_moments(text) == expected


NO_TRANSACTIONS = [
    "No transactions",
    "Nothing could be fetched: this shortcode has not got any transactions.",
    "There are no transactions for the shortcode 174379",
    "The shortcode does not have any transactions",
    "shortcode doesn\u2019t have transactions",
    "Shortcode has zero transactions",
    "Transactions not found",
    "transactions could not be found",
    "Could not find any transactions",
    "none found",
    "No records",
    "This shortcode is without transactions",
    "did not get any transactions",
    "Transactions: none",
    "There isn't a single transaction for the shortcode",
    "Error: no transactions",
    "Error Occurred - NO TRANSACTIONS FOUND",
    "Nothing for this shortcode",
    "NoTransactionsFound",
    "no trx found",
    "No txns",
    "No results found for the shortcode",
    "ShortCode 600000 has had no activity",
    "Not a single payment was received",
    "Failed: no transactions for shortcode",
    "There are no transactions for this shortcode. Please try again later",
    "This shortcode has never transacted",
]
NOT_SAID = [
    "Internal Server Error",
    "The transaction could not be processed",
    "Could not fetch transactions",
    "cannot retrieve transactions for shortcode",
    "No response from transaction server",
    "Service is under maintenance",
    "Transactions are unavailable",
    "Not all transactions could be read",
    "No access to transactions",
    "The shortcode is not registered for pull transactions",
    "unable to find transactions",
    "Failed to fetch transactions",
    "No result from the server",
    "System is busy. Try again later",
    "No activity: service unavailable",
    "null",
    "",
]


def test_says_no_transactions_in_any_words_and_never_for_an_error() -> None:
    assert [text for text in NO_TRANSACTIONS if not says_no_transactions(text)] == []
    assert [text for text in NOT_SAID if says_no_transactions(text)] == []


READ_AMOUNTS = {
    "1000": 1000,
    " 1000 ": 1000,
    "\u00a01000\u00a0": 1000,
    "1000.0": 1000,
    "1000.00": 1000,
    "1e3": 1000,
    "1E+3": 1000,
    "+1000": 1000,
    "01000": 1000,
    "1,000.00": 1000,
    "1,000.0": 1000,
    "250,000.00": 250_000,
    "1,250,000": 1_250_000,
}


@pytest.mark.parametrize(("text", "amount"), READ_AMOUNTS.items())
def test_read_amount_one_number_in_any_notation_is_read(text: str, amount: int) -> None:
    assert read_amount(text) == amount
    assert read(CallbackMetadata={"Item": item("Amount", text)}).amount == amount


@pytest.mark.parametrize(
    "text",
    [
        *("1 000", "1\u00a0000", "1'000", "1_000", "1,000", "1000,00", "1.000,00", "1,00.00", "10,00.00", "1,0000.00"),
        *(
            "1000,000.00",
            "0,100.00",
            ",100.00",
            "1,000.",
            "1,000.000",
            "1,000.0e1",
            "-1,000.00",
            "1,000.50",
            "1.000.00",
        ),
        *("KES 1000", "KES1000", "Ksh1,000.00", "1000/=", "1000 KES", "$1000", "1000.00 Cr", "~1000", "1000?", "0x3E8"),
        *("\u0661\u0660\u0660\u0660", "\uff11\uff10\uff10\uff10", "1000\u202e", "\u200b1000", "one thousand"),
        *("NaN", "Infinity", "-Infinity", "1e999", "1e40", "", " ", "1000.001", "1000 1000"),
    ],
)
def test_read_amount_anything_else_is_stated_and_not_read(text: str) -> None:
    assert read_amount(text) is None
    found = read(CallbackMetadata={"Item": item("Amount", text)})
    assert found.amount is None
    assert (found.amount_text is None) == (not text.strip())


@given(st.integers(1, 10**11), st.sampled_from(["{0}", "{0}.0", "{0}.00", "{0:,}.00", "{0:,}.0", "{0}e0", " {0}\t"]))
def test_read_amount_any_notation_is_its_number(number: int, notation: str) -> None:
    assert read_amount(notation.format(number)) == number


@given(st.text("0123456789,. eE+-KSh_'", max_size=14))
def test_read_amount_is_the_number_that_its_digits_state(text: str) -> None:
    """Property: an amount has the digits of its text, and no separator but a comma between thousands."""
    found = read_amount(text)
    if found is None:
        return
    plain = text.strip().replace(",", "")
    assert Decimal(plain) == found
    assert re.fullmatch("[0-9.eE+-]+", plain)
    if "," in text:
        assert f"{found:,}" == text.strip().partition(".")[0]


GOOD = json.dumps(callback())
"""A callback whose fields are doubled below."""


def doubled(name: str, second: str, *, before: bool = False) -> bytes:
    """Return the callback with a second field of this name."""
    at = GOOD.index(f'"{name}":')
    if before:
        return f'{GOOD[:at]}"{name}": {second}, {GOOD[at:]}'.encode()
    value = json.JSONDecoder().raw_decode(GOOD, GOOD.index(":", at) + 2)[1]
    return f'{GOOD[:value]}, "{name}": {second}{GOOD[value:]}'.encode()


FIELDS = ["Body", "stkCallback", "ResultCode", "CheckoutRequestID", "MerchantRequestID", "CallbackMetadata", "Item"]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("second", ["1032", '"x"', "null", "{}", "[]", "true"])
@pytest.mark.parametrize("before", [True, False])
def test_read_stk_callback_field_twice_with_different_values_is_no_callback(
    name: str, second: str, *, before: bool
) -> None:
    raw = doubled(name, second, before=before)
    with pytest.raises(InvalidCallback):
        read_stk_callback(raw)
    # Escaped, with spaces, or in another encoding, the name is the same.
    escaped = raw.replace(f'"{name}"'.encode(), f'"\\u{ord(name[0]):04x}{name[1:]}"'.encode(), 1)
    for other in (escaped, raw.replace(b'":', b'" \n:'), raw.decode().encode("utf-16"), b"\xef\xbb\xbf" + raw):
        with pytest.raises(InvalidCallback):
            read_stk_callback(other)


@pytest.mark.parametrize(("old", "new"), [('"Value": 500', '"Value": 1'), ('"Name": "Amount"', '"Name": "Balance"')])
def test_read_stk_callback_item_that_contradicts_itself_is_no_callback(old: str, new: str) -> None:
    for raw in (GOOD.replace(old, f"{old}, {new}"), GOOD.replace(old, f"{new}, {old}")):
        with pytest.raises(ContradictoryCallback):
            read_stk_callback(raw.encode())


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("ResultCode", "0"),
        ("ResultCode", '"0"'),
        ("ResultCode", "0.0"),
        ("ResultCode", '" 00 "'),
        ("CheckoutRequestID", '"ws_CO_191220191020363925"'),
        ("Body", json.dumps(callback()["Body"])),
        ("CallbackMetadata", json.dumps({"Item": ITEMS})),
    ],
)
def test_read_stk_callback_field_twice_with_one_value_is_read(name: str, second: str) -> None:
    assert read_stk_callback(doubled(name, second)) == read()


def test_read_stk_callback_field_that_decides_nothing_may_be_doubled() -> None:
    for raw in (
        doubled("ResultDesc", '"other"', before=True),
        GOOD.replace('{"Body"', '{"x": 1, "x": 2, "Body"').encode(),
    ):
        assert read_stk_callback(raw) == read()


RESULT = json.dumps(
    {
        "Result": {
            "ResultType": 0,
            "ResultCode": 0,
            "OriginatorConversationID": "o-1",
            "ConversationID": "AG_1",
            "TransactionID": "SKE52PAWR9",
            "ResultParameters": {
                "ResultParameter": [
                    {"Key": "Amount", "Value": "500"},
                    {"Key": "TransactionStatus", "Value": "Completed"},
                    {"Key": "DebitPartyName", "Value": "254711000001 - JANE"},
                ]
            },
            "ReferenceData": {"ReferenceItem": {"Key": "QueueTimeoutURL", "Value": "https:\\/\\/x"}},
        }
    }
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"ResultCode": 0', '"ResultCode": 1'),
        ('"ResultType": 0', '"ResultType": 1'),
        ('"OriginatorConversationID": "o-1"', '"OriginatorConversationID": "o-2"'),
        ('"ConversationID": "AG_1"', '"ConversationID": "AG_2"'),
        ('"TransactionID": "SKE52PAWR9"', '"TransactionID": "SKE52PAWR8"'),
        ('"Value": "500"', '"Value": "50"'),
        ('"Value": "Completed"', '"Value": "Failed"'),
        ('"Value": "254711000001 - JANE"', '"Value": "174379 - SHOP"'),
        ('{"Key": "Amount", "Value": "500"}', '{"Key": "Amount", "Value": "50"}'),
        ('{"Key": "TransactionStatus", "Value": "Completed"}', '{"Key": "Transaction Status", "Value": "Failed"}'),
    ],
)
def test_read_result_that_contradicts_itself_is_contradictory(old: str, new: str) -> None:
    assert read_result(RESULT.encode()).first("Amount") == "500"
    for raw in (RESULT.replace(old, f"{old}, {new}", 1), RESULT.replace(old, f"{new}, {old}", 1)):
        with pytest.raises(ContradictoryCallback):
            read_result(raw.encode())


def test_read_result_party_may_be_named_twice() -> None:
    one = '{"Key": "DebitPartyName", "Value": "254711000001 - JANE"}'
    raw = RESULT.replace(one, one + ', {"Key": "DebitPartyName", "Value": "174379 - SHOP"}')
    assert read_result(raw.encode()).parameters["DebitPartyName"] == ("254711000001 - JANE", "174379 - SHOP")


VALUES = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.sampled_from(["0", "1", "x", "0.0"]))


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), VALUES), max_size=6))
def test_read_json_noting_names_fields_doubled_with_different_values(pairs: list[tuple[str, Any]]) -> None:
    raw = "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}"
    found = read_json_with_duplicates(raw.encode())
    assert dict(found) == read_json_leniently(raw.encode())
    expected = {
        name for name, one in pairs for again, other in pairs if name == again and not is_equal_json(one, other)
    }
    assert (found.names if isinstance(found, DuplicateField) else frozenset()) == expected


@given(st.data())
def test_read_stk_callback_any_doubling_is_read_alike_or_refused(data: st.DataObject) -> None:
    """Property: with any field repeated anywhere, a callback is read as without, or is no callback."""
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        names = [found.start() for found in re.finditer(r'"[A-Za-z]+": ', text)]
        at = data.draw(st.sampled_from(names))
        name = text[at : text.index(":", at) + 2]
        value = data.draw(
            st.sampled_from(["0", '"0"', "1032", "500", "1", '"Amount"', "null", "{}", json.dumps(ITEMS)])
        )
        text = f"{text[:at]}{name}{value}, {text[at:]}"
    with suppress(InvalidCallback):
        found = msgspec.structs.replace(read_stk_callback(text.encode()), result_desc="")
        assert found == msgspec.structs.replace(read(), result_desc="")


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (
            b'{"ResponseCode": "0", "ResponseCode": "1", "CheckoutRequestID": "ws_CO_1"}',
            {"CheckoutRequestID": "ws_CO_1"},
        ),
        (b'{"ResponseCode": 0, "CheckoutRequestID": "a", "CheckoutRequestID": "b"}', {"ResponseCode": 0}),
        (b'{"ResultCode": "0", "Result\\u0043ode": "1032"}', {}),
        (b'{"access_token": "a", "access_token": "b"}', {}),
        (b'{"ResponseCode": "0", "ResponseCode": 0}', {"ResponseCode": 0}),
    ],
)
def test_read_answer_field_that_contradicts_itself_is_absent(raw: bytes, content: dict[str, Any]) -> None:
    assert dict(read_answer(raw)) == content


@pytest.mark.parametrize(
    "raw",
    [
        b'{"errorCode": "500.003.1001", "errorCode": "400.002.02"}',
        b'{"errorMessage": "Invalid Access Token", "errorMessage": "System internal error."}',
        b'{"fault": {"detail": {"errorcode": "a", "errorcode": "b"}}}',
        b'{"fault": {}, "fault": {"faultstring": "x"}}',
        b'{"ResponseCode": "1000", "Response": [[]], "Response": [[{"transactionId": "SKE52PAWR9"}]]}',
    ],
)
def test_read_answer_that_contradicts_itself_is_no_answer(raw: bytes) -> None:
    with pytest.raises(ValueError, match="repeated"):
        read_answer(raw)


def test_read_answer_row_that_contradicts_itself_leaves_the_other_rows() -> None:
    row = '{"transactionId": "SKE52PAWR%d", "trxDate": "2026-11-23T10:00:00+03:00", "amount": "500"%s}'
    rows = [
        row % (1, ""),
        row % (2, ', "amount": "5"'),
        row % (3, ', "amount": 500.0'),
        row % (4, ', "sender": 1, "sender": 2'),
    ]
    content = read_answer(f'{{"ResponseCode": "1000", "Response": [[{", ".join(rows)}]]}}'.encode())
    page = read_statement(content)
    assert ([line.receipt[-1] for line in page.lines], page.malformed, page.rows) == (["1", "3", "4"], 1, 4)
    inside = read_statement({"Response": [f"[{', '.join(rows)}]"]})
    assert (len(inside.lines), inside.malformed) == (3, 1)


@pytest.mark.parametrize(
    "unit", ["{}", "[]", '{"Name": "a", "Value": 1}', "[[[]]]", "1", '{"Key": "Amount", "Value": 5}']
)
def test_read_stk_callback_and_result_of_a_megabyte_take_linear_time(unit: str) -> None:
    many = ",".join([unit] * (1_000_000 // (len(unit) + 1)))
    began = time.perf_counter()
    stk = f'{{"Body": {{"stkCallback": {{"ResultCode": 0, "CallbackMetadata": {{"Item": [{many}]}}}}}}}}'
    assert read_stk_callback(stk.encode()).result_code == "0"
    result = f'{{"Result": {{"ResultCode": 0, "ResultParameters": {{"ResultParameter": [{many}]}}}}}}'
    assert read_result(result.encode()).result_code == "0"
    # The quadratic time was 16 s for one of them.
    assert time.perf_counter() - began < 6


@given(st.binary(max_size=64) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"\xef\xbb\xbf{}")
@example("{}".encode("utf-16"))
@example(b"a\x00")
def test_stored_returns_the_same_bytes(body: bytes) -> None:
    text, raw = to_stored_text(body)
    assert (text.encode() if raw is None else raw) == body
    assert "\x00" not in text
    assert text == decode_text(body)


@given(ODD)
def test_read_stk_callback_any_metadata_is_read_or_contradictory(metadata: Any) -> None:
    with suppress(ContradictoryCallback):
        found = read(CallbackMetadata=metadata)
        assert found.result_code == "0"
