"""Protects the simulator's status queries, reversals and Pull: correct, misbehaving and reproducible."""

import json
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT, SetClock
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_simulator.misbehaviour import PULL_HABITS, REVERSAL_HABITS, STATUS_HABITS
from mpesa_gateway_simulator.results import REFUSING_INITIATORS
from mpesa_gateway_simulator.validation import FAULTS, Fault, NotJson
from tests.plugins.simulator.daraja_client import QUICK, DarajaClient, daraja

STATUS = "/simulator/mpesa/transactionstatus/v1/query"
REVERSAL = "/simulator/mpesa/reversal/v1/request"
REGISTER = "/simulator/pulltransactions/v1/register"
PULL = "/simulator/pulltransactions/v1/query"
SHORTCODE = "174379"
PHONE = "254711000001"


class Operations:
    """Status queries, reversals and Pull as a merchant sends them."""

    def __init__(self, client: DarajaClient) -> None:
        self.client = client

    def initiated(self, path: str, **fields: Any) -> dict[str, Any]:
        """Returns the fields that every initiated request has."""
        return {
            "Initiator": "testapi",
            "SecurityCredential": b64encode(bytes(256)).decode(),
            "ResultURL": f"{self.client.receiver.url}/{path}/result",
            "QueueTimeOutURL": f"{self.client.receiver.url}/{path}/timeout",
            "Remarks": "for a test",
            "Occasion": "",
        } | fields

    async def status(self, receipt: str | None, **changes: Any) -> tuple[int, Any]:
        """Send a status query."""
        fields = {
            "CommandID": "TransactionStatusQuery",
            "TransactionID": receipt,
            "PartyA": SHORTCODE,
            "IdentifierType": "4",
        }
        body = self.initiated("status", **(fields | changes))
        return await self.client.send({name: value for name, value in body.items() if value is not None}, STATUS)

    async def reverse(self, receipt: str, amount: int, **changes: Any) -> tuple[int, Any]:
        fields = {
            "CommandID": "TransactionReversal",
            "TransactionID": receipt,
            "Amount": amount,
            "ReceiverParty": SHORTCODE,
            "RecieverIdentifierType": "11",
        }
        return await self.client.send(self.initiated("reversal", **(fields | changes)), REVERSAL)

    async def register(self) -> tuple[int, Any]:
        """Register Pull."""
        body = {"ShortCode": SHORTCODE, "RequestType": "Pull", "NominatedNumber": PHONE, "CallBackURL": "http://x/"}
        return await self.client.send(body, REGISTER)

    async def pull(self, offset: int = 0, hours: float = 1, **changes: Any) -> tuple[int, Any]:
        """Query a page of the statement."""
        now = datetime.now(EAT) + timedelta(seconds=1)
        body = {
            "ShortCode": SHORTCODE,
            "StartDate": f"{now - timedelta(hours=hours):%Y-%m-%d %H:%M:%S}",
            "EndDate": f"{now:%Y-%m-%d %H:%M:%S}",
            "OffSetValue": str(offset),
        }
        return await self.client.send(body | changes, PULL)

    async def money(self, amount: int = 500, **more: Any) -> str:
        """Add an unrequested payment to the ledger. Returns its receipt."""
        body = {"phone": PHONE, "amount": amount, "shortcode": SHORTCODE} | more
        found: str = (await self.client.control("POST", "ledger", body))["receipt"]
        return found

    async def habit(self, **habits: str) -> None:
        """Set habits of the simulator."""
        await self.client.control("PATCH", "habits", habits)

    async def results(self, path: str, count: int = 1) -> list[dict[str, Any]]:
        """Returns the results at an address. Waits for ``count``; raises AssertionError for more."""

        def received() -> list[dict[str, Any]]:
            return [one.json["Result"] for one in self.client.receiver.received if one.path.endswith(path)]

        async def have_come() -> bool:
            return len(received()) >= count

        await eventually(have_come)
        await self.client.quiet()
        found = received()
        assert len(found) == count
        self.client.receiver.received.clear()
        return found


