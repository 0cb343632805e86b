"""Status queries, reversals and Pull, as well and as badly as Daraja plays them; and chance that a seed decides."""

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
from tests.plugins.simulator.line import QUICK, Line, daraja

STATUS = "/simulator/mpesa/transactionstatus/v1/query"
REVERSAL = "/simulator/mpesa/reversal/v1/request"
REGISTER = "/simulator/pulltransactions/v1/register"
PULL = "/simulator/pulltransactions/v1/query"
SHORTCODE = "174379"
PHONE = "254711000001"


class Asking:
    """What a merchant asks of these operations."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def initiated(self, path: str, **fields: Any) -> dict[str, Any]:
        """What every initiated request has."""
        return {
            "Initiator": "testapi",
            "SecurityCredential": b64encode(bytes(256)).decode(),
            "ResultURL": f"{self.line.receiver.url}/{path}/result",
            "QueueTimeOutURL": f"{self.line.receiver.url}/{path}/timeout",
            "Remarks": "for a test",
            "Occasion": "",
        } | fields

    async def status(self, receipt: str | None, **changes: Any) -> tuple[int, Any]:
        """Ask what became of a transaction."""
        fields = {
            "CommandID": "TransactionStatusQuery",
            "TransactionID": receipt,
            "PartyA": SHORTCODE,
            "IdentifierType": "4",
        }
        body = self.initiated("status", **(fields | changes))
        return await self.line.send({name: value for name, value in body.items() if value is not None}, STATUS)

    async def reverse(self, receipt: str, amount: int, **changes: Any) -> tuple[int, Any]:
        """Ask for money to go back."""
        fields = {
            "CommandID": "TransactionReversal",
            "TransactionID": receipt,
            "Amount": amount,
            "ReceiverParty": SHORTCODE,
            "RecieverIdentifierType": "11",
        }
        return await self.line.send(self.initiated("reversal", **(fields | changes)), REVERSAL)

    async def register(self) -> tuple[int, Any]:
        """Enable Pull."""
        body = {"ShortCode": SHORTCODE, "RequestType": "Pull", "NominatedNumber": PHONE, "CallBackURL": "http://x/"}
        return await self.line.send(body, REGISTER)

    async def pull(self, offset: int = 0, hours: float = 1, **changes: Any) -> tuple[int, Any]:
        """A page of the statement."""
        now = datetime.now(EAT) + timedelta(seconds=1)
        body = {
            "ShortCode": SHORTCODE,
            "StartDate": f"{now - timedelta(hours=hours):%Y-%m-%d %H:%M:%S}",
            "EndDate": f"{now:%Y-%m-%d %H:%M:%S}",
            "OffSetValue": str(offset),
        }
        return await self.line.send(body | changes, PULL)

    async def money(self, amount: int = 500, **more: Any) -> str:
        """Somebody pays whom nobody asked; gives the receipt."""
        body = {"phone": PHONE, "amount": amount, "shortcode": SHORTCODE} | more
        found: str = (await self.line.control("POST", "ledger", body))["receipt"]
        return found

    async def habit(self, **habits: str) -> None:
        """Misbehave from now on."""
        await self.line.control("PATCH", "habits", habits)

    async def told(self, path: str, count: int = 1) -> list[dict[str, Any]]:
        """The results at an address, once so many have come, and no more a moment later."""

        def come() -> list[dict[str, Any]]:
            return [one.json["Result"] for one in self.line.receiver.received if one.path.endswith(path)]

        async def have_come() -> bool:
            return len(come()) >= count

        await eventually(have_come)
        await self.line.quiet()
        found = come()
        assert len(found) == count
        self.line.receiver.received.clear()
        return found


def parameters(result: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a result, the first value of each."""
    entries: Any = result["ResultParameters"]["ResultParameter"]
    found: dict[str, Any] = {}
    several: list[dict[str, Any]] = [entries] if isinstance(entries, dict) else entries
    for entry in several:
        found.setdefault(entry["Key"], entry.get("Value"))
    return found


