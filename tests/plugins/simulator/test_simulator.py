"""Protects the simulator: phones act by their number, requests are validated, callbacks survive a restart."""

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
from tests.conftest import Harness
from tests.plugins.simulator.daraja_client import (
    PUSH,
    QUERY,
    QUICK,
    TOKEN,
    DarajaClient,
    basic,
    daraja,
    metadata,
    signed,
)


@pytest.fixture
async def client(values: dict[str, Any]) -> AsyncGenerator[DarajaClient]:
    """A client of a strict simulator with short delays."""
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


def test_documented_numbers_all_have_a_test() -> None:
    assert sorted(["000", *ENDS, *SILENT, *ODD, *REFUSED, ASKS]) == sorted(BEHAVIOURS)


@pytest.mark.parametrize("phone", PAYS)
async def test_phone_that_pays_is_in_the_ledger_with_the_receipt_of_its_callback(
    client: DarajaClient, phone: str
) -> None:
    status, ack = await client.push(phone, 250_000)
    assert (status, ack["ResponseCode"]) == (200, "0")
    (callback,) = await client.called_back(phone)
    assert (callback["ResultCode"], callback["CheckoutRequestID"]) == (0, ack["CheckoutRequestID"])
    assert callback["MerchantRequestID"] == ack["MerchantRequestID"]
    ((receipt, amount),) = await client.moved(phone)
    assert amount == 250_000
    content = metadata(callback)
    at = content.pop("TransactionDate")
    assert content == {"Amount": 250_000.0, "MpesaReceiptNumber": receipt, "PhoneNumber": int(phone)}
    assert abs(datetime.now(UTC) + timedelta(hours=3) - datetime.strptime(f"{at}+0000", "%Y%m%d%H%M%S%z")) < timedelta(
        minutes=1
    )
    assert b'"Value":250000.00' in client.receiver.received[0].body
    prompt = await client.prompt(phone)
    assert (prompt["state"], prompt["result_code"], prompt["receipt"]) == ("ended", "0", receipt)
    assert (prompt["reference"], prompt["description"], prompt["shortcode"]) == ("ORDER-1", "Order 1", "174379")
    assert "callback_url" not in prompt


async def test_phone_that_does_not_pay_sends_its_code_and_moves_no_money(client: DarajaClient) -> None:
    for digits, code in ENDS.items():
        phone = PREFIX + digits
        assert (await client.push(phone))[0] == 200
        (callback,) = await client.called_back(phone)
        assert callback["ResultCode"] == code, digits
        assert "CallbackMetadata" not in callback, digits
        assert (await client.prompt(phone))["result_code"] == str(code)
        assert await client.moved(phone) == [], digits


async def test_phone_006_ends_with_1037_and_no_callback(client: DarajaClient) -> None:
    phone = PREFIX + "006"
    _, ack = await client.push(phone)
    await asyncio.sleep(0.2)
    assert (await client.prompt(phone))["state"] == "open"
    status, fault = await client.query(ack["CheckoutRequestID"])
    assert (status, fault["errorCode"]) == (500, "500.001.1001")
    assert "being processed" in fault["errorMessage"]
    assert (await client.ended(phone))["result_code"] == "1037"
    await client.quiet()
    assert (client.callbacks(phone), await client.moved(phone)) == ([], [])
    status, answer = await client.query(ack["CheckoutRequestID"])
    assert (status, answer["ResultCode"]) == (200, "1037")


async def test_phone_007_pays_without_callback_and_answers_a_query(client: DarajaClient) -> None:
    phone = PREFIX + "007"
    _, ack = await client.push(phone, 40)
    await client.ended(phone)
    await client.quiet()
    assert client.callbacks(phone) == []
    ((receipt, amount),) = await client.moved(phone)
    assert amount == 40
    status, answer = await client.query(ack["CheckoutRequestID"])
    assert (status, answer["ResultCode"], answer["ResponseCode"]) == (200, "0", "0")
    assert receipt not in str(answer)


async def test_phone_008_pays_with_a_late_callback(client: DarajaClient) -> None:
    phone = PREFIX + "008"
    await client.control("PATCH", "knobs", {"late_delay": 600})
    await client.push(phone)
    ended = datetime.fromisoformat((await client.ended(phone))["ended_at"])
    assert len(await client.moved(phone)) == 1
    await client.quiet()
    assert client.callbacks(phone) == []
    assert await client.gateway.db.fetchval("SELECT due_at FROM sim_callback") >= ended + timedelta(seconds=600)
    await client.gateway.db.execute("UPDATE sim_callback SET due_at = now()")
    await client.called_back(phone)


