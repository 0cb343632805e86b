"""Requests that stand in Safaricom's documentation and that popular SDKs send, and answers that look like Daraja's."""

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
from tests.plugins.simulator.line import PUSH, QUERY, QUICK, TOKEN, Line, basic, daraja, signed
from tests.plugins.simulator.test_results import PHONE, PULL, REGISTER, REVERSAL, SHORTCODE, STATUS, Asking, parameters


@pytest.fixture
async def asking(values: dict[str, Any]) -> AsyncGenerator[Asking]:
    """A merchant in front of a quick simulator."""
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver) as line:
        yield Asking(line)


@pytest.fixture
async def strict(values: dict[str, Any]) -> AsyncGenerator[Asking]:
    """A merchant in front of a simulator that refuses what the documentation forbids."""
    async with receiving() as receiver, daraja(values | {"simulator": QUICK | {"strict": True}}, receiver) as line:
        yield Asking(line)


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_push_with_another_party_a_prompts_the_phone_number(asking: Asking) -> None:
    parties: tuple[Any, ...] = ("254708374149", 254708374149, "600984")
    for party in parties:
        status, ack = await asking.line.push(PHONE, PartyA=party)
        assert (status, ack["ResponseCode"]) == (200, "0"), party
    assert len(await asking.line.prompts(PHONE)) == 3
    assert await asking.line.prompts("254708374149") == []
    bad: tuple[Any, ...] = ("12", "not a number", None, [1])
    for party in bad:
        status, fault = await asking.line.push(PHONE, PartyA=party)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid PartyA"), party


async def test_reversal_takes_an_amount_as_text_and_refuses_what_is_no_amount(asking: Asking) -> None:
    good: tuple[Any, ...] = ("200", "0200", 200)
    receipt = ""
    for amount in good:
        receipt = await asking.money(500)
        assert (await asking.reverse(receipt, amount))[0] == 200
        (result,) = await asking.told("/reversal/result")
        assert (result["ResultCode"], parameters(result)["Amount"]) == (0, 200.0)
    amounts: tuple[Any, ...] = ("", "0", "-1", "200.00", "+200", "2e2", 1.5, True, None, [200])
    for amount in amounts:
        status, fault = await asking.reverse(receipt, amount)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid Amount"), amount


async def test_pull_is_registered_with_a_number_in_any_form(asking: Asking) -> None:
    body: dict[str, Any] = {"RequestType": "Pull", "CallBackURL": "http://x/"}
    numbers: tuple[Any, ...] = ("0722000000", "254722000000", "+254722000000", "722000000", 254722000000)
    for shortcode, number in enumerate(numbers, start=600000):
        body |= {"ShortCode": shortcode, "NominatedNumber": number}
        status, answer = await asking.line.send(body, REGISTER)
        assert (status, answer["ResponseStatus"]) == (200, "1000")
    for bad in ("0822000000", "12", "", None):
        status, fault = await asking.line.send(body | {"NominatedNumber": bad}, REGISTER)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid NominatedNumber")


async def test_pull_dates_are_read_as_the_documentation_writes_them(asking: Asking) -> None:
    await asking.register()
    await asking.money(500)
    start, end = datetime.now(EAT) - timedelta(hours=3), datetime.now(EAT) + timedelta(minutes=2)
    # `2020-08-04 8:36:00` and `2020-08-16 10:10:000` are the portal's own.
    for form in ("%Y-%m-%d %H:%M", "%Y-%m-%d %-H:%M:%S", "%Y-%m-%d %H:%M:000", "%Y-%m-%dT%H:%M:%S"):
        status, page = await asking.pull(StartDate=f"{start:{form}}", EndDate=f"{end:{form}}")
        assert (status, len(page["Response"][0])) == (200, 1), form
    for bad in ("2026-11-23", "23-11-2026 10:00", "2026-13-01 10:00", "2026-11-23 10:61", "2026-11-23 10:00:99", "now"):
        status, fault = await asking.pull(StartDate=bad)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid StartDate"), bad