def parameters(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a result, the first value of each."""
    entries: Any = result["ResultParameters"]["ResultParameter"]
    found: dict[str, Any] = {}
    several: list[dict[str, Any]] = [entries] if isinstance(entries, dict) else entries
    for entry in several:
        found.setdefault(entry["Key"], entry.get("Value"))
    return found


@pytest.fixture
async def operations(values: dict[str, Any]) -> AsyncGenerator[Operations]:
    """A client of a simulator with short delays."""
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver) as client:
        yield Operations(client)


# -- status ---------------------------------------------------------------------------------------------------------


async def test_status_query_is_acknowledged_and_answered_from_the_ledger(operations: Operations) -> None:
    receipt = await operations.money(500)
    status, ack = await operations.status(receipt)
    assert (status, ack["ResponseCode"]) == (200, "0")
    (result,) = await operations.results("/status/result")
    assert (result["ResultType"], result["ResultCode"]) == (0, 0)
    for name in ("OriginatorConversationID", "ConversationID"):
        assert result[name] == ack[name]
    found = parameters(result)
    assert (found["ReceiptNo"], found["TransactionStatus"], found["Amount"]) == (receipt, "Completed", "500")
    parties = [
        entry["Value"] for entry in result["ResultParameters"]["ResultParameter"] if entry["Key"] == "DebitPartyName"
    ]
    # Daraja sends the key DebitPartyName twice, the second time for the receiver.
    assert parties == [f"{PHONE} - JANE DOE", f"{SHORTCODE} - Shop"]
    assert isinstance(result["ReferenceData"]["ReferenceItem"], dict)
    await operations.status("TKN0000000")
    (result,) = await operations.results("/status/result")
    assert (result["ResultCode"], "ResultParameters" in result) == (2032, False)


async def test_status_query_by_conversation_returns_the_status_of_the_push(operations: Operations) -> None:
    for phone, expected in (("254700000020", "Pending"), ("254700000001", "Cancelled"), ("254700000004", "Expired")):
        _, ack = await operations.client.push(phone)
        if expected != "Pending":
            await operations.client.ended(phone)
            operations.client.receiver.received.clear()
        await operations.status(None, OriginalConversationID=ack["MerchantRequestID"])
        (result,) = await operations.results("/status/result")
        assert parameters(result)["TransactionStatus"] == expected


HABITS: dict[str, tuple[int, int]] = {
    "normal": (1, 0),
    "never": (0, 0),
    "twice": (2, 0),
    "before_ack": (1, 0),
    "late": (1, 0),
    "timeout": (0, 1),
    "empty_timeout": (0, 0),
    "parameters_list": (1, 0),
    "float_code": (1, 0),
    "ack_code_zeros": (1, 0),
    "single_parameter": (1, 0),
    "text_code": (1, 0),
    "ack_lost": (1, 0),
    "internal_error": (0, 0),
    "intermediate_first": (2, 0),
    "intermediate_last": (2, 0),
}
"""The numbers of results and timeouts of one request, by habit."""


SHAPES: dict[str, Callable[[Any, list[dict[str, Any]]], bool]] = {
    "internal_error": lambda ack, _: ack["errorCode"] == "500.003.1001",
    "ack_lost": lambda ack, _: isinstance(ack, str),
    "ack_code_zeros": lambda ack, _: ack["ResponseCode"] == "00000000",
    "parameters_list": lambda _, found: "Key" in found[0]["ResultParameters"][0],
    "float_code": lambda _, found: isinstance(found[0]["ResultCode"], float),
    "text_code": lambda _, found: found[0]["ResultCode"] == "0",
    "single_parameter": lambda _, found: isinstance(found[0]["ResultParameters"]["ResultParameter"], dict),
    "intermediate_first": lambda _, found: [one["ResultType"] for one in found] == [1, 0],
    "intermediate_last": lambda _, found: [one["ResultType"] for one in found] == [0, 1],
}
"""Checks of acknowledgement and results, by habit."""


async def has_empty(operations: Operations, path: str) -> bool:
    return any(one.path.endswith(path) and one.body == b"" for one in operations.client.receiver.received)


def test_habits_all_have_a_test() -> None:
    assert set(HABITS) | {"no_parties", "hidden_payer"} == STATUS_HABITS
    assert set(HABITS) | {"refuses_part", "code_15", "code_100000100"} == REVERSAL_HABITS
    assert set(STATEMENTS) == PULL_HABITS


@pytest.mark.parametrize("operation", ["transactionstatus", "reversal"])
async def test_habits_of_results_are_applied(operations: Operations, operation: str) -> None:
    path = {"transactionstatus": "status", "reversal": "reversal"}[operation]
    # Results before the ack are sent at once, all others a second later.
    await operations.client.control("PATCH", "knobs", {"callback_delay": 1})
    acks: dict[str, Any] = {}
    receipts: dict[str, str] = {}
    for habit in HABITS:
        await operations.habit(**{operation: habit})
        receipts[habit] = receipt = await operations.money(500)
        to = f"{operations.client.receiver.url}/{path}/{habit}"
        addresses = {"ResultURL": f"{to}/result", "QueueTimeOutURL": f"{to}/timeout"}
        ask = operations.status(receipt, **addresses) if operation == "transactionstatus" else None
        status, acks[habit] = await (ask or operations.reverse(receipt, 500, **addresses))
        assert status == (500 if habit in {"ack_lost", "internal_error"} else 200), habit
        # Only `before_ack` sends its result before the answer.
        early = [one for one in operations.client.receiver.received if f"/{habit}/" in one.path]
        assert len(early) == (1 if habit == "before_ack" else 0), habit
    await eventually(lambda: has_empty(operations, "/empty_timeout/timeout"))
    found = await results_by_habit(operations)
    for habit, (results, timeouts) in HABITS.items():
        assert (len(found[habit, "result"]), len(found[habit, "timeout"])) == (results, timeouts), habit
        assert all(one["ResultParameters"] == {} for one in found[habit, "timeout"]), habit
        is_so = SHAPES.get(habit)
        assert is_so is None or is_so(acks[habit], found[habit, "result"]), habit
    if operation == "reversal":
        # The money is returned under every habit except a refusal of the request.
        returned = {entry["receipt"]: entry["returned"] for entry in await operations.client.control("GET", "ledger")}
        for habit, receipt in receipts.items():
            assert returned[receipt] == (0 if habit == "internal_error" else 500), habit


async def results_by_habit(operations: Operations) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Returns the results and timeouts of each habit once no more are due."""

    def received() -> dict[tuple[str, str], list[dict[str, Any]]]:
        found: dict[tuple[str, str], list[dict[str, Any]]] = {
            (habit, kind): [] for habit in HABITS for kind in ("result", "timeout")
        }
        for one in operations.client.receiver.received:
            if one.body:
                _, habit, kind = one.path.rsplit("/", 2)
                found[habit, kind].append(one.json["Result"])
        return found

    async def have_come() -> bool:
        return sum(map(len, received().values())) >= sum(map(sum, HABITS.values()))

    await eventually(have_come)
    await operations.client.quiet()
    return received()


# -- reversal -------------------------------------------------------------------------------------------------------


async def test_reversal_returns_at_most_the_amount_received(operations: Operations) -> None:
    receipt = await operations.money(500)
    await operations.reverse(receipt, 200)
    (result,) = await operations.results("/reversal/result")
    found = parameters(result)
    assert (result["ResultCode"], found["OriginalTransactionID"], found["Amount"]) == (0, receipt, 200)
    assert result["TransactionID"] != receipt
    assert not result["TransactionID"].endswith("0000000")
    await operations.status(receipt)
    (status,) = await operations.results("/status/result")
    assert parameters(status)["TransactionStatus"] == "Completed"
    for amount, code in ((301, 1), (300, 0), (1, "R000001")):
        await operations.reverse(receipt, amount)
        (result,) = await operations.results("/reversal/result")
        assert result["ResultCode"] == code
        assert result["TransactionID"].endswith("0000000") is (code != 0)
    await operations.status(receipt)
    (status,) = await operations.results("/status/result")
    assert parameters(status)["TransactionStatus"] == "Reversed"
    await operations.reverse("TKN0000000", 5)
    (result,) = await operations.results("/reversal/result")
    assert result["ResultCode"] == "R000002"
    elsewhere = await operations.money(500, shortcode="600001")
    await operations.reverse(elsewhere, 5)
    (result,) = await operations.results("/reversal/result")
    assert result["ResultCode"] == "R000002"


async def test_status_query_by_conversation_returns_the_reversal(operations: Operations) -> None:
    _, ack = await operations.reverse(await operations.money(500), 500)
    (result,) = await operations.results("/reversal/result")
    await operations.status(None, OriginalConversationID=ack["OriginatorConversationID"])
    (status,) = await operations.results("/status/result")
    found = parameters(status)
    assert (found["ReceiptNo"], found["TransactionStatus"], found["Amount"]) == (
        result["TransactionID"],
        "Completed",
        "500",
    )


async def test_reversal_by_an_initiator_without_permission_ends_with_its_code(operations: Operations) -> None:
    receipt = await operations.money(500)
    for initiator, code in REFUSING_INITIATORS.items():
        assert (await operations.reverse(receipt, 5, Initiator=initiator))[0] == 200
        (result,) = await operations.results("/reversal/result")
        assert str(result["ResultCode"]) == code
        assert result["ResultDesc"] != "Failed"
    assert set(REFUSING_INITIATORS.values()) == {"21", "2001", "8006", "2028", "11", "1"}


async def test_reversal_habit_refuses_part_refuses_partial_amounts(operations: Operations) -> None:
    await operations.habit(reversal="refuses_part")
    receipt = await operations.money(500)
    status, answer = await operations.reverse(receipt, 499)
    assert (status, answer["errorCode"], answer["errorMessage"]) == (400, "400.002.02", "Bad Request - Invalid Amount")
    assert (await operations.reverse(receipt, 500))[0] == 200
    (result,) = await operations.results("/reversal/result")
    assert result["ResultCode"] == 0


async def test_initiated_request_with_a_bad_field_names_the_field(operations: Operations) -> None:
    receipt = await operations.money(500)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"Initiator": ""}, "Initiator"),
        ({"SecurityCredential": "in clear"}, "SecurityCredential"),
        ({"SecurityCredential": b64encode(b"short").decode()}, "SecurityCredential"),
        ({"CommandID": "BusinessPayment"}, "CommandID"),
        ({"Remarks": ""}, "Remarks"),
        ({"Remarks": "x" * 101}, "Remarks"),
        ({"ResultURL": "ftp://x"}, "ResultURL"),
        ({"QueueTimeOutURL": ""}, "QueueTimeOutURL"),
        ({"Occasion": "x" * 101}, "Occasion"),
    ]
    for change, field in [*bad, ({"RecieverIdentifierType": "1"}, "RecieverIdentifierType"), ({"Amount": 0}, "Amount")]:
        status, answer = (
            await operations.reverse(receipt, **({"amount": 5} | change))
            if "Amount" not in change
            else (await operations.reverse(receipt, 0))
        )
        assert (status, answer["errorMessage"]) == (400, f"Bad Request - Invalid {field}"), change
    for change, field in [*bad, ({"IdentifierType": "3"}, "IdentifierType")]:
        status, answer = await operations.status(receipt, **change)
        assert (status, answer["errorMessage"]) == (400, f"Bad Request - Invalid {field}"), change
    assert (await operations.status(None))[0] == 400
    assert operations.client.receiver.received == []


