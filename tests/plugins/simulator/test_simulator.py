"""The simulator: phones that do what their number says, a Daraja as strict as the real one, and nothing forgotten."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.daraja.client import DarajaCredentials, NotSent
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import eventually, running_gateway, shop
from mpesa_gateway_payments.operations import STK_PUSH, StkPush
from mpesa_gateway_simulator.outcomes import ANSWERS, BEHAVIOURS, PREFIX
from tests.conftest import Town
from tests.plugins.simulator.line import PUSH, QUERY, QUICK, TOKEN, Line, basic, daraja, metadata, signed


@pytest.fixture
async def line(values: dict[str, Any]) -> AsyncGenerator[Line]:
    """A line to a quick and strict simulator."""
    async with receiving() as receiver, daraja(values | {"simulator": QUICK | {"strict": True}}, receiver) as found:
        yield found


PAYS = {"254700000000": 0, "254711000001": 0, "254708374149": 0, "254700000022": 0, "254700000999": 0}
ENDS = {"001": 1032, "002": 2001, "003": 1, "004": 1037, "005": 1019}
SILENT = ("006", "007")
ODD = ("008", "009", "010", "011", "012", "013", "014", "017", "021")
REFUSED = {
    "015": (400, "400.002.02"),
    "016": (500, "500.003.02"),
    "018": (500, "500.003.1001"),
    "019": (500, "500.001.1001"),
}
ASKS = "020"


def test_every_documented_number_is_tried_below() -> None:
    assert sorted(["000", *ENDS, *SILENT, *ODD, *REFUSED, ASKS]) == sorted(BEHAVIOURS)


@pytest.mark.parametrize("phone", PAYS)
async def test_whoever_pays_is_in_the_ledger_with_the_receipt_that_the_callback_names(line: Line, phone: str) -> None:
    status, ack = await line.push(phone, 250_000)
    assert (status, ack["ResponseCode"]) == (200, "0")
    (callback,) = await line.called_back(phone)
    assert (callback["ResultCode"], callback["CheckoutRequestID"]) == (0, ack["CheckoutRequestID"])
    assert callback["MerchantRequestID"] == ack["MerchantRequestID"]
    ((receipt, amount),) = await line.moved(phone)
    assert amount == 250_000
    told = metadata(callback)
    at = told.pop("TransactionDate")
    assert told == {"Amount": 250_000.0, "MpesaReceiptNumber": receipt, "PhoneNumber": int(phone)}
    assert abs(datetime.now(UTC) + timedelta(hours=3) - datetime.strptime(f"{at}+0000", "%Y%m%d%H%M%S%z")) < timedelta(
        minutes=1
    )
    assert b'"Value":250000.00' in line.receiver.received[0].body
    prompt = await line.prompt(phone)
    assert (prompt["state"], prompt["result_code"], prompt["receipt"]) == ("ended", "0", receipt)
    assert (prompt["reference"], prompt["description"], prompt["shortcode"]) == ("ORDER-1", "Order 1", "174379")
    assert "callback_url" not in prompt


async def test_whoever_does_not_pay_says_why_and_nothing_moves(line: Line) -> None:
    for digits, code in ENDS.items():
        phone = PREFIX + digits
        assert (await line.push(phone))[0] == 200
        (callback,) = await line.called_back(phone)
        assert callback["ResultCode"] == code, digits
        assert "CallbackMetadata" not in callback, digits
        assert (await line.prompt(phone))["result_code"] == str(code)
        assert await line.moved(phone) == [], digits


async def test_006_never_answers_and_nobody_calls_back(line: Line) -> None:
    phone = PREFIX + "006"
    _, ack = await line.push(phone)
    await asyncio.sleep(0.2)
    assert (await line.prompt(phone))["state"] == "open"
    status, fault = await line.query(ack["CheckoutRequestID"])
    assert (status, fault["errorCode"]) == (500, "500.001.1001")
    assert "being processed" in fault["errorMessage"]
    assert (await line.ended(phone))["result_code"] == "1037"
    await line.quiet()
    assert (line.callbacks(phone), await line.moved(phone)) == ([], [])
    status, answer = await line.query(ack["CheckoutRequestID"])
    assert (status, answer["ResultCode"]) == (200, "1037")


async def test_007_pays_and_only_asking_tells(line: Line) -> None:
    phone = PREFIX + "007"
    _, ack = await line.push(phone, 40)
    await line.ended(phone)
    await line.quiet()
    assert line.callbacks(phone) == []
    ((receipt, amount),) = await line.moved(phone)
    assert amount == 40
    status, answer = await line.query(ack["CheckoutRequestID"])
    assert (status, answer["ResultCode"], answer["ResponseCode"]) == (200, "0", "0")
    assert receipt not in str(answer)


async def test_008_pays_and_the_callback_comes_late(line: Line) -> None:
    phone = PREFIX + "008"
    await line.control("PATCH", "knobs", {"late_delay": 600})
    await line.push(phone)
    ended = datetime.fromisoformat((await line.ended(phone))["ended_at"])
    assert len(await line.moved(phone)) == 1
    await line.quiet()
    assert line.callbacks(phone) == []
    assert await line.gateway.db.fetchval("SELECT due_at FROM sim_callback") >= ended + timedelta(seconds=600)
    await line.gateway.db.execute("UPDATE sim_callback SET due_at = now()")
    await line.called_back(phone)


async def test_009_pays_once_and_the_callback_comes_twice(line: Line) -> None:
    phone = PREFIX + "009"
    await line.push(phone)
    one, two = await line.called_back(phone, 2)
    assert one == two
    assert len(await line.moved(phone)) == 1


async def test_010_pays_and_the_callback_comes_before_the_ack(line: Line) -> None:
    phone = PREFIX + "010"
    line.receiver.delay = 0.2
    status, ack = await line.push(phone)
    (callback,) = line.callbacks(phone)
    assert (status, callback["CheckoutRequestID"]) == (200, ack["CheckoutRequestID"])
    assert await line.called_back(phone) == [callback]
    assert [receipt for receipt, _ in await line.moved(phone)] == [metadata(callback)["MpesaReceiptNumber"]]


async def test_011_pays_and_the_callback_says_another_amount(line: Line) -> None:
    phone = PREFIX + "011"
    await line.push(phone, 40)
    (callback,) = await line.called_back(phone)
    assert metadata(callback)["Amount"] == 41
    assert [amount for _, amount in await line.moved(phone)] == [40]


async def test_012_pays_and_the_callback_has_no_metadata(line: Line) -> None:
    phone = PREFIX + "012"
    await line.push(phone)
    (callback,) = await line.called_back(phone)
    assert callback["ResultCode"] == 0
    assert "CallbackMetadata" not in callback
    assert len(await line.moved(phone)) == 1


async def test_013_pays_and_the_callback_has_its_values_as_text(line: Line) -> None:
    phone = PREFIX + "013"
    await line.push(phone, 40)
    (callback,) = await line.called_back(phone)
    told = metadata(callback)
    assert (told["Amount"], told["PhoneNumber"]) == ("40.00", phone)
    assert [(told["MpesaReceiptNumber"], 40)] == await line.moved(phone)


async def test_021_pays_and_nobody_ever_says_so(line: Line) -> None:
    phone = PREFIX + "021"
    status, page = await line.push(phone)
    assert (status, "<html>" in page) == (500, True)
    ((_, amount),) = await eventually(lambda: line.moved(phone))
    assert amount == 7
    await line.quiet()
    assert line.callbacks(phone) == []


async def test_014_pays_though_the_push_is_answered_with_a_page(line: Line) -> None:
    phone = PREFIX + "014"
    status, page = await line.push(phone)
    assert status == 500
    assert "<html>" in page
    (callback,) = await line.called_back(phone)
    assert callback["ResultCode"] == 0
    assert callback["CheckoutRequestID"] == (await line.prompt(phone))["checkout_request_id"]
    assert len(await line.moved(phone)) == 1


async def test_017_pays_and_the_push_is_answered_slowly(line: Line) -> None:
    phone = PREFIX + "017"
    began = asyncio.get_running_loop().time()
    status, _ = await line.push(phone)
    assert asyncio.get_running_loop().time() - began >= QUICK["slow_answer"]
    assert status == 200
    await line.called_back(phone)
    assert len(await line.moved(phone)) == 1


async def test_what_daraja_refuses_is_never_asked_of_the_phone(line: Line) -> None:
    for digits, expected in REFUSED.items():
        phone = PREFIX + digits
        status, fault = await line.push(phone)
        assert (status, fault["errorCode"]) == expected
        assert set(fault) == {"requestId", "errorCode", "errorMessage"}
        assert (await line.prompts(phone), await line.moved(phone)) == ([], [])
    await line.quiet()
    assert line.receiver.received == []


async def test_020_waits_for_an_answer_by_hand(line: Line) -> None:
    phone = PREFIX + ASKS
    await line.control("PATCH", "knobs", {"prompt_timeout": 60})
    for number, (answer, code) in enumerate(ANSWERS.items(), start=1):
        _, ack = await line.push(phone)
        handle = ack["CheckoutRequestID"]
        await line.quiet()
        assert (await line.control("GET", f"pushes/{handle}"))["state"] == "open"
        shown = await line.control("POST", f"pushes/{handle}/answer", {"answer": answer})
        assert (shown["state"], shown["result_code"]) == ("ended", code)
        assert (await line.called_back(phone, number))[-1]["ResultCode"] == int(code)
        status, _ = await line.call("POST", f"/simulator/control/pushes/{handle}/answer", {"answer": "pay"})
        assert status == 409
    assert len(await line.moved(phone)) == 1
    for method, path, body in (("POST", "answer", {"answer": "pay"}), ("POST", "callback", None)):
        assert (await line.call(method, f"/simulator/control/pushes/ws_CO_none/{path}", body))[0] == 404
    await line.control("PATCH", "knobs", {"prompt_timeout": 0.1})
    await line.push(phone)
    assert (await line.called_back(phone, len(ANSWERS) + 1))[-1]["ResultCode"] == 1037


async def test_the_public_table_is_the_table_of_behaviours(line: Line) -> None:
    status, answer = await line.call("GET", "/simulator/outcomes")
    assert status == 200
    told = {row["phone"]: (row["name"], row["summary"]) for row in answer["data"]}
    assert told == {PREFIX + digits: (one.name, one.summary) for digits, one in BEHAVIOURS.items()}


INVALID_AMOUNTS: tuple[Any, ...] = (0, -1, 250_001, 1.5, "1.5", "", "+7", "\u0667", True, [7], {"KES": 7}, None)
INVALID_FIELDS: list[tuple[str, Any]] = [
    *(("Amount", value) for value in INVALID_AMOUNTS),
    *(("Timestamp", value) for value in ("2026112310151", "202611231015120", "20261323101512", "2026-11-23", None)),
    *(("PhoneNumber", value) for value in ("0711000001", "254811000001", "25471100000", "+254711000001", None)),
    *(("PartyA", value) for value in ("12", "0711000001", None)),
    *(("PartyB", value) for value in ("174380", "1743", "till", None)),
    *(("TransactionType", value) for value in ("CustomerPayBill", 5, None)),
    *(("CallBackURL", value) for value in ("example.com/x", "ftp://127.0.0.1/x", "", "https://", None)),
    *(("AccountReference", value) for value in ("x" * 13, "", None, ["x"])),
    ("TransactionDesc", "x" * 14),
    *(("BusinessShortCode", value) for value in ("1743", "12345678", "shop", None)),
    *(("Password", value) for value in ("not base64!", None)),
]


async def test_each_field_that_daraja_would_refuse_is_refused_by_name(line: Line) -> None:
    taken: list[tuple[str, Any, Any]] = []
    for field, value in INVALID_FIELDS:
        status, answer = await line.push("254711000001", **{field: value})
        expected = {"errorCode": "400.002.02", "errorMessage": f"Bad Request - Invalid {field}"}
        if status != 400 or answer | expected != answer:
            taken.append((field, value, answer))
    assert taken == []
    assert await line.prompts("254711000001") == []


async def test_what_lies_just_inside_the_limits_is_taken(line: Line) -> None:
    good: list[dict[str, Any]] = [
        *({"Amount": amount} for amount in (1, 250_000, "7")),
        {"AccountReference": "x" * 12, "TransactionDesc": "x" * 13},
        {"TransactionDesc": ""},
        {"PartyA": 254711000001, "PhoneNumber": 254711000001, "PartyB": 174379},
        {"TransactionType": "CustomerBuyGoodsOnline", "PartyB": "5123456"},
        signed("600123", "a passkey of another shortcode") | {"PartyB": "600123"},
    ]
    for changes in good:
        status, answer = await line.push("254711000001", **changes)
        assert status == 200, (changes, answer)
    without = line.request("254711000001", 7)
    del without["TransactionDesc"]
    assert (await line.send(without))[0] == 200
    assert len(await line.prompts("254711000001")) == len(good) + 1


async def test_a_wrong_password_is_refused_for_pushes_and_queries(line: Line) -> None:
    wrong = [
        signed(passkey="wrong"),
        signed(passkey=""),
        signed("174379", at="20261123101512") | {"Timestamp": "20261123101513"},
        signed("600123") | {"BusinessShortCode": "174379"},
    ]
    for changes in wrong:
        for path in (PUSH, QUERY):
            status, fault = await line.send(line.request("254711000001", **changes), path)
            refused = (status, fault["errorCode"], fault["errorMessage"])
            assert refused == (500, "500.001.1001", "Wrong credentials"), changes


async def test_what_is_no_json_object_is_an_invalid_payload(line: Line) -> None:
    bodies: tuple[Any, ...] = ([], "text", 5)
    for body in bodies:
        status, fault = await line.send(body)
        assert (status, fault["errorCode"]) == (400, "400.002.05")


async def test_callbacks_without_tls_can_be_refused_as_in_live(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        daraja(values | {"simulator": QUICK | {"https_callbacks": True}}, receiver) as line,
    ):
        status, fault = await line.push("254711000001")
        assert (status, fault["errorCode"], fault["errorMessage"]) == (
            400,
            "400.002.02",
            "Bad Request - Invalid CallBackURL",
        )
        assert (await line.push(PREFIX + "007", CallBackURL="https://127.0.0.1:9/x"))[0] == 200


async def test_a_phone_with_an_open_prompt_can_be_locked_as_in_live(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        daraja(values | {"simulator": QUICK | {"lock_subscriber": True}}, receiver) as line,
    ):
        assert (await line.push(PREFIX + "006"))[0] == 200
        status, fault = await line.push(PREFIX + "006")
        assert (status, fault["errorCode"]) == (500, "500.001.1001")
        assert "Unable to lock subscriber" in fault["errorMessage"]
        assert (await line.push(PREFIX + "007"))[0] == 200
        await line.ended(PREFIX + "006")
        assert (await line.push(PREFIX + "006"))[0] == 200


async def test_tokens_want_the_right_words(line: Line) -> None:
    bad: list[tuple[dict[str, str], str, str]] = [
        ({}, TOKEN, "400.008.01"),
        ({"Authorization": "Bearer x"}, TOKEN, "400.008.01"),
        ({"Authorization": "Basic !!"}, TOKEN, "400.008.01"),
        ({"Authorization": basic("")}, TOKEN, "400.008.01"),
        ({"Authorization": basic("key", "")}, TOKEN, "400.008.01"),
        ({"Authorization": basic("wrong-key")}, TOKEN, "400.008.01"),
        ({"Authorization": basic("key")}, TOKEN.partition("?")[0], "400.008.02"),
        ({"Authorization": basic("key")}, TOKEN.replace("client_credentials", "password"), "400.008.02"),
    ]
    for headers, path, code in bad:
        status, fault = await line.call("GET", path, **headers)
        assert (status, fault["errorCode"]) == (400, code), headers
    status, answer = await line.call("GET", TOKEN, Authorization=basic("key"))
    assert (status, answer["expires_in"]) == (200, "3599")


async def test_a_new_token_invalidates_the_one_before_but_nobody_elses(line: Line) -> None:
    first = line.token
    second = await line.log_in()
    other = await line.log_in("key-of-another-shop")
    assert len({first, second, other}) == 3
    for token, expected in ((first, 404), (second, 200), (other, 200), ("invented", 404)):
        line.token = token
        status, answer = await line.push("254711000001")
        assert status == expected
        assert expected == 200 or answer["errorCode"] == "404.001.03"
        assert ((await line.query("ws_CO_none"))[1]["errorCode"] == "404.001.03") is (expected == 404)


async def test_a_token_lives_for_as_long_as_it_says(values: dict[str, Any]) -> None:
    clock = SetClock(datetime.now(UTC))
    async with receiving() as receiver, daraja(values, receiver, clock) as line:
        clock.advance(timedelta(seconds=3598))
        assert (await line.query("ws_CO_none"))[1]["errorMessage"] == "The transaction does not exist"
        clock.advance(timedelta(seconds=1))
        status, fault = await line.query("ws_CO_none")
        assert (status, fault["errorCode"]) == (404, "404.001.03")


@pytest.mark.parametrize("restarts", [1, 2])
async def test_what_a_restart_interrupted_is_still_called_back_once(values: dict[str, Any], restarts: int) -> None:
    values |= {"simulator": QUICK | {"callback_delay": 0.5}}
    phone = "254711000001"
    async with receiving() as receiver:
        async with daraja(values, receiver) as line:
            _, ack = await line.push(phone, 40)
            assert receiver.received == []
        for _ in range(restarts):
            async with daraja(values, receiver) as line:
                assert (await line.called_back(phone))[0]["CheckoutRequestID"] == ack["CheckoutRequestID"]
                assert [amount for _, amount in await line.moved(phone)] == [40]


async def test_a_callback_that_is_not_taken_is_tried_again_and_not_for_ever(line: Line) -> None:
    phone = "254711000001"
    line.receiver.answer = lambda _, number: 200 if number == 2 else 500
    await line.push(phone)
    one, two = await line.called_back(phone, 2)
    assert one == two
    line.receiver.answer, line.receiver.status = None, 503
    await line.push("254711000002")

    async def tried_thrice() -> bool:
        return len(line.callbacks("254711000002")) == 3

    await eventually(tried_thrice)
    await line.quiet()
    assert await tried_thrice()


async def test_a_callback_can_be_made_once_more_and_says_how_it_was_answered(line: Line) -> None:
    phone = "254711000001"
    _, ack = await line.push(phone)
    (first,) = await line.called_back(phone)
    line.receiver.status = 418
    assert await line.control("POST", f"pushes/{ack['CheckoutRequestID']}/callback") == {"status": 418}
    assert line.callbacks(phone)[1] == first


async def test_a_fault_is_played_as_often_as_it_was_ordered(line: Line) -> None:
    await line.control("POST", "faults", {"operation": "stkpush", "fault": "500.003.02", "times": 2})
    answers = [await line.push("254711000001") for _ in range(3)]
    assert [status for status, _ in answers] == [500, 500, 200]
    assert [answer.get("errorCode") for _, answer in answers] == ["500.003.02", "500.003.02", None]
    handle = answers[2][1]["CheckoutRequestID"]
    await line.control("POST", "faults", {"operation": "stkquery", "fault": "500.003.03"})
    assert (await line.query(handle))[1]["errorCode"] == "500.003.03"
    await line.control("POST", "faults", {"operation": "oauth", "fault": "400.008.01", "times": 5})
    assert (await line.call("GET", TOKEN, Authorization=basic("key")))[0] == 400
    await line.control("POST", "reset")
    assert (await line.call("GET", TOKEN, Authorization=basic("key")))[0] == 200
    assert (await line.prompts("254711000001"), await line.control("GET", "ledger")) == ([], [])


async def test_every_phone_can_be_told_what_to_do_but_those_that_are_listed(line: Line) -> None:
    await line.control("PATCH", "habits", {"stkpush": "cancels"})
    for phone in ("254711000071", f"{PREFIX}000"):
        await line.push(phone)
    (told,) = await line.called_back("254711000071")
    (listed,) = await line.called_back(f"{PREFIX}000")
    assert (told["ResultCode"], listed["ResultCode"]) == (1032, 0)
    await line.control("PATCH", "habits", {"stkpush": "normal"})
    await line.push("254711000072")
    (pays,) = await line.called_back("254711000072")
    assert pays["ResultCode"] == 0


async def test_callbacks_can_overtake_each_other(line: Line) -> None:
    await line.control("PATCH", "knobs", {"callback_jitter": 1.5, "seed": 7})
    phones = [f"2547110001{number:02}" for number in range(12)]
    for phone in phones:
        await line.push(phone)
    for phone in phones:
        await line.called_back(phone)
    came = [one.path.rpartition("/")[2] for one in line.receiver.received]
    assert sorted(came) == phones
    assert came != phones


async def test_a_knob_that_does_not_exist_is_refused(line: Line) -> None:
    bad: list[tuple[str, str, Any]] = [
        ("PATCH", "knobs", {"callback_delay": -1}),
        ("PATCH", "knobs", {"weather": 1}),
        ("PATCH", "habits", {"stkpush": "sings"}),
        ("POST", "faults", {"operation": "stkpush", "fault": "1"}),
        ("POST", "faults", {"operation": "b2c", "fault": "500.003.02"}),
        ("GET", "pushes?state=lost", None),
        ("GET", "pushes?colour=red", None),
        ("GET", "ledger?limit=0", None),
    ]
    for method, path, body in bad:
        assert (await line.call(method, f"/simulator/control/{path}", body))[0] == 422, (path, body)


async def test_beside_a_live_merchant_it_runs(values: dict[str, Any]) -> None:
    """Live traffic cannot reach it, so it serves the sandbox of the same gateway."""
    values["worker"] = {"in_process": False}
    gateway = Gateway(GatewayConfig.from_values(values))
    async with gateway.running():
        merchant = await gateway.merchants.create("Real money", actor="test")
        await gateway.merchants.set_envs(merchant.merchant_id, ["live"])
    async with gateway.running():
        assert gateway.is_running


async def test_live_traffic_that_is_led_to_a_simulator_gets_no_token_and_sends_no_payment(
    values: dict[str, Any],
) -> None:
    """A proxy can hide the simulator's path; its answers still say what it is."""
    async with running_gateway(values) as (gateway, base):
        live = DarajaCredentials(
            env="live",
            consumer_key=Secret("key"),
            consumer_secret=Secret("secret"),
            shortcode="600001",
            passkey=Secret("p"),
        )
        # As behind a proxy: no start-up check can know.
        gateway.daraja._config = msgspec.structs.replace(  # pyright: ignore[reportPrivateUsage]
            gateway.config.daraja, live_url=f"{base}/simulator"
        )
        with pytest.raises(NotSent, match="leads to a simulator"):
            await gateway.daraja.verify(live)
        push = StkPush(
            amount=Kes(5),
            phone=Msisdn.parse("254711000001"),
            callback_url="https://pay.example.co.ke/x",
            account_reference="R",
            description="D",
        )
        with pytest.raises(NotSent):
            await gateway.daraja.call(STK_PUSH, live, push)
        assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 0


