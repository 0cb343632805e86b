"""Protects the simulator's fidelity: it plays each answer and body that Daraja and its proxies have sent."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_simulator.misbehaviour import ACK_HABITS, CALLBACK_HABITS, OAUTH_HABITS, QUERY_HABITS
from mpesa_gateway_simulator.validation import FAULTS, Fault, NotJson
from tests.plugins.simulator.daraja_client import PUSH, QUICK, TOKEN, basic, daraja
from tests.plugins.simulator.test_results import PHONE, Operations, parameters

ASKS = "254700000020"

TABLE = {
    *("400.002.02", "400.002.05", "400.003.01", "400.003.02", "400.008.01", "400.008.02", "401.001", "401.002.01"),
    *("401.003.01", "403.002.1001", "404.001.01", "404.001.03", "404.001.04", "404.002.01", "404.003.01", "405.001"),
    *("429.001.01", "500.001.1001", "500.002.1001", "500.003.02", "500.003.03", "500.003.1001"),
}
"""Every error code that integrations have received."""


@pytest.fixture
async def operations(values: dict[str, Any]) -> AsyncGenerator[Operations]:
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver) as client:
        yield Operations(client)


def test_faults_contain_every_code_and_text() -> None:
    played = [fault for fault in FAULTS.values() if isinstance(fault, Fault)]
    assert {fault.code for fault in played} == TABLE
    assert all(name.partition("_")[0] == fault.code for name, fault in FAULTS.items() if isinstance(fault, Fault))
    texts = {code: {fault.message for fault in played if fault.code == code} for code in TABLE}
    assert len(texts["500.002.1001"]) == 3
    assert len(texts["500.001.1001"]) == 5
    assert len(texts["500.003.02"]) == len(texts["401.002.01"]) == len(texts["400.003.02"]) == 2


def test_faults_of_proxies_have_every_observed_status() -> None:
    garbage = {name: fault for name, fault in FAULTS.items() if isinstance(fault, NotJson)}
    arrests = {one.status for one in garbage.values() if "policies.ratelimit.SpikeArrestViolation" in one.body}
    assert arrests == {429, 500}
    assert {one.status for one in garbage.values() if "keymanagement.service" in one.body} == {401}
    assert {one.status for one in garbage.values() if "Incident" in one.body} == {200, 403}


def test_faults_contain_every_captured_body_verbatim() -> None:
    samples = Path(__file__).parents[2] / "samples"
    answers = [
        {"errorCode": one.code, "errorMessage": one.message} for one in FAULTS.values() if isinstance(one, Fault)
    ]
    answers += [json.loads(one.body) for one in FAULTS.values() if isinstance(one, NotJson) and "fault" in one.body]
    for path in sorted(samples.glob("error_*.json")):
        body = json.loads(path.read_text())
        body.pop("requestId", None)
        assert body in answers, path.name


async def raw_head(operations: Operations, fault: str) -> bytes:
    """Returns the status line and the headers of a push's answer."""
    await operations.client.control("POST", "faults", {"operation": "stkpush", "fault": fault})
    host, port = operations.client.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(operations.client.request(PHONE)).encode()
    head = f"POST {PUSH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {operations.client.token}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_push_with_a_malformed_answer_sends_it_unchanged(operations: Operations) -> None:
    redirect = (await raw_head(operations, "bad_redirect")).lower()
    assert redirect.startswith(b"http/1.1 302")
    assert b"location: http://[bad\r\n" in redirect
    assert (await raw_head(operations, "switching_101")).startswith(b"HTTP/1.1 101")
    assert b"content-encoding: gzip" in (await raw_head(operations, "not_gzip")).lower()


async def test_token_habits_answer_in_each_observed_format(operations: Operations) -> None:
    answers: dict[str, Any] = {}
    for habit in sorted(OAUTH_HABITS):
        await operations.habit(oauth=habit)
        status, answer = await operations.client.call("GET", TOKEN, Authorization=basic("key"))
        assert status == 200
        answers[habit] = answer.get("expires_in")
        assert ("\r\n" in answer["access_token"]) is (habit == "token_line_break")
    assert answers == {
        "normal": "3599",
        "expires_huge": "99999999999999999999",
        "expires_number": 3599,
        "expires_float": 3599.0,
        "expires_absent": None,
        "expires_text": "soon",
        "token_line_break": "3599",
    }