# -- Pull -----------------------------------------------------------------------------------------------------------


async def test_pull_register_twice_answers_with_both_spellings(operations: Operations) -> None:
    status, refused = await operations.pull()
    assert (status, refused["errorCode"]) == (400, "400.003.02")
    status, first = await operations.register()
    assert (status, first["ResponseStatus"], first["ShortCode"]) == (200, "1000", SHORTCODE)
    _, again = await operations.register()
    assert again["Response Status"] == "1001"


async def test_statement_has_missed_and_unrequested_payments_in_pages_of_100(operations: Operations) -> None:
    await operations.register()
    await operations.client.push("254700000021", 7, AccountReference="ORDER-9")
    await operations.client.ended("254700000021")
    for number in range(205):
        await operations.money(1 + number)
    seen: list[str] = []
    sizes: list[int] = []
    while True:
        status, answer = await operations.pull(len(seen))
        assert status == 200
        if answer["ResponseCode"] == "1001":
            break
        (rows,) = answer["Response"]
        sizes.append(len(rows))
        seen += [row["transactionId"] for row in rows]
    assert (sizes, len(set(seen))) == ([100, 100, 6], 206)
    _, answer = await operations.pull()
    first = answer["Response"][0][0]
    assert (first["billreference"], first["amount"], first["msisdn"]) == ("ORDER-9", "7", "700000021")
    assert (await operations.pull(hours=49))[1]["errorMessage"] == "Bad Request - Invalid StartDate"
    assert (await operations.pull(OffSetValue="-1"))[1]["errorMessage"] == "Bad Request - Invalid OffSetValue"


