"""Protects QR codes: the receiver's own number, a checked image, and no code for a payment that has ended."""

import base64
import json
from typing import Any

import pytest

from mpesa_gateway.testing.serving import SANDBOX
from mpesa_gateway_qr.operations import read_picture
from mpesa_gateway_qr.png import read_png
from mpesa_gateway_simulator.exchange_log import ExchangeLog
from mpesa_gateway_simulator.misbehaviour import QR_HABITS
from mpesa_gateway_simulator.qr_codes import draw_png
from tests.conftest import Harness

ASKS = "254700000020"
PAYS = "254711000001"
SHORTCODE = "/v1/merchant/shortcodes/174379/qr"


async def pending(harness: Harness) -> dict[str, Any]:
    """Return a payment whose prompt waits."""
    made: dict[str, Any] = (await harness.api.pay(ASKS, 750, key="order")).data
    return made


def sent(harness: Harness) -> dict[str, Any]:
    """Return the newest request for a QR code."""
    lines = harness.gateway.services.get(ExchangeLog).lines
    found: dict[str, Any] = json.loads(next(line for line in lines if line.what == "qrcode").raw_body)
    return found


async def set_habit(harness: Harness, habit: str) -> None:
    assert (await harness.api.call("PATCH", "/simulator/control/habits", {"qrcode": habit})).status == 200


def test_habits_all_have_a_test() -> None:
    assert {"normal", "internal_error", *ACCEPTED, *BROKEN} == QR_HABITS


async def test_pending_payment_gets_a_code_of_its_receiver_amount_and_reference(harness: Harness) -> None:
    made = await pending(harness)
    drawn = await harness.api.call("POST", f"/v1/payments/{made['id']}/qr", {"size": 240})
    assert drawn.status == 200
    assert (drawn.data["media_type"], drawn.data["size"]) == ("image/png", 240)
    assert read_png(base64.b64decode(drawn.data["qr_code"])) == (240, 240)
    name = sent(harness).pop("MerchantName")
    assert name
    assert sent(harness) == {
        "MerchantName": name,
        "RefNo": made["reference"],
        "Amount": 750,
        "TrxCode": "PB",
        "CPI": "174379",
        "Size": "240",
    }
    # A code is no evidence of money.
    assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"


@pytest.mark.parametrize(("phone", "status"), [(PAYS, "completed"), ("254700000001", "failed")])
async def test_ended_payment_gets_no_code(harness: Harness, phone: str, status: str) -> None:
    made = (await harness.api.pay(phone, 750, key="order")).data
    await harness.api.settled(made["id"], status)
    refused = await harness.api.call("POST", f"/v1/payments/{made['id']}/qr", {})
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert status in refused.error["message"]


async def test_shortcode_gets_a_code_of_an_amount_and_a_reference(harness: Harness) -> None:
    drawn = await harness.api.call("POST", SHORTCODE, {"amount": "500.00", "reference": "HOUSE 7B"})
    assert (drawn.status, drawn.data["size"]) == (200, 300)
    body = sent(harness)
    assert (body["Amount"], body["RefNo"], body["CPI"], body["TrxCode"]) == (500, "HOUSE 7B", "174379", "PB")
    assert (await harness.api.call("POST", SHORTCODE, {"amount": 1})).status == 200
    assert sent(harness)["RefNo"] == "174379"