@pytest.fixture
async def asking(values: dict[str, Any]) -> AsyncGenerator[Asking]:
    """A merchant in front of a quick simulator."""
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver) as line:
        yield Asking(line)


# -- status ---------------------------------------------------------------------------------------------------------


async def test_a_status_query_is_acknowledged_and_answered_from_the_ledger(asking: Asking) -> None:
    receipt = await asking.money(500)
    status, ack = await asking.status(receipt)
    assert (status, ack["ResponseCode"]) == (200, "0")
    (result,) = await asking.told("/status/result")
    assert (result["ResultType"], result["ResultCode"]) == (0, 0)
    for name in ("OriginatorConversationID", "ConversationID"):
        assert result[name] == ack[name]
    found = parameters(result)
    assert (found["ReceiptNo"], found["TransactionStatus"], found["Amount"]) == (receipt, "Completed", "500")
    parties = [
        entry["Value"] for entry in result["ResultParameters"]["ResultParameter"] if entry["Key"] == "DebitPartyName"
    ]
    # The name that stands there twice, once for the one who receives.
    assert parties == [f"{PHONE} - JANE DOE", f"{SHORTCODE} - Shop"]
    assert isinstance(result["ReferenceData"]["ReferenceItem"], dict)
    await asking.status("TKN0000000")
    (result,) = await asking.told("/status/result")
    assert (result["ResultCode"], "ResultParameters" in result) == (2032, False)


async def test_a_push_is_known_by_its_conversation_as_it_stands(asking: Asking) -> None:
    for phone, said in (("254700000020", "Pending"), ("254700000001", "Cancelled"), ("254700000004", "Expired")):
        _, ack = await asking.line.push(phone)
        if said != "Pending":
            await asking.line.ended(phone)
            asking.line.receiver.received.clear()
        await asking.status(None, OriginalConversationID=ack["MerchantRequestID"])
        (result,) = await asking.told("/status/result")
        assert parameters(result)["TransactionStatus"] == said


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
"""How many results and timeouts each habit makes of one question."""


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
"""What shows in acknowledgement and results."""


async def has_empty(asking: Asking, path: str) -> bool:
    """Whether an empty body has come to an address."""
    return any(one.path.endswith(path) and one.body == b"" for one in asking.line.receiver.received)


def test_every_habit_is_tried() -> None:
    assert set(HABITS) | {"no_parties", "hidden_payer"} == STATUS_HABITS
    assert set(HABITS) | {"refuses_part", "code_15", "code_100000100"} == REVERSAL_HABITS
    assert set(STATEMENTS) == PULL_HABITS


@pytest.mark.parametrize("operation", ["transactionstatus", "reversal"])
async def test_results_misbehave_as_they_are_told(asking: Asking, operation: str) -> None:
    path = {"transactionstatus": "status", "reversal": "reversal"}[operation]
    # What comes before the ack comes at once; everything else well after it.
    await asking.line.control("PATCH", "knobs", {"callback_delay": 1})
    acks: dict[str, Any] = {}
    receipts: dict[str, str] = {}
    for habit in HABITS:
        await asking.habit(**{operation: habit})
        receipts[habit] = receipt = await asking.money(500)
        to = f"{asking.line.receiver.url}/{path}/{habit}"
        addresses = {"ResultURL": f"{to}/result", "QueueTimeOutURL": f"{to}/timeout"}
        ask = asking.status(receipt, **addresses) if operation == "transactionstatus" else None
        status, acks[habit] = await (ask or asking.reverse(receipt, 500, **addresses))
        assert status == (500 if habit in {"ack_lost", "internal_error"} else 200), habit
        # Before the ack means before the ack.
        came = [one for one in asking.line.receiver.received if f"/{habit}/" in one.path]
        assert len(came) == (1 if habit == "before_ack" else 0), habit
    await eventually(lambda: has_empty(asking, "/empty_timeout/timeout"))
    found = await told_of_habits(asking)
    for habit, (results, timeouts) in HABITS.items():
        assert (len(found[habit, "result"]), len(found[habit, "timeout"])) == (results, timeouts), habit
        assert all(one["ResultParameters"] == {} for one in found[habit, "timeout"]), habit
        is_so = SHAPES.get(habit)
        assert is_so is None or is_so(acks[habit], found[habit, "result"]), habit
    if operation == "reversal":
        # Whatever the merchant hears, the money went back; only a refused request moves nothing.
        returned = {entry["receipt"]: entry["returned"] for entry in await asking.line.control("GET", "ledger")}
        for habit, receipt in receipts.items():
            assert returned[receipt] == (0 if habit == "internal_error" else 500), habit


