"""Protects the simulator's fidelity to Safaricom's documentation, to popular SDKs and to observed formats."""

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from mpesa_gateway.clock import EAT, SetClock
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import eventually, running_gateway
from mpesa_gateway_simulator.plugin import plugin
from mpesa_gateway_simulator.root_routes import DARAJA, OWN, ROOT
from mpesa_gateway_simulator.seeded_random import receipt_of
from tests.plugins.simulator.daraja_client import PUSH, QUERY, QUICK, TOKEN, DarajaClient, basic, daraja, signed
from tests.plugins.simulator.test_results import (
    PHONE,
    PULL,
    REGISTER,
    REVERSAL,
    SHORTCODE,
    STATUS,
    Operations,
    parameters,
)


@pytest.fixture
async def operations(values: dict[str, Any]) -> AsyncGenerator[Operations]:
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver) as client:
        yield Operations(client)


@pytest.fixture
async def strict(values: dict[str, Any]) -> AsyncGenerator[Operations]:
    """A client of a simulator that refuses everything the documentation forbids."""
    async with receiving() as receiver, daraja(values | {"simulator": QUICK | {"strict": True}}, receiver) as client:
        yield Operations(client)


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_push_with_another_party_a_prompts_phone_number(operations: Operations) -> None:
    parties: tuple[Any, ...] = ("254708374149", 254708374149, "600984")
    for party in parties:
        status, ack = await operations.client.push(PHONE, PartyA=party)
        assert (status, ack["ResponseCode"]) == (200, "0"), party
    assert len(await operations.client.prompts(PHONE)) == 3
    assert await operations.client.prompts("254708374149") == []
    bad: tuple[Any, ...] = ("12", "not a number", None, [1])
    for party in bad:
        status, fault = await operations.client.push(PHONE, PartyA=party)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid PartyA"), party


async def test_reversal_amount_as_text_is_accepted_and_other_types_are_refused(operations: Operations) -> None:
    good: tuple[Any, ...] = ("200", "0200", 200)
    receipt = ""
    for amount in good:
        receipt = await operations.money(500)
        assert (await operations.reverse(receipt, amount))[0] == 200
        (result,) = await operations.results("/reversal/result")
        assert (result["ResultCode"], parameters(result)["Amount"]) == (0, 200.0)
    amounts: tuple[Any, ...] = ("", "0", "-1", "200.00", "+200", "2e2", 1.5, True, None, [200])
    for amount in amounts:
        status, fault = await operations.reverse(receipt, amount)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid Amount"), amount


async def test_pull_register_accepts_every_notation_of_a_number(operations: Operations) -> None:
    body: dict[str, Any] = {"RequestType": "Pull", "CallBackURL": "http://x/"}
    numbers: tuple[Any, ...] = ("0722000000", "254722000000", "+254722000000", "722000000", 254722000000)
    for shortcode, number in enumerate(numbers, start=600000):
        body |= {"ShortCode": shortcode, "NominatedNumber": number}
        status, answer = await operations.client.send(body, REGISTER)
        assert (status, answer["ResponseStatus"]) == (200, "1000")
    for bad in ("0822000000", "12", "", None):
        status, fault = await operations.client.send(body | {"NominatedNumber": bad}, REGISTER)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid NominatedNumber")


async def test_pull_query_accepts_every_documented_date_format(operations: Operations) -> None:
    await operations.register()
    await operations.money(500)
    start, end = datetime.now(EAT) - timedelta(hours=3), datetime.now(EAT) + timedelta(minutes=2)
    # `2020-08-04 8:36:00` and `2020-08-16 10:10:000` are the portal's examples.
    for form in ("%Y-%m-%d %H:%M", "%Y-%m-%d %-H:%M:%S", "%Y-%m-%d %H:%M:000", "%Y-%m-%dT%H:%M:%S"):
        status, page = await operations.pull(StartDate=f"{start:{form}}", EndDate=f"{end:{form}}")
        assert (status, len(page["Response"][0])) == (200, 1), form
    for bad in ("2026-11-23", "23-11-2026 10:00", "2026-13-01 10:00", "2026-11-23 10:61", "2026-11-23 10:00:99", "now"):
        status, fault = await operations.pull(StartDate=bad)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid StartDate"), bad