async def test_statement_of_a_till_has_no_bill_reference(operations: Operations) -> None:
    till = "5123456"
    body = {"ShortCode": till, "RequestType": "Pull", "NominatedNumber": PHONE, "CallBackURL": "http://x/"}
    await operations.client.send(body, REGISTER)
    await operations.client.push(PHONE, 7, TransactionType="CustomerBuyGoodsOnline", PartyB=till)
    await operations.client.ended(PHONE)
    _, answer = await operations.pull(ShortCode=till)
    ((row,),) = answer["Response"]
    assert (row["billreference"], row["amount"]) == ("", "7")


STATEMENTS: dict[str, Callable[[Any], bool]] = {
    "normal": lambda answer: answer["Response"][0][0]["trxDate"].endswith("+03:00"),
    "several_lists": lambda answer: [len(rows) for rows in answer["Response"]] == [1, 0, 1],
    "malformed_row": lambda answer: answer["Response"][0][0] == "not a row" and len(answer["Response"][0]) == 5,
    "partial_msisdn": lambda answer: answer["Response"][0][0]["msisdn"] == "711***001",
    "no_zone": lambda answer: len(answer["Response"][0][0]["trxDate"]) == 19,
    "z_meaning_eat": lambda answer: answer["Response"][0][0]["trxDate"][:13] == f"{datetime.now(EAT):%Y-%m-%dT%H}",
    "cents": lambda answer: answer["Response"][0][0]["amount"] == "500.00",
    "amount_number": lambda answer: answer["Response"][0][0]["amount"] == 500,
    "amount_float": lambda answer: answer["Response"][0][0]["amount"] == 500,
    "amount_exponent": lambda answer: answer["Response"][0][0]["amount"] == 500,
    "code_zero": lambda answer: answer["ResponseCode"] == "0" and len(answer["Response"][0]) == 2,
    "latin1_row": lambda answer: b"M\xdcLLER" in answer,
    "endless": lambda answer: answer["Response"][0][0]["billreference"] == "endless",
    "no_type": lambda answer: "transactiontype" not in answer["Response"][0][0],
    "html_200": lambda answer: isinstance(answer, str),
    "internal_error": lambda answer: answer["errorCode"] == "500.003.1001",
    # These change the empty page only.
    "no_response_field": lambda answer: len(answer["Response"][0]) == 2,
    "http_500_when_empty": lambda answer: len(answer["Response"][0]) == 2,
    "words_500_when_empty": lambda answer: len(answer["Response"][0]) == 2,
    "404_when_empty": lambda answer: len(answer["Response"][0]) == 2,
    "text": lambda answer: len(answer["Response"][0]) == 2,
}
EMPTY: dict[str, Callable[[Any], bool]] = {
    "normal": lambda answer: answer["Response"] == [[]],
    "no_response_field": lambda answer: "Response" not in answer,
    "text": lambda answer: answer["Response"] == "No transactions found",
    "http_500_when_empty": lambda answer: answer["errorMessage"] == "No transactions found",
    "words_500_when_empty": lambda answer: "has not got any transactions" in answer["errorMessage"],
    "404_when_empty": lambda answer: answer["errorCode"] == "404.002.01",
}