ELSEWHERE: list[tuple[str, dict[str, str]]] = [
    ("POST", {"Host": "evil.example"}),
    ("GET", {"Host": "evil.example"}),
    ("GET", {"Host": "127.0.0.1.evil.example"}),
    ("GET", {"Host": "[::1"}),
    ("GET", {"Host": ""}),
    ("POST", {"Origin": "https://evil.example"}),
    ("POST", {"Origin": "null"}),
    ("POST", {"Origin": "http://127.0.0.1:1"}),
    ("POST", {"Sec-Fetch-Site": "cross-site"}),
    ("POST", {"Sec-Fetch-Site": "same-site"}),
]
"""Requests that a page of another site makes a browser send."""


async def test_pages_of_other_sites_cannot_turn_the_knobs(town: Town) -> None:
    for method, headers in ELSEWHERE:
        path = "/simulator/control/reset" if method == "POST" else "/simulator/control/ledger"
        answer = await town.api.call(method, path, headers=headers)
        assert answer.status in {400, 403}, headers
        assert "simulator" in str(answer.body) or answer.status == 400


CONTROL = [
    ("POST", "/simulator/control/reset"),
    ("POST", "/simulator/control/faults"),
    ("POST", "/simulator/control/ledger"),
    ("PATCH", "/simulator/control/knobs"),
    ("PATCH", "/simulator/control/habits"),
    ("POST", "/simulator/control/pushes/ws_CO_1/answer"),
    ("POST", "/simulator/control/pushes/ws_CO_1/callback"),
    ("POST", "/simulator/control/pushes/ws_CO_1/forge"),
    ("POST", "/simulator/touch"),
    ("POST", "/simulator/hold"),
    ("POST", "/simulator/let-go"),
    ("POST", "/simulator/turn"),
]


@pytest.mark.parametrize(("method", "path"), CONTROL)
async def test_every_act_refuses_pages_of_other_sites_whatever_type_they_send(
    town: Town, method: str, path: str
) -> None:
    """A form and ``fetch`` without CORS can send these types across sites."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
            {"Host": "evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            answer = await town.api.call(method, path, raw=b"{}", headers=headers | {"Content-Type": kind})
            assert answer.status == 403, (kind, headers)


@pytest.mark.parametrize("headers", [{}, {"Host": "localhost:1"}, {"Sec-Fetch-Site": "same-origin"}])
async def test_tools_and_our_own_pages_can(town: Town, headers: dict[str, str]) -> None:
    assert (await town.api.call("POST", "/simulator/control/reset", headers=headers)).status == 200


async def test_a_listed_host_name_is_ours(values: dict[str, Any]) -> None:
    values["simulator"] |= {"hosts": ["Daraja.Internal"]}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        answer = await api.call("POST", "/simulator/control/reset", headers={"Host": "daraja.internal:8080"})
        assert answer.status == 200