async def test_till_has_the_code_bg_and_the_number_that_payers_pay(harness: Harness) -> None:
    till = SANDBOX | {"mpesa": SANDBOX["mpesa"] | {"till_number": "5123456"}}
    assert (await harness.api.call("PUT", "/v1/merchant/providers", till)).status == 200
    drawn = await harness.api.call("POST", "/v1/merchant/shortcodes/5123456/qr", {"amount": 20})
    assert drawn.status == 200
    body = sent(harness)
    assert (body["TrxCode"], body["CPI"]) == ("BG", "5123456")
    # The store number is not what payers pay.
    assert (await harness.api.call("POST", SHORTCODE, {"amount": 20})).status == 404


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"amount"}),
        ({"amount": 0, "size": 99}, {"amount", "size"}),
        ({"amount": "1.50"}, {"amount"}),
        ({"amount": 250_001, "size": 1001}, {"amount", "size"}),
        ({"amount": 5, "reference": "A" * 21}, {"reference"}),
        ({"amount": 5, "reference": "é"}, {"reference"}),
        ({"amount": 5, "colour": "red"}, {"colour"}),
    ],
)
async def test_bad_fields_are_all_named_and_nothing_is_sent(
    harness: Harness, body: dict[str, Any], fields: set[str]
) -> None:
    refused = await harness.api.call("POST", SHORTCODE, body)
    assert refused.status == 422
    assert {error["field"] for error in refused.body["errors"]} == fields
    assert all(line.what != "qrcode" for line in harness.gateway.services.get(ExchangeLog).lines)


async def test_unknown_payments_and_shortcodes_are_not_found(harness: Harness) -> None:
    for path in ("/v1/payments/pay_01jdk3v8rc4x9m2q7ztbn5wgae/qr", "/v1/payments/x/qr"):
        assert (await harness.api.call("POST", path, {})).status == 404
    for shortcode in ("600999", "1", "x"):
        refused = await harness.api.call("POST", f"/v1/merchant/shortcodes/{shortcode}/qr", {"amount": 1})
        assert refused.status == 404, shortcode


ACCEPTED = {"code_00": 300, "other_size": 301}
BROKEN = {
    "no_image": "has no QR code",
    "not_base64": "not valid base64",
    "not_png": "no PNG signature",
    "cut_off": "cut off",
    "flipped_bit": "checksum is wrong",
}


@pytest.mark.parametrize("habit", sorted(ACCEPTED))
async def test_answer_with_an_image_is_accepted_whatever_its_code(harness: Harness, habit: str) -> None:
    await set_habit(harness, habit)
    drawn = await harness.api.call("POST", SHORTCODE, {"amount": 1})
    assert (drawn.status, drawn.data["size"]) == (200, ACCEPTED[habit])


@pytest.mark.parametrize("habit", sorted(BROKEN))
async def test_answer_without_a_whole_image_is_unavailable_and_can_be_repeated(harness: Harness, habit: str) -> None:
    await set_habit(harness, habit)
    refused = await harness.api.call("POST", SHORTCODE, {"amount": 1})
    assert (refused.status, refused.error["code"]) == (503, "PROVIDER_UNAVAILABLE")
    assert BROKEN[habit] in refused.error["message"]
    await set_habit(harness, "normal")
    assert (await harness.api.call("POST", SHORTCODE, {"amount": 1})).status == 200


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("400.002.02", 502, "PROVIDER_REJECTED"),
        ("403.002.1001", 502, "PROVIDER_REJECTED"),
        ("proxy_spike_arrest_429", 503, "PROVIDER_UNAVAILABLE"),
        ("500.003.1001", 503, "PROVIDER_UNAVAILABLE"),
        ("html_200", 503, "PROVIDER_UNAVAILABLE"),
        ("empty_504", 503, "PROVIDER_UNAVAILABLE"),
    ],
)
async def test_fault_of_daraja_is_reported_like_those_of_other_calls(
    harness: Harness, fault: str, status: int, code: str
) -> None:
    order = {"operation": "qrcode", "fault": fault, "times": 9}
    assert (await harness.api.call("POST", "/simulator/control/faults", order)).status == 200
    refused = await harness.api.call("POST", SHORTCODE, {"amount": 1})
    assert (refused.status, refused.error["code"]) == (status, code)


async def test_expired_token_is_renewed_once(harness: Harness) -> None:
    order = {"operation": "qrcode", "fault": "401.002.01_token", "times": 1}
    assert (await harness.api.call("POST", "/simulator/control/faults", order)).status == 200
    assert (await harness.api.call("POST", SHORTCODE, {"amount": 1})).status == 200


def test_image_with_data_prefix_and_line_breaks_is_read() -> None:
    image = draw_png([[True]], 100)
    text = base64.encodebytes(image).decode()
    assert read_picture({"QRCode": "data:image/png;base64," + text}).content == image