async def test_habits_of_pull_are_applied(operations: Operations) -> None:
    await operations.register()
    for habit, is_so in EMPTY.items():
        await operations.habit(pullquery=habit)
        status, answer = await operations.pull()
        expected = {"http_500_when_empty": 500, "words_500_when_empty": 500, "404_when_empty": 404}.get(habit, 200)
        assert (status, is_so(answer)) == (expected, True), habit
    for _ in range(2):
        await operations.money(500)
    for habit, is_so in STATEMENTS.items():
        await operations.habit(pullquery=habit)
        status, answer = await operations.pull()
        assert (status, is_so(answer)) == (500 if habit == "internal_error" else 200, True), habit


# -- faults and random behaviour -----------------------------------------------------------------------------------

PROXIED = {name for name, fault in FAULTS.items() if isinstance(fault, NotJson) and fault.media_type != "text/html"}
"""Faults with the JSON of the proxies in front of Daraja."""


async def test_faults_of_every_operation_are_played_and_move_no_money(operations: Operations) -> None:
    await operations.register()
    receipt = await operations.money(500)
    calls = {
        "stkpush": lambda: operations.client.push(PHONE),
        "stkquery": lambda: operations.client.query("ws_CO_1"),
        "transactionstatus": lambda: operations.status(receipt),
        "reversal": lambda: operations.reverse(receipt, 5),
        "pullregister": operations.register,
        "pullquery": operations.pull,
    }
    for operation, call in calls.items():
        for name, fault in FAULTS.items():
            if fault.status in {101, 302} or name == "not_gzip":
                # These break the connection or the client; test_answers.py tests them.
                continue
            await operations.client.control("POST", "faults", {"operation": operation, "fault": name})
            found, answer = await call()
            assert found == fault.status, (operation, name)
            if isinstance(fault, Fault):
                assert (answer["errorCode"], answer["errorMessage"]) == (fault.code, fault.message)
            elif name in PROXIED:
                assert answer == json.loads(fault.body)
            else:
                assert answer == fault.body
    assert operations.client.receiver.received == []
    (entry,) = await operations.client.control("GET", "ledger")
    assert entry["returned"] == 0