async def test_status_query_is_taken_in_every_documented_form(asking: Asking) -> None:
    receipt = await asking.money(500)
    spaced = asking.initiated("status", TransactionID=receipt, PartyA=int(SHORTCODE), IdentifierType=4)
    for changes in (
        {"Remarks": "R"},
        {"Remarks": "x" * 100},
        {"Occasion": None},
        {"OriginatorConversationID": "7071-4170-a0e5-8345632bad442144258"},
        {"PartyA": int(SHORTCODE), "IdentifierType": 4},
        {"IdentifierType": "2"},
    ):
        status, ack = await asking.status(receipt, **changes)
        assert (status, ack.get("ResponseCode")) == (200, "0"), (changes, ack)
    # The portal's sample spells the field with a space.
    status, ack = await asking.line.send(spaced | {"Command ID": "TransactionStatusQuery"}, STATUS)
    assert (status, ack["ResponseCode"]) == (200, "0")
    for changes in ({"Remarks": ""}, {"Remarks": "x" * 101}, {"Remarks": None}):
        status, fault = await asking.status(receipt, **changes)
        assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid Remarks")


async def test_status_query_finds_a_push_by_either_spelling_of_its_conversation(asking: Asking) -> None:
    _, ack = await asking.line.push("254700000001")
    await asking.line.ended("254700000001")
    asking.line.receiver.received.clear()
    for name in ("OriginalConversationID", "OriginatorConversationID"):
        await asking.status(None, **{name: ack["MerchantRequestID"]})
        (result,) = await asking.told("/status/result")
        assert parameters(result)["TransactionStatus"] == "Cancelled", name


async def test_reversal_identifier_type_of_either_documentation_is_taken(asking: Asking) -> None:
    for kind in ("11", 11, "4"):
        receipt = await asking.money(500)
        assert (await asking.reverse(receipt, 500, RecieverIdentifierType=kind, Remarks="R"))[0] == 200, kind


# -- what Daraja acknowledges and the documentation forbids ------------------------------------------------------------

SLOPPY: list[dict[str, Any]] = [
    {"TransactionDesc": "Payment for order number 1041"},
    {"AccountReference": "Order number 1041"},
    {"TransactionType": "CustomerPayBillOnline "},
    {"TransactionType": " CustomerPayBillOnline\n"},
]


async def test_sloppy_pushes_are_acknowledged_and_paid(asking: Asking) -> None:
    for number, changes in enumerate(SLOPPY):
        phone = f"25471100010{number}"
        status, ack = await asking.line.push(phone, **changes)
        assert (status, ack["ResponseCode"]) == (200, "0"), changes
        (callback,) = await asking.line.called_back(phone)
        assert callback["ResultCode"] == 0, changes


async def test_strict_simulator_refuses_sloppy_pushes(strict: Asking) -> None:
    for changes in SLOPPY:
        (field,) = changes
        status, fault = await strict.line.push(PHONE, **changes)
        assert (status, fault["errorMessage"]) == (400, f"Bad Request - Invalid {field}"), changes


async def test_prompt_over_182_characters_is_acknowledged_and_ends_with_1025(asking: Asking) -> None:
    text = "Do you want to pay Ksh 7.00 to 174379, account no. ORDER-1? "
    room = 182 - len(text)
    ack: dict[str, Any] = {}
    callback: dict[str, Any] = {}
    for phone, length, code in ((PHONE, room, 0), ("254711000002", room + 1, 1025), ("254700000020", 500, 1025)):
        status, ack = await asking.line.push(phone, TransactionDesc="x" * length)
        assert (status, ack["ResponseCode"]) == (200, "0")
        (callback,) = await asking.line.called_back(phone)
        assert callback["ResultCode"] == code, phone
    assert callback["ResultDesc"] == "An error occurred while sending a push request."
    assert await asking.line.moved("254711000002") == []
    status, answer = await asking.line.query(ack["CheckoutRequestID"])
    assert (status, answer["ResultCode"]) == (200, "1025")


# -- addresses and methods ---------------------------------------------------------------------------------------------

ABSENT = ("/mpesa/b2c/v3/paymentrequest", "/mpesa/stkpush/v1", "/mpesa/c2b/v2/registerurl", "/oauth/v2/token", "/v9/x")
PRESENT = {
    TOKEN.partition("?")[0]: "GET",
    PUSH: "POST",
    QUERY: "POST",
    STATUS: "POST",
    REVERSAL: "POST",
    REGISTER: "POST",
    PULL: "POST",
}