async def test_phone_009_pays_once_with_two_callbacks(client: DarajaClient) -> None:
    phone = PREFIX + "009"
    await client.push(phone)
    one, two = await client.called_back(phone, 2)
    assert one == two
    assert len(await client.moved(phone)) == 1


async def test_phone_010_pays_with_a_callback_before_the_ack(client: DarajaClient) -> None:
    phone = PREFIX + "010"
    client.receiver.delay = 0.2
    status, ack = await client.push(phone)
    (callback,) = client.callbacks(phone)
    assert (status, callback["CheckoutRequestID"]) == (200, ack["CheckoutRequestID"])
    assert await client.called_back(phone) == [callback]
    assert [receipt for receipt, _ in await client.moved(phone)] == [metadata(callback)["MpesaReceiptNumber"]]


async def test_phone_011_pays_with_another_amount_in_the_callback(client: DarajaClient) -> None:
    phone = PREFIX + "011"
    await client.push(phone, 40)
    (callback,) = await client.called_back(phone)
    assert metadata(callback)["Amount"] == 41
    assert [amount for _, amount in await client.moved(phone)] == [40]


async def test_phone_012_pays_with_a_callback_without_metadata(client: DarajaClient) -> None:
    phone = PREFIX + "012"
    await client.push(phone)
    (callback,) = await client.called_back(phone)
    assert callback["ResultCode"] == 0
    assert "CallbackMetadata" not in callback
    assert len(await client.moved(phone)) == 1


async def test_phone_013_pays_with_text_values_in_the_callback(client: DarajaClient) -> None:
    phone = PREFIX + "013"
    await client.push(phone, 40)
    (callback,) = await client.called_back(phone)
    content = metadata(callback)
    assert (content["Amount"], content["PhoneNumber"]) == ("40.00", phone)
    assert [(content["MpesaReceiptNumber"], 40)] == await client.moved(phone)


async def test_phone_021_pays_without_ack_and_without_callback(client: DarajaClient) -> None:
    phone = PREFIX + "021"
    status, page = await client.push(phone)
    assert (status, "<html>" in page) == (500, True)
    ((_, amount),) = await eventually(lambda: client.moved(phone))
    assert amount == 7
    await client.quiet()
    assert client.callbacks(phone) == []


async def test_phone_014_pays_with_an_html_page_as_ack(client: DarajaClient) -> None:
    phone = PREFIX + "014"
    status, page = await client.push(phone)
    assert status == 500
    assert "<html>" in page
    (callback,) = await client.called_back(phone)
    assert callback["ResultCode"] == 0
    assert callback["CheckoutRequestID"] == (await client.prompt(phone))["checkout_request_id"]
    assert len(await client.moved(phone)) == 1


async def test_phone_017_pays_with_a_slow_ack(client: DarajaClient) -> None:
    phone = PREFIX + "017"
    began = asyncio.get_running_loop().time()
    status, _ = await client.push(phone)
    assert asyncio.get_running_loop().time() - began >= QUICK["slow_answer"]
    assert status == 200
    await client.called_back(phone)
    assert len(await client.moved(phone)) == 1


async def test_push_refused_by_daraja_shows_no_prompt(client: DarajaClient) -> None:
    for digits, expected in REFUSED.items():
        phone = PREFIX + digits
        status, fault = await client.push(phone)
        assert (status, fault["errorCode"]) == expected
        assert set(fault) == {"requestId", "errorCode", "errorMessage"}
        assert (await client.prompts(phone), await client.moved(phone)) == ([], [])
    await client.quiet()
    assert client.receiver.received == []