async def test_status_query_accepts_every_documented_form(operations: Operations) -> None:
    receipt = await operations.money(500)
    spaced = operations.initiated("status", TransactionID=receipt, PartyA=int(SHORTCODE), IdentifierType=4)
    for changes in (
        {"Remarks": "R"},
        {"Remarks": "x" * 100},
        {"Occasion": None},
        {"OriginatorConversationID": "7071-4170-a0e5-8345632bad442144258"},
        {"PartyA": int(SHORTCODE), "IdentifierType": 4},
        {"IdentifierType": "2"},
    ):
        status, ack = await operations.status(receipt, **changes)
        assert (status, ack.get("ResponseCode")) == (200, "0"), (changes, ack)
    # The portal's example writes the field name with a space.
    status, ack = await operations.client.send(spaced | {"Command ID": "TransactionStatusQuery"}, STATUS)
    assert (status, ack["ResponseCode"]) == (200, "0")
    for changes in ({"Remarks": ""}, {"Remarks": "x" * 101}, {"Remarks": None}):
        status, fault = await operations.status(receipt, **changes)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid Remarks")


async def test_status_query_by_either_conversation_field_finds_the_push(operations: Operations) -> None:
    _, ack = await operations.client.push("254700000001")
    await operations.client.ended("254700000001")
    operations.client.receiver.received.clear()
    for name in ("OriginalConversationID", "OriginatorConversationID"):
        await operations.status(None, **{name: ack["MerchantRequestID"]})
        (result,) = await operations.results("/status/result")
        assert parameters(result)["TransactionStatus"] == "Cancelled", name


async def test_reversal_accepts_the_identifier_types_of_both_documentations(operations: Operations) -> None:
    for kind in ("11", 11, "4"):
        receipt = await operations.money(500)
        assert (await operations.reverse(receipt, 500, RecieverIdentifierType=kind, Remarks="R"))[0] == 200, kind


# -- requests that Daraja acknowledges and the documentation forbids ---------------------------------------------------

UNDOCUMENTED: list[dict[str, Any]] = [
    {"TransactionDesc": "Payment for order number 1041"},
    {"AccountReference": "Order number 1041"},
    {"TransactionType": "CustomerPayBillOnline "},
    {"TransactionType": " CustomerPayBillOnline\n"},
]


async def test_push_against_the_documentation_is_acknowledged_and_paid(operations: Operations) -> None:
    for number, changes in enumerate(UNDOCUMENTED):
        phone = f"25471100010{number}"
        status, ack = await operations.client.push(phone, **changes)
        assert (status, ack["ResponseCode"]) == (200, "0"), changes
        (callback,) = await operations.client.called_back(phone)
        assert callback["ResultCode"] == 0, changes


async def test_push_against_the_documentation_is_refused_if_strict(strict: Operations) -> None:
    for changes in UNDOCUMENTED:
        (field,) = changes
        status, fault = await strict.client.push(PHONE, **changes)
        assert (status, fault["errorMessage"]) == (400, f"Bad Request - Invalid {field}"), changes


async def test_push_with_a_prompt_over_182_characters_ends_with_1025(operations: Operations) -> None:
    text = "Do you want to pay Ksh 7.00 to 174379, account no. ORDER-1? "
    room = 182 - len(text)
    ack: dict[str, Any] = {}
    callback: dict[str, Any] = {}
    for phone, length, code in ((PHONE, room, 0), ("254711000002", room + 1, 1025), ("254700000020", 500, 1025)):
        status, ack = await operations.client.push(phone, TransactionDesc="x" * length)
        assert (status, ack["ResponseCode"]) == (200, "0")
        (callback,) = await operations.client.called_back(phone)
        assert callback["ResultCode"] == code, phone
    assert callback["ResultDesc"] == "An error occurred while sending a push request."
    assert await operations.client.moved("254711000002") == []
    status, answer = await operations.client.query(ack["CheckoutRequestID"])
    assert (status, answer["ResultCode"]) == (200, "1025")


# -- addresses and methods ---------------------------------------------------------------------------------------------

ABSENT = ("/mpesa/b2c/v3/paymentrequest", "/mpesa/stkpush/v1", "/mpesa/c2b/v3/registerurl", "/oauth/v2/token", "/v9/x")
PRESENT = {
    TOKEN.partition("?")[0]: "GET",
    PUSH: "POST",
    QUERY: "POST",
    STATUS: "POST",
    REVERSAL: "POST",
    REGISTER: "POST",
    PULL: "POST",
    "/simulator/mpesa/qrcode/v1/generate": "POST",
    **{
        f"/simulator/mpesa/c2b/{version}/{what}": "POST"
        for version in ("v1", "v2")
        for what in ("registerurl", "simulate")
    },
}


async def test_unknown_path_or_method_is_answered_as_by_daraja(operations: Operations) -> None:
    ids: list[str] = []
    for root, path in [(root, path) for root in ("/simulator", "") for path in ABSENT]:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            body: dict[str, Any] | None = {} if method == "POST" else None
            status, fault = await operations.client.call(method, root + path, body)
            assert (status, fault["errorCode"], fault["errorMessage"]) == (404, "404.001.01", "Resource not found"), (
                path
            )
            ids.append(fault["requestId"])
    for path, own in [*PRESENT.items(), *((path.removeprefix("/simulator"), own) for path, own in PRESENT.items())]:
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {own}:
            status, fault = await operations.client.call(method, path)
            assert (status, fault["errorCode"]) == (405, "405.001"), (method, path)
            ids.append(fault["requestId"])
    assert len(set(ids)) == len(ids)