async def test_unknown_addresses_and_methods_are_refused_as_daraja_does(asking: Asking) -> None:
    ids: list[str] = []
    for root, path in [(root, path) for root in ("/simulator", "") for path in ABSENT]:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            body: dict[str, Any] | None = {} if method == "POST" else None
            status, fault = await asking.line.call(method, root + path, body)
            assert (status, fault["errorCode"], fault["errorMessage"]) == (404, "404.001.01", "Resource not found"), (
                path
            )
            ids.append(fault["requestId"])
    for path, own in [*PRESENT.items(), *((path.removeprefix("/simulator"), own) for path, own in PRESENT.items())]:
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {own}:
            status, fault = await asking.line.call(method, path)
            assert (status, fault["errorCode"]) == (405, "405.001"), (method, path)
            ids.append(fault["requestId"])
    assert len(set(ids)) == len(ids)


def test_every_route_is_darajas_or_our_own() -> None:
    paths = {path for route in plugin.routes for path in route.paths}
    own = {path for path in paths if path.removeprefix(ROOT) not in DARAJA}
    assert paths - own == {ROOT + path for path in DARAJA}
    assert {[*path.split("/"), ""][2] for path in own} == OWN


async def test_every_refusal_has_a_request_id_of_its_own(asking: Asking) -> None:
    ids = [(await asking.line.push(PHONE, Amount=0))[1]["requestId"] for _ in range(5)]
    repeated = {"X-Request-ID": "mine", "Authorization": f"Bearer {asking.line.token}"}
    ids += [(await asking.line.call("POST", PUSH, {}, **repeated))[1]["requestId"] for _ in range(5)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{16}", each) for each in ids)


async def test_own_process_answers_at_the_root_too(asking: Asking) -> None:
    line = asking.line
    status, answer = await line.call("GET", TOKEN.removeprefix("/simulator"), Authorization=basic("root"))
    assert status == 200
    line.token = answer["access_token"]
    status, ack = await line.send(line.request(PHONE), PUSH.removeprefix("/simulator"))
    assert status == 200
    await line.called_back(PHONE)
    status, answer = await line.send(
        signed() | {"CheckoutRequestID": ack["CheckoutRequestID"]}, QUERY.removeprefix("/simulator")
    )
    assert (status, answer["ResultCode"]) == (200, "0")


async def test_beside_a_gateway_the_root_is_the_gateways(values: dict[str, Any]) -> None:
    async with receiving() as receiver, running_gateway(values) as (gateway, base):
        line = Line(gateway, base, receiver)
        try:
            for path in ("/oauth/v1/generate", "/mpesa/stkpush/v1/processrequest", "/nowhere"):
                status, answer = await line.call("GET", path)
                assert (status, answer["errors"][0]["code"]) == (404, "NOT_FOUND"), path
            status, fault = await line.call("GET", "/simulator/nowhere")
            assert (status, fault["errorCode"]) == (404, "404.001.01")
            # The control API is ours, and speaks as we do.
            status, answer = await line.call("GET", "/simulator/control/nowhere")
            assert (status, answer["errors"][0]["code"]) == (404, "NOT_FOUND")
        finally:
            await line.close()


# -- tokens ------------------------------------------------------------------------------------------------------------


async def uses(line: Line, key: str) -> list[int]:
    """Thirty calls, six at a time, each with a token of its own; gives their statuses."""
    slots = asyncio.Semaphore(6)

    async def one(number: int) -> int:
        async with slots:
            _, answer = await line.call("GET", TOKEN, Authorization=basic(key))
            bearer = f"Bearer {answer['access_token']}"
            status, _ = await line.call("POST", PUSH, line.request(f"2547110002{number:02}"), Authorization=bearer)
            return status

    return await asyncio.gather(*map(one, range(30)))


async def test_new_token_ends_the_old_one(asking: Asking) -> None:
    first = await asking.line.log_in("mine")
    assert (await asking.line.push(PHONE))[0] == 200
    await asking.line.log_in("mine")
    other = await asking.line.log_in("another")
    asking.line.token = first
    status, fault = await asking.line.push(PHONE)
    assert (status, fault["errorCode"]) == (404, "404.001.03")
    asking.line.token = other
    assert (await asking.line.push(PHONE))[0] == 200


async def test_tokens_stay_valid_side_by_side_where_the_setting_says_so(values: dict[str, Any]) -> None:
    settings = QUICK | {"one_token_per_key": False}
    async with receiving() as receiver, daraja(values | {"simulator": settings}, receiver) as line:
        assert set(await uses(line, "many")) == {200}


async def test_tokens_end_with_their_lifetime(values: dict[str, Any]) -> None:
    clock = SetClock(datetime(2026, 11, 23, 7, 0, tzinfo=UTC))
    settings = QUICK | {"one_token_per_key": False}
    async with receiving() as receiver, daraja(values | {"simulator": settings}, receiver, clock) as line:
        first = await line.log_in("mine")
        clock.advance(timedelta(seconds=3600))
        await line.log_in("mine")
        assert (await line.push(PHONE))[0] == 200
        line.token = first
        assert (await line.push(PHONE))[0] == 404


# -- answers that look like Daraja's -----------------------------------------------------------------------------------


def test_receipts_say_their_day_and_are_all_different() -> None:
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


async def test_identifiers_look_like_darajas(asking: Asking) -> None:
    now = datetime.now(EAT)
    _, ack = await asking.line.push(PHONE)
    assert re.fullmatch(rf"ws_CO_{now:%d%m%Y}[0-9]{{9}}{PHONE[3:]}", ack["CheckoutRequestID"])
    assert re.fullmatch(r"[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{16}", ack["MerchantRequestID"])
    await asking.line.ended(PHONE)
    ((receipt, _),) = await asking.line.moved(PHONE)
    assert re.fullmatch(r"[A-Z][A-L][1-9A-V][A-Z0-9]{7}", receipt)
    asking.line.receiver.received.clear()
    _, ack = await asking.reverse(receipt, 3)
    assert re.fullmatch(rf"AG_{now:%Y%m%d}_[0-9a-f]{{20}}", ack["ConversationID"])
    assert re.fullmatch(r"[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{16}", ack["OriginatorConversationID"])
    (result,) = await asking.told("/reversal/result")
    assert re.fullmatch(r"[A-Z][A-L][1-9A-V][A-Z0-9]{7}", result["TransactionID"])


async def test_pushes_of_one_phone_in_the_same_moment_have_handles_of_their_own(values: dict[str, Any]) -> None:
    clock = SetClock(datetime(2026, 11, 23, 7, 0, tzinfo=UTC))
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver, clock) as line:
        handles = [(await line.push("254700000006"))[1]["CheckoutRequestID"] for _ in range(20)]
        assert len(set(handles)) == 20