async def test_phone_020_waits_for_an_answer_by_hand(client: DarajaClient) -> None:
    phone = PREFIX + ASKS
    await client.control("PATCH", "knobs", {"prompt_timeout": 60})
    for number, (answer, code) in enumerate(ANSWERS.items(), start=1):
        _, ack = await client.push(phone)
        handle = ack["CheckoutRequestID"]
        await client.quiet()
        assert (await client.control("GET", f"pushes/{handle}"))["state"] == "open"
        shown = await client.control("POST", f"pushes/{handle}/answer", {"answer": answer})
        assert (shown["state"], shown["result_code"]) == ("ended", code)
        assert (await client.called_back(phone, number))[-1]["ResultCode"] == int(code)
        status, _ = await client.call("POST", f"/simulator/control/pushes/{handle}/answer", {"answer": "pay"})
        assert status == 409
    assert len(await client.moved(phone)) == 1
    for method, path, body in (("POST", "answer", {"answer": "pay"}), ("POST", "callback", None)):
        assert (await client.call(method, f"/simulator/control/pushes/ws_CO_none/{path}", body))[0] == 404
    await client.control("PATCH", "knobs", {"prompt_timeout": 0.1})
    await client.push(phone)
    assert (await client.called_back(phone, len(ANSWERS) + 1))[-1]["ResultCode"] == 1037


async def test_outcomes_route_lists_all_behaviours(client: DarajaClient) -> None:
    status, answer = await client.call("GET", "/simulator/outcomes")
    assert status == 200
    content = {row["phone"]: (row["name"], row["summary"]) for row in answer["data"]}
    assert content == {PREFIX + digits: (one.name, one.summary) for digits, one in BEHAVIOURS.items()}


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


async def test_push_with_a_bad_field_names_the_field(client: DarajaClient) -> None:
    taken: list[tuple[str, Any, Any]] = []
    for field, value in INVALID_FIELDS:
        status, answer = await client.push("254711000001", **{field: value})
        expected = {"errorCode": "400.002.02", "errorMessage": f"Bad Request - Invalid {field}"}
        if status != 400 or answer | expected != answer:
            taken.append((field, value, answer))
    assert taken == []
    assert await client.prompts("254711000001") == []


async def test_push_with_fields_at_their_limits_is_accepted(client: DarajaClient) -> None:
    good: list[dict[str, Any]] = [
        *({"Amount": amount} for amount in (1, 250_000, "7")),
        {"AccountReference": "x" * 12, "TransactionDesc": "x" * 13},
        {"TransactionDesc": ""},
        {"PartyA": 254711000001, "PhoneNumber": 254711000001, "PartyB": 174379},
        {"TransactionType": "CustomerBuyGoodsOnline", "PartyB": "5123456"},
        signed("600123", "a passkey of another shortcode") | {"PartyB": "600123"},
    ]
    for changes in good:
        status, answer = await client.push("254711000001", **changes)
        assert status == 200, (changes, answer)
    without = client.request("254711000001", 7)
    del without["TransactionDesc"]
    assert (await client.send(without))[0] == 200
    assert len(await client.prompts("254711000001")) == len(good) + 1


async def test_push_or_query_with_a_wrong_password_is_refused(client: DarajaClient) -> None:
    wrong = [
        signed(passkey="wrong"),
        signed(passkey=""),
        signed("174379", at="20261123101512") | {"Timestamp": "20261123101513"},
        signed("600123") | {"BusinessShortCode": "174379"},
    ]
    for changes in wrong:
        for path in (PUSH, QUERY):
            status, fault = await client.send(client.request("254711000001", **changes), path)
            refused = (status, fault["errorCode"], fault["errorMessage"])
            assert refused == (500, "500.001.1001", "Wrong credentials"), changes


async def test_push_without_a_json_object_is_an_invalid_payload(client: DarajaClient) -> None:
    bodies: tuple[Any, ...] = ([], "text", 5)
    for body in bodies:
        status, fault = await client.send(body)
        assert (status, fault["errorCode"]) == (400, "400.002.05")


async def test_push_with_an_http_callback_url_is_refused_if_set(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        daraja(values | {"simulator": QUICK | {"https_callbacks": True}}, receiver) as client,
    ):
        status, fault = await client.push("254711000001")
        assert (status, fault["errorCode"], fault["errorMessage"]) == (
            400,
            "400.002.02",
            "Bad Request - Invalid CallBackURL",
        )
        assert (await client.push(PREFIX + "007", CallBackURL="https://127.0.0.1:9/x"))[0] == 200