def test_routes_are_darajas_or_our_own() -> None:
    paths = {path for route in plugin.routes for path in route.paths}
    own = {path for path in paths if path.removeprefix(ROOT) not in DARAJA}
    assert paths - own == {ROOT + path for path in DARAJA}
    assert {[*path.split("/"), ""][2] for path in own - {"/v1/simulator/c2b"}} == OWN


async def test_refusals_each_have_their_own_request_id(operations: Operations) -> None:
    ids = [(await operations.client.push(PHONE, Amount=0))[1]["requestId"] for _ in range(5)]
    repeated = {"X-Request-ID": "mine", "Authorization": f"Bearer {operations.client.token}"}
    ids += [(await operations.client.call("POST", PUSH, {}, **repeated))[1]["requestId"] for _ in range(5)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{16}", each) for each in ids)


async def test_simulator_in_its_own_process_answers_at_the_root(operations: Operations) -> None:
    client = operations.client
    status, answer = await client.call("GET", TOKEN.removeprefix("/simulator"), Authorization=basic("root"))
    assert status == 200
    client.token = answer["access_token"]
    status, ack = await client.send(client.request(PHONE), PUSH.removeprefix("/simulator"))
    assert status == 200
    await client.called_back(PHONE)
    status, answer = await client.send(
        signed() | {"CheckoutRequestID": ack["CheckoutRequestID"]}, QUERY.removeprefix("/simulator")
    )
    assert (status, answer["ResultCode"]) == (200, "0")


async def test_simulator_in_a_gateway_leaves_the_root_to_the_gateway(values: dict[str, Any]) -> None:
    async with receiving() as receiver, running_gateway(values) as (gateway, base):
        client = DarajaClient(gateway, base, receiver)
        try:
            for path in ("/oauth/v1/generate", "/mpesa/stkpush/v1/processrequest", "/nowhere"):
                status, answer = await client.call("GET", path)
                assert (status, answer["errors"][0]["code"]) == (404, "NOT_FOUND"), path
            status, fault = await client.call("GET", "/simulator/nowhere")
            assert (status, fault["errorCode"]) == (404, "404.001.01")
            # The control API answers in the gateway's format.
            status, answer = await client.call("GET", "/simulator/control/nowhere")
            assert (status, answer["errors"][0]["code"]) == (404, "NOT_FOUND")
        finally:
            await client.close()


# -- tokens ------------------------------------------------------------------------------------------------------------


async def call_with_new_tokens(client: DarajaClient, key: str) -> list[int]:
    """Returns the statuses of 30 calls, six at a time, each with a new token."""
    slots = asyncio.Semaphore(6)

    async def call_once(number: int) -> int:
        async with slots:
            _, answer = await client.call("GET", TOKEN, Authorization=basic(key))
            bearer = f"Bearer {answer['access_token']}"
            status, _ = await client.call("POST", PUSH, client.request(f"2547110002{number:02}"), Authorization=bearer)
            return status

    return await asyncio.gather(*map(call_once, range(30)))


async def test_token_of_the_same_key_invalidates_the_previous_one(operations: Operations) -> None:
    first = await operations.client.log_in("mine")
    assert (await operations.client.push(PHONE))[0] == 200
    await operations.client.log_in("mine")
    other = await operations.client.log_in("another")
    operations.client.token = first
    status, fault = await operations.client.push(PHONE)
    assert (status, fault["errorCode"]) == (404, "404.001.03")
    operations.client.token = other
    assert (await operations.client.push(PHONE))[0] == 200


async def test_tokens_of_one_key_are_all_valid_if_set(values: dict[str, Any]) -> None:
    settings = QUICK | {"one_token_per_key": False}
    async with receiving() as receiver, daraja(values | {"simulator": settings}, receiver) as client:
        assert set(await call_with_new_tokens(client, "many")) == {200}


async def test_token_expires_after_its_lifetime(values: dict[str, Any]) -> None:
    clock = SetClock(datetime(2026, 11, 23, 7, 0, tzinfo=UTC))
    settings = QUICK | {"one_token_per_key": False}
    async with receiving() as receiver, daraja(values | {"simulator": settings}, receiver, clock) as client:
        first = await client.log_in("mine")
        clock.advance(timedelta(seconds=3600))
        await client.log_in("mine")
        assert (await client.push(PHONE))[0] == 200
        client.token = first
        assert (await client.push(PHONE))[0] == 404


# -- answers in Daraja's format ----------------------------------------------------------------------------------------


def test_receipts_encode_their_day_and_are_unique() -> None:
    day = datetime(2026, 11, 23, 20, 59, tzinfo=UTC)
    assert receipt_of(day, 1)[:3] == "UKN"
    assert receipt_of(day + timedelta(minutes=2), 1)[:3] == "UKO"
    assert receipt_of(datetime(2024, 1, 9, 9, tzinfo=UTC), 1)[:3] == "SA9"
    assert receipt_of(datetime(2019, 12, 19, 9, tzinfo=UTC), 1)[:3] == "NLJ"
    assert receipt_of(datetime(2031, 12, 31, 9, tzinfo=UTC), 1)[:3] == "ZLV"
    assert receipt_of(datetime(2032, 1, 1, 9, tzinfo=UTC), 1)[0] == "A"
    made = {receipt_of(day, number) for number in range(20_000)}
    assert len(made) == 20_000
    assert all(re.fullmatch(r"[A-Z][A-L][1-9A-V][A-Z0-9]{7}", each) for each in made)


async def test_identifiers_have_darajas_format(operations: Operations) -> None:
    now = datetime.now(EAT)
    _, ack = await operations.client.push(PHONE)
    assert re.fullmatch(rf"ws_CO_{now:%d%m%Y}[0-9]{{9}}{PHONE[3:]}", ack["CheckoutRequestID"])
    assert re.fullmatch(r"[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{16}", ack["MerchantRequestID"])
    await operations.client.ended(PHONE)
    ((receipt, _),) = await operations.client.moved(PHONE)
    assert re.fullmatch(r"[A-Z][A-L][1-9A-V][A-Z0-9]{7}", receipt)
    operations.client.receiver.received.clear()
    _, ack = await operations.reverse(receipt, 3)
    assert re.fullmatch(rf"AG_{now:%Y%m%d}_[0-9a-f]{{20}}", ack["ConversationID"])
    assert re.fullmatch(r"[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{16}", ack["OriginatorConversationID"])
    (result,) = await operations.results("/reversal/result")
    assert re.fullmatch(r"[A-Z][A-L][1-9A-V][A-Z0-9]{7}", result["TransactionID"])


async def test_pushes_of_one_phone_at_one_time_have_different_handles(values: dict[str, Any]) -> None:
    clock = SetClock(datetime(2026, 11, 23, 7, 0, tzinfo=UTC))
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver, clock) as client:
        handles = [(await client.push("254700000006"))[1]["CheckoutRequestID"] for _ in range(20)]
        assert len(set(handles)) == 20