async def test_habits_unknown_or_of_another_operation_are_refused(operations: Operations) -> None:
    wrong = ({"reversal": "several_lists"}, {"pullquery": "never"}, {"transactionstatus": "refuses_part"}, {"x": "y"})
    for body in wrong:
        assert (await operations.client.call("PATCH", "/simulator/control/habits", body))[0] == 422, body


async def test_seed_reproduces_ids_receipts_and_behaviour(values: dict[str, Any]) -> None:
    """The same pushes in the same order, in another process or after a reset."""

    async def play(client: DarajaClient) -> list[Any]:
        """Returns the answers of 12 pushes, three receipts, the behaviours and a result's ids."""
        acks: list[Any] = []
        for number in range(12):
            phone = f"2547110000{number:02}"
            status, answer = await client.push(phone, 10 + number)
            ack = answer if isinstance(answer, str) else {name: answer.get(name) for name in IDS}
            acks.append((status, ack))
        receipts = [await operations_of(client).money(1) for _ in range(3)]
        await client.control("PATCH", "knobs", {"chaos": 0})
        _, ack = await operations_of(client).status(receipts[0])
        pushes = [(one["phone"], one["behaviour"]) for one in await client.control("GET", "pushes?limit=100")]
        return [acks, receipts, sorted(pushes), ack["OriginatorConversationID"], ack["ConversationID"]]

    clock = SetClock(datetime(2026, 11, 23, 10, tzinfo=UTC))
    seeded = values | {"simulator": QUICK | {"seed": 7, "chaos": 0.5, "callback_delay": 600, "prompt_timeout": 600}}
    async with receiving() as receiver:
        async with daraja(seeded, receiver, clock) as client:
            first = await play(client)
            await client.control("POST", "reset")
            again = await play(client)
            await client.control("POST", "reset")
            await client.control("PATCH", "knobs", {"seed": 8})
            other = await play(client)
            await client.control("POST", "reset")
        async with daraja(seeded, receiver, clock) as client:
            assert await play(client) == first == again
    assert other != first
    failures = {behaviour for _, behaviour in first[2]} - {"pays"}
    assert failures


IDS = ("MerchantRequestID", "CheckoutRequestID", "ResponseCode", "errorCode")


def operations_of(client: DarajaClient) -> Operations:
    return Operations(client)