async def test_push_to_a_phone_with_an_open_prompt_is_refused_if_set(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        daraja(values | {"simulator": QUICK | {"lock_subscriber": True}}, receiver) as client,
    ):
        assert (await client.push(PREFIX + "006"))[0] == 200
        status, fault = await client.push(PREFIX + "006")
        assert (status, fault["errorCode"]) == (500, "500.001.1001")
        assert "Unable to lock subscriber" in fault["errorMessage"]
        assert (await client.push(PREFIX + "007"))[0] == 200
        await client.ended(PREFIX + "006")
        assert (await client.push(PREFIX + "006"))[0] == 200


async def test_token_with_bad_credentials_or_grant_type_is_refused(client: DarajaClient) -> None:
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
        status, fault = await client.call("GET", path, **headers)
        assert (status, fault["errorCode"]) == (400, code), headers
    status, answer = await client.call("GET", TOKEN, Authorization=basic("key"))
    assert (status, answer["expires_in"]) == (200, "3599")


async def test_token_invalidates_the_previous_one_of_its_key_only(client: DarajaClient) -> None:
    first = client.token
    second = await client.log_in()
    other = await client.log_in("key-of-another-shop")
    assert len({first, second, other}) == 3
    for token, expected in ((first, 404), (second, 200), (other, 200), ("invented", 404)):
        client.token = token
        status, answer = await client.push("254711000001")
        assert status == expected
        assert expected == 200 or answer["errorCode"] == "404.001.03"
        assert ((await client.query("ws_CO_none"))[1]["errorCode"] == "404.001.03") is (expected == 404)


async def test_token_is_valid_until_expires_in(values: dict[str, Any]) -> None:
    clock = SetClock(datetime.now(UTC))
    async with receiving() as receiver, daraja(values, receiver, clock) as client:
        clock.advance(timedelta(seconds=3598))
        assert (await client.query("ws_CO_none"))[1]["errorMessage"] == "The transaction does not exist"
        clock.advance(timedelta(seconds=1))
        status, fault = await client.query("ws_CO_none")
        assert (status, fault["errorCode"]) == (404, "404.001.03")


@pytest.mark.parametrize("restarts", [1, 2])
async def test_callback_interrupted_by_a_restart_is_sent_once(values: dict[str, Any], restarts: int) -> None:
    values |= {"simulator": QUICK | {"callback_delay": 0.5}}
    phone = "254711000001"
    async with receiving() as receiver:
        async with daraja(values, receiver) as client:
            _, ack = await client.push(phone, 40)
            assert receiver.received == []
        for _ in range(restarts):
            async with daraja(values, receiver) as client:
                assert (await client.called_back(phone))[0]["CheckoutRequestID"] == ack["CheckoutRequestID"]
                assert [amount for _, amount in await client.moved(phone)] == [40]


async def test_callback_that_is_not_accepted_is_retried_twice(client: DarajaClient) -> None:
    phone = "254711000001"
    client.receiver.answer = lambda _, number: 200 if number == 2 else 500
    await client.push(phone)
    one, two = await client.called_back(phone, 2)
    assert one == two
    client.receiver.answer, client.receiver.status = None, 503
    await client.push("254711000002")

    async def has_three_attempts() -> bool:
        return len(client.callbacks("254711000002")) == 3

    await eventually(has_three_attempts)
    await client.quiet()
    assert await has_three_attempts()


async def test_callback_sent_again_by_hand_returns_the_status_of_the_answer(client: DarajaClient) -> None:
    phone = "254711000001"
    _, ack = await client.push(phone)
    (first,) = await client.called_back(phone)
    client.receiver.status = 418
    assert await client.control("POST", f"pushes/{ack['CheckoutRequestID']}/callback") == {"status": 418}
    assert client.callbacks(phone)[1] == first


async def test_fault_is_played_the_given_number_of_times(client: DarajaClient) -> None:
    await client.control("POST", "faults", {"operation": "stkpush", "fault": "500.003.02", "times": 2})
    answers = [await client.push("254711000001") for _ in range(3)]
    assert [status for status, _ in answers] == [500, 500, 200]
    assert [answer.get("errorCode") for _, answer in answers] == ["500.003.02", "500.003.02", None]
    handle = answers[2][1]["CheckoutRequestID"]
    await client.control("POST", "faults", {"operation": "stkquery", "fault": "500.003.03"})
    assert (await client.query(handle))[1]["errorCode"] == "500.003.03"
    await client.control("POST", "faults", {"operation": "oauth", "fault": "400.008.01", "times": 5})
    assert (await client.call("GET", TOKEN, Authorization=basic("key")))[0] == 400
    await client.control("POST", "reset")
    assert (await client.call("GET", TOKEN, Authorization=basic("key")))[0] == 200
    assert (await client.prompts("254711000001"), await client.control("GET", "ledger")) == ([], [])