async def test_reversal_result_has_a_value_for_every_parameter(operations: Operations) -> None:
    other_receipt = await operations.money(300)
    receipt = await operations.money(500)
    await operations.reverse(receipt, 200)
    (result,) = await operations.results("/reversal/result")
    found = parameters(result)
    assert found.pop("TransCompletedTime") > 20260000000000
    assert found == {
        "DebitAccountBalance": "Utility Account|KES|600.00|600.00|0.00|0.00",
        "Amount": 200.0,
        "OriginalTransactionID": receipt,
        "Charge": 0.0,
        "CreditPartyPublicName": f"{PHONE} - JANE DOE",
        "DebitPartyPublicName": f"{SHORTCODE} - Shop",
    }
    item = result["ReferenceData"]["ReferenceItem"]
    assert (item["Key"], urlsplit(item["Value"]).hostname) == ("QueueTimeoutURL", "internalsandbox.safaricom.co.ke")
    assert other_receipt != receipt


async def test_reversal_failed_has_no_parameters_and_a_receipt_of_zeros(operations: Operations) -> None:
    receipt = await operations.money(500)
    for changes in ({"Initiator": "no_role"}, {"TransactionID": "UKN4A1B2C3"}):
        await operations.reverse(receipt, 500, **changes)
        (result,) = await operations.results("/reversal/result")
        assert "ResultParameters" not in result
        assert re.fullmatch(r"[A-Z][A-L][1-9A-V]0000000", result["TransactionID"])


async def test_pull_register_twice_answers_with_1001(operations: Operations) -> None:
    _, first = await operations.register()
    _, again = await operations.register()
    assert (first["ResponseStatus"], first["ResponseDescription"]) == ("1000", "Shortcode Registered Successfully")
    assert (again["Response Status"], again["Response Description"]) == ("1001", "ShortCode already Registered")


async def test_bystanders_receipts_have_the_usual_format(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        daraja(values | {"simulator": QUICK | {"strangers": 10}}, receiver) as client,
    ):
        await client.push(PHONE)

        async def moved() -> list[Any]:
            found: list[Any] = await client.control("GET", "ledger")
            return found

        for entry in await eventually(moved) or []:
            assert re.fullmatch(r"[A-Z][A-L][1-9A-V][A-Z0-9]{7}", entry["receipt"]), entry