async def test_every_parameter_of_a_reversal_result_has_a_value(asking: Asking) -> None:
    kept = await asking.money(300)
    receipt = await asking.money(500)
    await asking.reverse(receipt, 200)
    (result,) = await asking.told("/reversal/result")
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
    assert kept != receipt


async def test_failed_reversal_has_no_parameters_and_a_receipt_of_zeros(asking: Asking) -> None:
    receipt = await asking.money(500)
    for changes in ({"Initiator": "no_role"}, {"TransactionID": "UKN4A1B2C3"}):
        await asking.reverse(receipt, 500, **changes)
        (result,) = await asking.told("/reversal/result")
        assert "ResultParameters" not in result
        assert re.fullmatch(r"[A-Z][A-L][1-9A-V]0000000", result["TransactionID"])


async def test_pull_is_registered_twice_in_the_words_that_were_seen(asking: Asking) -> None:
    _, first = await asking.register()
    _, again = await asking.register()
    assert (first["ResponseStatus"], first["ResponseDescription"]) == ("1000", "Shortcode Registered Successfully")
    assert (again["Response Status"], again["Response Description"]) == ("1001", "ShortCode already Registered")


async def test_strangers_have_receipts_like_everybody(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        daraja(values | {"simulator": QUICK | {"strangers": 10}}, receiver) as line,
    ):
        await line.push(PHONE)

        async def moved() -> list[Any]:
            found: list[Any] = await line.control("GET", "ledger")
            return found

        for entry in await eventually(moved) or []:
            assert re.fullmatch(r"[A-Z][A-L][1-9A-V][A-Z0-9]{7}", entry["receipt"]), entry