async def test_push_habit_applies_to_all_phones_except_documented_ones(client: DarajaClient) -> None:
    await client.control("PATCH", "habits", {"stkpush": "cancels"})
    for phone in ("254711000071", f"{PREFIX}000"):
        await client.push(phone)
    (content,) = await client.called_back("254711000071")
    (listed,) = await client.called_back(f"{PREFIX}000")
    assert (content["ResultCode"], listed["ResultCode"]) == (1032, 0)
    await client.control("PATCH", "habits", {"stkpush": "normal"})
    await client.push("254711000072")
    (pays,) = await client.called_back("254711000072")
    assert pays["ResultCode"] == 0


async def test_callback_jitter_changes_the_order_of_callbacks(client: DarajaClient) -> None:
    await client.control("PATCH", "knobs", {"callback_jitter": 1.5, "seed": 7})
    phones = [f"2547110001{number:02}" for number in range(12)]
    for phone in phones:
        await client.push(phone)
    for phone in phones:
        await client.called_back(phone)
    arrived = [one.path.rpartition("/")[2] for one in client.receiver.received]
    assert sorted(arrived) == phones
    assert arrived != phones


async def test_control_api_refuses_unknown_settings_and_values(client: DarajaClient) -> None:
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
        assert (await client.call(method, f"/simulator/control/{path}", body))[0] == 422, (path, body)


async def test_simulator_in_a_gateway_with_a_live_merchant_serves_the_sandbox(values: dict[str, Any]) -> None:
    """Live traffic cannot reach the simulator."""
    values["worker"] = {"in_process": False}
    gateway = Gateway(GatewayConfig.from_values(values))
    async with gateway.running():
        merchant = await gateway.merchants.create("Real money", actor="test")
        await gateway.merchants.set_envs(merchant.merchant_id, ["live"])
    async with gateway.running():
        assert gateway.is_running


async def test_live_request_routed_to_a_simulator_is_not_sent(
    values: dict[str, Any],
) -> None:
    """A proxy can hide the simulator's path; its answers identify it."""
    async with running_gateway(values) as (gateway, base):
        live = DarajaCredentials(
            env="live",
            consumer_key=Secret("key"),
            consumer_secret=Secret("secret"),
            shortcode="600001",
            passkey=Secret("p"),
        )
        # As behind a proxy, where the check at the start cannot detect it.
        gateway.daraja._config = msgspec.structs.replace(  # pyright: ignore[reportPrivateUsage]
            gateway.config.daraja, live_url=f"{base}/simulator"
        )
        with pytest.raises(NotSent, match="is a simulator"):
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


CROSS_SITE: list[tuple[str, dict[str, str]]] = [
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
"""Requests that a browser sends for a page of another site."""


async def test_control_api_refuses_requests_of_other_sites(harness: Harness) -> None:
    for method, headers in CROSS_SITE:
        path = "/simulator/control/reset" if method == "POST" else "/simulator/control/ledger"
        answer = await harness.api.call(method, path, headers=headers)
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
async def test_simulator_routes_refuse_other_sites_with_any_content_type(
    harness: Harness, method: str, path: str
) -> None:
    """A form and ``fetch`` without CORS can send these content types across sites."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
            {"Host": "evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            answer = await harness.api.call(method, path, raw=b"{}", headers=headers | {"Content-Type": kind})
            assert answer.status == 403, (kind, headers)


@pytest.mark.parametrize("headers", [{}, {"Host": "localhost:1"}, {"Sec-Fetch-Site": "same-origin"}])
async def test_control_api_accepts_tools_and_our_own_pages(harness: Harness, headers: dict[str, str]) -> None:
    assert (await harness.api.call("POST", "/simulator/control/reset", headers=headers)).status == 200


async def test_control_api_accepts_a_host_of_the_setting(values: dict[str, Any]) -> None:
    values["simulator"] |= {"hosts": ["Daraja.Internal"]}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        answer = await api.call("POST", "/simulator/control/reset", headers={"Host": "daraja.internal:8080"})
        assert answer.status == 200