async def told_of_habits(asking: Asking) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The results and timeouts of each habit, once all are there and no more have come a moment later."""

    def come() -> dict[tuple[str, str], list[dict[str, Any]]]:
        found: dict[tuple[str, str], list[dict[str, Any]]] = {
            (habit, kind): [] for habit in HABITS for kind in ("result", "timeout")
        }
        for one in asking.line.receiver.received:
            if one.body:
                _, habit, kind = one.path.rsplit("/", 2)
                found[habit, kind].append(one.json["Result"])
        return found

    async def have_come() -> bool:
        return sum(map(len, come().values())) >= sum(map(sum, HABITS.values()))

    await eventually(have_come)
    await asking.line.quiet()
    return come()


# -- reversal -------------------------------------------------------------------------------------------------------


async def test_a_reversal_sends_back_what_came_in_and_never_more(asking: Asking) -> None:
    receipt = await asking.money(500)
    await asking.reverse(receipt, 200)
    (result,) = await asking.told("/reversal/result")
    found = parameters(result)
    assert (result["ResultCode"], found["OriginalTransactionID"], found["Amount"]) == (0, receipt, 200)
    assert result["TransactionID"] != receipt
    assert not result["TransactionID"].endswith("0000000")
    await asking.status(receipt)
    (status,) = await asking.told("/status/result")
    assert parameters(status)["TransactionStatus"] == "Completed"
    for amount, code in ((301, 1), (300, 0), (1, "R000001")):
        await asking.reverse(receipt, amount)
        (result,) = await asking.told("/reversal/result")
        assert result["ResultCode"] == code
        assert result["TransactionID"].endswith("0000000") is (code != 0)
    await asking.status(receipt)
    (status,) = await asking.told("/status/result")
    assert parameters(status)["TransactionStatus"] == "Reversed"
    await asking.reverse("TKN0000000", 5)
    (result,) = await asking.told("/reversal/result")
    assert result["ResultCode"] == "R000002"
    elsewhere = await asking.money(500, shortcode="600001")
    await asking.reverse(elsewhere, 5)
    (result,) = await asking.told("/reversal/result")
    assert result["ResultCode"] == "R000002"


async def test_a_reversal_is_known_by_its_conversation(asking: Asking) -> None:
    _, ack = await asking.reverse(await asking.money(500), 500)
    (result,) = await asking.told("/reversal/result")
    await asking.status(None, OriginalConversationID=ack["OriginatorConversationID"])
    (status,) = await asking.told("/status/result")
    found = parameters(status)
    assert (found["ReceiptNo"], found["TransactionStatus"], found["Amount"]) == (
        result["TransactionID"],
        "Completed",
        "500",
    )


async def test_each_initiator_that_may_not_reverse_is_refused_with_its_code(asking: Asking) -> None:
    receipt = await asking.money(500)
    for initiator, code in REFUSING_INITIATORS.items():
        assert (await asking.reverse(receipt, 5, Initiator=initiator))[0] == 200
        (result,) = await asking.told("/reversal/result")
        assert str(result["ResultCode"]) == code
        assert result["ResultDesc"] != "Failed"
    assert set(REFUSING_INITIATORS.values()) == {"21", "2001", "8006", "2028", "11", "1"}


async def test_a_part_can_be_refused_as_safaricom_may(asking: Asking) -> None:
    await asking.habit(reversal="refuses_part")
    receipt = await asking.money(500)
    status, answer = await asking.reverse(receipt, 499)
    assert (status, answer["errorCode"], answer["errorMessage"]) == (400, "400.002.02", "Bad Request - Invalid Amount")
    assert (await asking.reverse(receipt, 500))[0] == 200
    (result,) = await asking.told("/reversal/result")
    assert result["ResultCode"] == 0


async def test_what_daraja_would_refuse_is_refused_by_its_field(asking: Asking) -> None:
    receipt = await asking.money(500)
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
            await asking.reverse(receipt, **({"amount": 5} | change))
            if "Amount" not in change
            else (await asking.reverse(receipt, 0))
        )
        assert (status, answer["errorMessage"]) == (400, f"Bad Request - Invalid {field}"), change
    for change, field in [*bad, ({"IdentifierType": "3"}, "IdentifierType")]:
        status, answer = await asking.status(receipt, **change)
        assert (status, answer["errorMessage"]) == (400, f"Bad Request - Invalid {field}"), change
    assert (await asking.status(None))[0] == 400
    assert asking.line.receiver.received == []


# -- Pull -----------------------------------------------------------------------------------------------------------


async def test_pull_is_enabled_once_and_both_spellings_are_played(asking: Asking) -> None:
    status, refused = await asking.pull()
    assert (status, refused["errorCode"]) == (400, "400.003.02")
    status, first = await asking.register()
    assert (status, first["ResponseStatus"], first["ShortCode"]) == (200, "1000", SHORTCODE)
    _, again = await asking.register()
    assert again["Response Status"] == "1001"


async def test_missed_callbacks_and_walk_ins_are_on_the_statement_in_pages_of_a_hundred(asking: Asking) -> None:
    await asking.register()
    await asking.line.push("254700000021", 7, AccountReference="ORDER-9")
    await asking.line.ended("254700000021")
    for number in range(205):
        await asking.money(1 + number)
    seen: list[str] = []
    sizes: list[int] = []
    while True:
        status, answer = await asking.pull(len(seen))
        assert status == 200
        if answer["ResponseCode"] == "1001":
            break
        (rows,) = answer["Response"]
        sizes.append(len(rows))
        seen += [row["transactionId"] for row in rows]
    assert (sizes, len(set(seen))) == ([100, 100, 6], 206)
    _, answer = await asking.pull()
    first = answer["Response"][0][0]
    assert (first["billreference"], first["amount"], first["msisdn"]) == ("ORDER-9", "7", "700000021")
    assert (await asking.pull(hours=49))[1]["errorMessage"] == "Bad Request - Invalid StartDate"
    assert (await asking.pull(OffSetValue="-1"))[1]["errorMessage"] == "Bad Request - Invalid OffSetValue"


async def test_a_tills_statement_names_no_account(asking: Asking) -> None:
    till = "5123456"
    body = {"ShortCode": till, "RequestType": "Pull", "NominatedNumber": PHONE, "CallBackURL": "http://x/"}
    await asking.line.send(body, REGISTER)
    await asking.line.push(PHONE, 7, TransactionType="CustomerBuyGoodsOnline", PartyB=till)
    await asking.line.ended(PHONE)
    _, answer = await asking.pull(ShortCode=till)
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
    # What these do shows where there is nothing to see.
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


async def test_statements_misbehave_as_they_are_told(asking: Asking) -> None:
    await asking.register()
    for habit, is_so in EMPTY.items():
        await asking.habit(pullquery=habit)
        status, answer = await asking.pull()
        expected = {"http_500_when_empty": 500, "words_500_when_empty": 500, "404_when_empty": 404}.get(habit, 200)
        assert (status, is_so(answer)) == (expected, True), habit
    for _ in range(2):
        await asking.money(500)
    for habit, is_so in STATEMENTS.items():
        await asking.habit(pullquery=habit)
        status, answer = await asking.pull()
        assert (status, is_so(answer)) == (500 if habit == "internal_error" else 200, True), habit


# -- faults and chance ----------------------------------------------------------------------------------------------

PROXIED = {name for name, fault in FAULTS.items() if isinstance(fault, NotJson) and fault.media_type != "text/html"}
"""What the proxies in front of Daraja answer in JSON of their own."""


async def test_faults_are_played_for_every_operation_and_move_nothing(asking: Asking) -> None:
    await asking.register()
    receipt = await asking.money(500)
    calls = {
        "stkpush": lambda: asking.line.push(PHONE),
        "stkquery": lambda: asking.line.query("ws_CO_1"),
        "transactionstatus": lambda: asking.status(receipt),
        "reversal": lambda: asking.reverse(receipt, 5),
        "pullregister": asking.register,
        "pullquery": asking.pull,
    }
    for operation, call in calls.items():
        for name, fault in FAULTS.items():
            if fault.status in {101, 302} or name == "not_gzip":
                # These break the connection or the client: see test_answers.py.
                continue
            await asking.line.control("POST", "faults", {"operation": operation, "fault": name})
            found, answer = await call()
            assert found == fault.status, (operation, name)
            if isinstance(fault, Fault):
                assert (answer["errorCode"], answer["errorMessage"]) == (fault.code, fault.message)
            elif name in PROXIED:
                assert answer == json.loads(fault.body)
            else:
                assert answer == fault.body
    assert asking.line.receiver.received == []
    (entry,) = await asking.line.control("GET", "ledger")
    assert entry["returned"] == 0


async def test_habits_that_do_not_exist_or_are_another_operations_are_refused(asking: Asking) -> None:
    wrong = ({"reversal": "several_lists"}, {"pullquery": "never"}, {"transactionstatus": "refuses_part"}, {"x": "y"})
    for body in wrong:
        assert (await asking.line.call("PATCH", "/simulator/control/habits", body))[0] == 422, body


async def test_one_seed_is_one_story(values: dict[str, Any]) -> None:
    """The same pushes in the same order: the same ids, receipts and misfortunes, in another run, or after a reset."""

    async def story(line: Line) -> list[Any]:
        """What twelve buyers meet, and what the shop hears."""
        told: list[Any] = []
        for number in range(12):
            phone = f"2547110000{number:02}"
            status, answer = await line.push(phone, 10 + number)
            ack = answer if isinstance(answer, str) else {name: answer.get(name) for name in IDS}
            told.append((status, ack))
        receipts = [await asking_of(line).money(1) for _ in range(3)]
        await line.control("PATCH", "knobs", {"chaos": 0})
        _, ack = await asking_of(line).status(receipts[0])
        pushes = [(one["phone"], one["behaviour"]) for one in await line.control("GET", "pushes?limit=100")]
        return [told, receipts, sorted(pushes), ack["OriginatorConversationID"], ack["ConversationID"]]

    clock = SetClock(datetime(2026, 11, 23, 10, tzinfo=UTC))
    seeded = values | {"simulator": QUICK | {"seed": 7, "chaos": 0.5, "callback_delay": 600, "prompt_timeout": 600}}
    async with receiving() as receiver:
        async with daraja(seeded, receiver, clock) as line:
            first = await story(line)
            await line.control("POST", "reset")
            again = await story(line)
            await line.control("POST", "reset")
            await line.control("PATCH", "knobs", {"seed": 8})
            other = await story(line)
            await line.control("POST", "reset")
        async with daraja(seeded, receiver, clock) as line:
            assert await story(line) == first == again
    assert other != first
    misfortunes = {behaviour for _, behaviour in first[2]} - {"pays"}
    assert misfortunes


IDS = ("MerchantRequestID", "CheckoutRequestID", "ResponseCode", "errorCode")


def asking_of(line: Line) -> Asking:
    """The same line, for the rest of Daraja."""
    return Asking(line)
