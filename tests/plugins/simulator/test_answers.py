"""What Daraja, or something in front of it, has been seen to answer and to post: the simulator plays all of it."""

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
from tests.plugins.simulator.line import PUSH, QUICK, TOKEN, basic, daraja
from tests.plugins.simulator.test_results import PHONE, Asking, parameters

ASKS = "254700000020"

TABLE = {
    *("400.002.02", "400.002.05", "400.003.01", "400.003.02", "400.008.01", "400.008.02", "401.001", "401.002.01"),
    *("401.003.01", "403.002.1001", "404.001.01", "404.001.03", "404.001.04", "404.002.01", "404.003.01", "405.001"),
    *("429.001.01", "500.001.1001", "500.002.1001", "500.003.02", "500.003.03", "500.003.1001"),
}
"""Every error code that integrations have met."""


@pytest.fixture
async def asking(values: dict[str, Any]) -> AsyncGenerator[Asking]:
    """A merchant in front of a quick simulator."""
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver) as line:
        yield Asking(line)


def test_every_code_and_every_text_of_a_code_can_be_played() -> None:
    played = [fault for fault in FAULTS.values() if isinstance(fault, Fault)]
    assert {fault.code for fault in played} == TABLE
    assert all(name.partition("_")[0] == fault.code for name, fault in FAULTS.items() if isinstance(fault, Fault))
    texts = {code: {fault.message for fault in played if fault.code == code} for code in TABLE}
    assert len(texts["500.002.1001"]) == 3
    assert len(texts["500.001.1001"]) == 5
    assert len(texts["500.003.02"]) == len(texts["401.002.01"]) == len(texts["400.003.02"]) == 2


def test_the_proxies_in_front_answer_at_every_status_that_was_seen() -> None:
    garbage = {name: fault for name, fault in FAULTS.items() if isinstance(fault, NotJson)}
    arrests = {one.status for one in garbage.values() if "policies.ratelimit.SpikeArrestViolation" in one.body}
    assert arrests == {429, 500}
    assert {one.status for one in garbage.values() if "keymanagement.service" in one.body} == {401}
    assert {one.status for one in garbage.values() if "Incident" in one.body} == {200, 403}


def test_the_bodies_that_were_captured_are_played_word_for_word() -> None:
    samples = Path(__file__).parents[2] / "samples"
    said = [{"errorCode": one.code, "errorMessage": one.message} for one in FAULTS.values() if isinstance(one, Fault)]
    said += [json.loads(one.body) for one in FAULTS.values() if isinstance(one, NotJson) and "fault" in one.body]
    for path in sorted(samples.glob("error_*.json")):
        body = json.loads(path.read_text())
        body.pop("requestId", None)
        assert body in said, path.name


async def raw(asking: Asking, fault: str) -> bytes:
    """The first line and the headers of a push's answer, as they come."""
    await asking.line.control("POST", "faults", {"operation": "stkpush", "fault": fault})
    host, port = asking.line.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(asking.line.request(PHONE)).encode()
    head = f"POST {PUSH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {asking.line.token}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_answers_that_clients_stumble_over_are_played(asking: Asking) -> None:
    redirect = (await raw(asking, "bad_redirect")).lower()
    assert redirect.startswith(b"http/1.1 302")
    assert b"location: http://[bad\r\n" in redirect
    assert (await raw(asking, "switching_101")).startswith(b"HTTP/1.1 101")
    assert b"content-encoding: gzip" in (await raw(asking, "not_gzip")).lower()


async def test_a_token_is_answered_in_each_way_that_was_seen(asking: Asking) -> None:
    said: dict[str, Any] = {}
    for habit in sorted(OAUTH_HABITS):
        await asking.habit(oauth=habit)
        status, answer = await asking.line.call("GET", TOKEN, Authorization=basic("key"))
        assert status == 200
        said[habit] = answer.get("expires_in")
        assert ("\r\n" in answer["access_token"]) is (habit == "token_line_break")
    assert said == {
        "normal": "3599",
        "expires_huge": "99999999999999999999",
        "expires_number": 3599,
        "expires_float": 3599.0,
        "expires_absent": None,
        "expires_text": "soon",
        "token_line_break": "3599",
    }