async def test_push_habits_acknowledge_in_each_observed_format(operations: Operations) -> None:
    answers: dict[str, Any] = {}
    for number, habit in enumerate(sorted(ACK_HABITS)):
        await operations.habit(stkack=habit)
        status, ack = await operations.client.push(f"25471100010{number}")
        assert status == 200
        assert ack["CheckoutRequestID"].startswith("ws_CO_")
        assert ("MerchantRequestID" in ack) is (habit != "no_merchant_request_id")
        answers[habit] = ack["ResponseCode"]
    assert len(await operations.client.control("GET", "pushes")) == len(ACK_HABITS)
    assert (answers.pop("code_float"), answers.pop("code_zeros"), answers.pop("code_number")) == (0.0, "00000000", 0)
    assert set(answers.values()) == {"0"}


async def test_stk_query_habits_answer_in_each_observed_format(operations: Operations) -> None:
    await operations.client.control("PATCH", "knobs", {"prompt_timeout": 60})
    _, ack = await operations.client.push(ASKS)
    handle = ack["CheckoutRequestID"]
    await operations.habit(stkquery="processing_200")
    status, answer = await operations.client.query(handle)
    assert (status, answer["errorMessage"]) == (200, "The transaction is being processed")
    await operations.client.control("POST", f"pushes/{handle}/answer", {"answer": "pay"})
    answers: dict[str, Any] = {}
    for habit in sorted(QUERY_HABITS):
        await operations.habit(stkquery=habit)
        status, answer = await operations.client.query(handle)
        answers[habit] = answer.get("ResultCode", answer.get("errorMessage"))
        assert answer.get("CheckoutRequestID", handle) == ("ws_CO_OFANOTHERPUSH" if habit == "other_handle" else handle)
    assert answers == {
        "normal": "0",
        "unknown_code": "7777",
        "code_9999": "9999",
        "other_handle": "0",
        "processing_200": "0",
        "does_not_exist": "The transaction does not exist",
        "code_number": 0,
    }


POSTED: dict[str, bytes] = {
    "normal": b'"ResultCode":0,',
    "latin1": b"Ma\xdfnahme",
    "raw_tab": b"a\tb",
    "lone_surrogate": b"\\ud83d",
    "bom": b"\xef\xbb\xbf{",
    "float_code": b'"ResultCode":0.0',
    "float_numbers": b'"Value":254711000001.0',
    "exponent_amount": b'"Value":7e0',
}


async def test_callback_habits_write_each_observed_format(operations: Operations) -> None:
    assert set(POSTED) == CALLBACK_HABITS
    for habit, part in POSTED.items():
        operations.client.receiver.received.clear()
        await operations.habit(callback=habit)
        await operations.client.push(PHONE)
        body = (await received_bodies(operations))[0]
        assert part in body, habit


async def test_callback_habits_apply_to_results(operations: Operations) -> None:
    receipt = await operations.money(500)
    for habit in ("latin1", "raw_tab", "lone_surrogate", "bom", "float_code"):
        operations.client.receiver.received.clear()
        await operations.habit(callback=habit)
        await operations.status(receipt)
        assert POSTED[habit] in (await received_bodies(operations))[0], habit


async def received_bodies(operations: Operations) -> list[bytes]:
    """Returns the received bodies once there is one."""

    async def is_there() -> bool:
        return bool(operations.client.receiver.received)

    await eventually(is_there)
    return [one.body for one in operations.client.receiver.received]


async def test_reversal_habit_with_an_undocumented_code_returns_the_money(operations: Operations) -> None:
    for code in (15, 100000100):
        receipt = await operations.money(500)
        await operations.habit(reversal=f"code_{code}")
        await operations.reverse(receipt, 500)
        (result,) = await operations.results("/reversal/result")
        assert result["ResultCode"] == code
        (entry,) = [one for one in await operations.client.control("GET", "ledger") if one["receipt"] == receipt]
        assert entry["returned"] == 500


async def test_status_habits_hide_the_parties_or_the_payer(operations: Operations) -> None:
    receipt = await operations.money(500)
    await operations.habit(transactionstatus="no_parties")
    await operations.status(receipt)
    (result,) = await operations.results("/status/result")
    assert not any(key.endswith("PartyName") for key in parameters(result))
    await operations.habit(transactionstatus="hidden_payer")
    await operations.status(receipt)
    (result,) = await operations.results("/status/result")
    assert parameters(result)["DebitPartyName"] == "25471****001 - JANE DOE"


async def test_pull_habit_endless_has_another_row_at_every_offset(operations: Operations) -> None:
    await operations.register()
    await operations.habit(pullquery="endless")
    seen = {(await operations.pull(offset))[1]["Response"][0][0]["transactionId"] for offset in (0, 1, 2, 500)}
    assert len(seen) == 4