async def test_a_push_is_acknowledged_in_each_way_that_was_seen(asking: Asking) -> None:
    said: dict[str, Any] = {}
    for number, habit in enumerate(sorted(ACK_HABITS)):
        await asking.habit(stkack=habit)
        status, ack = await asking.line.push(f"25471100010{number}")
        assert status == 200
        assert ack["CheckoutRequestID"].startswith("ws_CO_")
        assert ("MerchantRequestID" in ack) is (habit != "no_merchant_request_id")
        said[habit] = ack["ResponseCode"]
    assert len(await asking.line.control("GET", "pushes")) == len(ACK_HABITS)
    assert (said.pop("code_float"), said.pop("code_zeros"), said.pop("code_number")) == (0.0, "00000000", 0)
    assert set(said.values()) == {"0"}


async def test_a_query_is_answered_in_each_way_that_was_seen(asking: Asking) -> None:
    await asking.line.control("PATCH", "knobs", {"prompt_timeout": 60})
    _, ack = await asking.line.push(ASKS)
    handle = ack["CheckoutRequestID"]
    await asking.habit(stkquery="processing_200")
    status, answer = await asking.line.query(handle)
    assert (status, answer["errorMessage"]) == (200, "The transaction is being processed")
    await asking.line.control("POST", f"pushes/{handle}/answer", {"answer": "pay"})
    said: dict[str, Any] = {}
    for habit in sorted(QUERY_HABITS):
        await asking.habit(stkquery=habit)
        status, answer = await asking.line.query(handle)
        said[habit] = answer.get("ResultCode", answer.get("errorMessage"))
        assert answer.get("CheckoutRequestID", handle) == ("ws_CO_OFANOTHERPUSH" if habit == "other_handle" else handle)
    assert said == {
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


async def test_callbacks_are_written_in_each_way_that_was_seen(asking: Asking) -> None:
    assert set(POSTED) == CALLBACK_HABITS
    for habit, part in POSTED.items():
        asking.line.receiver.received.clear()
        await asking.habit(callback=habit)
        await asking.line.push(PHONE)
        body = (await came(asking))[0]
        assert part in body, habit


async def test_results_are_written_so_too(asking: Asking) -> None:
    receipt = await asking.money(500)
    for habit in ("latin1", "raw_tab", "lone_surrogate", "bom", "float_code"):
        asking.line.receiver.received.clear()
        await asking.habit(callback=habit)
        await asking.status(receipt)
        assert POSTED[habit] in (await came(asking))[0], habit


async def came(asking: Asking) -> list[bytes]:
    """The bodies that were posted, once there is one."""

    async def is_there() -> bool:
        return bool(asking.line.receiver.received)

    await eventually(is_there)
    return [one.body for one in asking.line.receiver.received]


async def test_a_reversal_can_be_carried_out_and_end_with_a_code_that_no_table_has(asking: Asking) -> None:
    for code in (15, 100000100):
        receipt = await asking.money(500)
        await asking.habit(reversal=f"code_{code}")
        await asking.reverse(receipt, 500)
        (result,) = await asking.told("/reversal/result")
        assert result["ResultCode"] == code
        (entry,) = [one for one in await asking.line.control("GET", "ledger") if one["receipt"] == receipt]
        assert entry["returned"] == 500


async def test_a_status_answer_can_hide_the_parties_or_the_payer(asking: Asking) -> None:
    receipt = await asking.money(500)
    await asking.habit(transactionstatus="no_parties")
    await asking.status(receipt)
    (result,) = await asking.told("/status/result")
    assert not any(key.endswith("PartyName") for key in parameters(result))
    await asking.habit(transactionstatus="hidden_payer")
    await asking.status(receipt)
    (result,) = await asking.told("/status/result")
    assert parameters(result)["DebitPartyName"] == "25471****001 - JANE DOE"


async def test_an_endless_statement_has_one_more_row_at_every_offset(asking: Asking) -> None:
    await asking.register()
    await asking.habit(pullquery="endless")
    seen = {(await asking.pull(offset))[1]["Response"][0][0]["transactionId"] for offset in (0, 1, 2, 500)}
    assert len(seen) == 4
