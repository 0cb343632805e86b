"""Protects the simulator's C2B: registration, validation, one confirmation, and the money in every report."""

import hashlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.receiver import Received, Receiver, receiving
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_simulator.misbehaviour import C2B_REGISTER_HABITS, C2B_SIMULATE_HABITS
from tests.browsing import Browser
from tests.plugins.simulator.daraja_client import QUICK, DarajaClient, daraja
from tests.plugins.simulator.test_results import PHONE, SHORTCODE, Operations, parameters

LIVE = {
    "ConfirmationURL": "https://pay.example.com/v1/cb/c2b/token",
    "ValidationURL": "https://pay.example.com/v1/cb/c2b-validation/token",
}
ACCEPTED = {"ResultCode": 0, "ResultDesc": "Accepted"}
DIGEST = hashlib.sha256(PHONE.encode()).hexdigest()


@dataclass
class Shop:
    """A merchant with C2B addresses; ``verdict`` is its answer to a validation, None for a refused connection."""

    client: DarajaClient
    verdict: Any = field(default_factory=lambda: ACCEPTED)

    def answer(self, one: Received) -> bytes:
        return msgspec.json.encode(self.verdict if "validation" in one.path else ACCEPTED)

    def addresses(self) -> dict[str, str]:
        url = self.client.receiver.url
        return {"ConfirmationURL": f"{url}/c2b/token", "ValidationURL": f"{url}/c2b-validation/token"}

    async def register(self, version: str = "v2", **changes: Any) -> tuple[int, Any]:
        body = {"ShortCode": SHORTCODE, "ResponseType": "Completed"} | self.addresses() | changes
        body = {name: value for name, value in body.items() if value is not None}
        return await self.client.send(body, f"/simulator/mpesa/c2b/{version}/registerurl")

    async def simulate(self, version: str = "v2", **changes: Any) -> tuple[int, Any]:
        body = {
            "ShortCode": SHORTCODE,
            "CommandID": "CustomerPayBillOnline",
            "Amount": 50,
            "Msisdn": PHONE,
            "BillRefNumber": "HOUSE 7B",
        }
        return await self.client.send(body | changes, f"/simulator/mpesa/c2b/{version}/simulate")

    async def pay(self, **changes: Any) -> dict[str, Any]:
        body = {"phone": PHONE, "amount": 50, "shortcode": SHORTCODE, "account_number": "HOUSE 7B"} | changes
        found: dict[str, Any] = await self.client.control("POST", "c2b", body)
        return found

    def posted(self, path: str) -> list[dict[str, Any]]:
        return [one.json for one in self.client.receiver.received if path in one.path]

    async def confirmed(self, count: int = 1) -> list[dict[str, Any]]:
        """Return the confirmations. Waits for ``count``; raises AssertionError for more."""

        async def have_come() -> bool:
            return len(self.posted("/c2b/")) >= count

        await eventually(have_come)
        await self.client.quiet()
        found = self.posted("/c2b/")
        assert len(found) == count
        return found


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture
async def shop(values: dict[str, Any], receiver: Receiver) -> AsyncGenerator[Shop]:
    settings = QUICK | {"validation_timeout": 0.5}
    async with daraja(values | {"simulator": settings}, receiver) as client:
        found = Shop(client)
        receiver.says = found.answer
        yield found


@pytest.fixture
async def live_shop(values: dict[str, Any], receiver: Receiver) -> AsyncGenerator[Shop]:
    """A shop of a simulator with the rules of live shortcodes."""
    async with daraja(values | {"simulator": QUICK | {"c2b_live": True}}, receiver) as client:
        yield Shop(client)


# -- registration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_registration_is_acknowledged_with_the_misspelled_id(shop: Shop, version: str) -> None:
    status, ack = await shop.register(version)
    assert status == 200
    assert ack == {
        "OriginatorCoversationID": ack["OriginatorCoversationID"],
        "ResponseCode": "0",
        "ResponseDescription": "Success",
    }
    # The sandbox registers as often as asked.
    assert (await shop.register(version))[0] == 200


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ShortCode": "12"}, "ShortCode"),
        ({"ShortCode": None}, "ShortCode"),
        ({"ResponseType": "completed"}, "ResponseType"),
        ({"ResponseType": "Canceled"}, "ResponseType"),
        ({"ResponseType": ["Completed"]}, "ResponseType"),
        ({"ResponseType": None}, "ResponseType"),
        ({"ConfirmationURL": "ftp://pay.example.com/c"}, "ConfirmationURL"),
        ({"ConfirmationURL": "https://[bad"}, "ConfirmationURL"),
        ({"ValidationURL": 7}, "ValidationURL"),
        *(
            ({name: f"https://pay.example.com/{word}/c"}, name)
            for name in ("ConfirmationURL", "ValidationURL")
            for word in ("mpesa", "M-Pesa", "SAFARICOM", "exe", "eXecute", "cmd", "SQL", "query", "myqueryx")
        ),
        ({"ConfirmationURL": "https://mpesa.example.com/c"}, "ConfirmationURL"),
    ],
)
async def test_registration_with_a_bad_field_is_refused_by_name(
    shop: Shop, changes: dict[str, Any], field: str
) -> None:
    status, fault = await shop.register(**changes)
    assert (status, fault["errorCode"], fault["errorMessage"]) == (400, "400.002.02", f"Bad Request - Invalid {field}")


@pytest.mark.parametrize(
    "url",
    [
        "http://pay.example.com/c",
        "https://localhost/c",
        "https://127.0.0.1/c",
        "https://10.1.2.3/c",
        "https://192.168.0.4:8443/c",
        "https://[::1]/c",
        "https://pay.local/c",
        "https://intranet/c",
        "https://abc.ngrok-free.app/c",
        "https://abc.trycloudflare.com/c",
        "https://abc.loca.lt/c",
        "https://requestbin.example.com/c",
    ],
)
async def test_live_registration_refuses_addresses_that_safaricom_cannot_or_will_not_call(
    live_shop: Shop, url: str
) -> None:
    status, fault = await live_shop.register(**(LIVE | {"ConfirmationURL": url}))
    assert (status, fault["errorMessage"]) == (400, "Bad Request - Invalid ConfirmationURL")


async def test_live_registration_happens_once_and_there_is_no_simulate(live_shop: Shop) -> None:
    assert (await live_shop.register(**LIVE))[0] == 200
    status, fault = await live_shop.register(**LIVE)
    assert (status, fault["errorCode"], fault["errorMessage"]) == (500, "500.003.1001", "Urls are already registered.")
    # Another shortcode is another registration.
    assert (await live_shop.register(**LIVE, ShortCode="600999"))[0] == 200
    status, fault = await live_shop.simulate()
    assert (status, fault["errorCode"]) == (404, "404.001.01")


REGISTER_HABITS: dict[str, Callable[[int, Any], bool]] = {
    "normal": lambda status, ack: status == 200 and ack["ResponseCode"] == "0",
    "only_v1": lambda status, ack: status == 401 and "no apiproduct match found" in ack["errorMessage"],
    "only_v2": lambda status, ack: status == 200 and ack["ResponseCode"] == "0",
    "code_zeros": lambda status, ack: status == 200 and ack["ResponseCode"] == "00000000",
    "already_registered": lambda status, ack: status == 500 and ack["errorMessage"] == "Urls are already registered.",
    "already_without_code": lambda status, ack: (
        status == 200 and ack == {"ResponseDescription": "Validation and Confirmation URLs are already registered"}
    ),
    "held_by_broker": lambda status, ack: status == 500 and ack["errorMessage"].startswith("Duplicate notification"),
    "ack_lost": lambda status, ack: status == 500 and "<html>" in ack,
    "internal_error": lambda status, ack: status == 500 and ack["errorMessage"] == "Internal Server Error",
}


def test_c2b_habits_all_have_a_test() -> None:
    assert REGISTER_HABITS.keys() == C2B_REGISTER_HABITS
    assert frozenset({"normal", "forgets_registration"}) == C2B_SIMULATE_HABITS


@pytest.mark.parametrize("habit", sorted(REGISTER_HABITS))
async def test_registration_habit_answers_as_observed(shop: Shop, habit: str) -> None:
    await shop.register("v2")
    await shop.client.control("PATCH", "habits", {"c2bregister": habit})
    status, ack = await shop.register("v2")
    assert REGISTER_HABITS[habit](status, ack), (status, ack)
    if habit == "only_v1":
        assert (await shop.register("v1"))[0] == 200
    if habit == "only_v2":
        assert (await shop.register("v1"))[0] == 401


async def test_registration_needs_a_token_and_a_version_that_exists(shop: Shop) -> None:
    assert (await shop.register("v3"))[1]["errorCode"] == "404.001.01"
    shop.client.token = "another"
    assert (await shop.register())[1]["errorCode"] == "404.001.03"
    assert (await shop.simulate())[1]["errorCode"] == "404.001.03"


async def test_ordered_fault_is_answered_once(shop: Shop) -> None:
    await shop.client.control("POST", "faults", {"operation": "c2bregister", "fault": "firewall_403", "times": 1})
    assert (await shop.register())[0] == 403
    assert (await shop.register())[0] == 200


# -- simulate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"CommandID": "CustomerPaybillOnline"}, "CommandID"),
        ({"CommandID": None}, "CommandID"),
        ({"Amount": 0}, "Amount"),
        ({"Amount": 250_001}, "Amount"),
        ({"Amount": "1.5"}, "Amount"),
        ({"Msisdn": "0711000001"}, "Msisdn"),
        ({"Msisdn": None}, "Msisdn"),
        ({"BillRefNumber": None}, "BillRefNumber"),
        ({"BillRefNumber": "A" * 21}, "BillRefNumber"),
        ({"BillRefNumber": [1]}, "BillRefNumber"),
        ({"ShortCode": "x"}, "ShortCode"),
    ],
)
async def test_simulation_with_a_bad_field_is_refused_by_name(shop: Shop, changes: dict[str, Any], field: str) -> None:
    status, fault = await shop.simulate(**changes)
    assert (status, fault["errorMessage"]) == (400, f"Bad Request - Invalid {field}")
    assert await shop.client.moved(PHONE) == []


async def test_simulated_paybill_payment_is_validated_and_confirmed_by_v2(shop: Shop) -> None:
    await shop.register("v2")
    status, ack = await shop.simulate("v2")
    assert (status, ack["ResponseCode"]) == (200, "0")
    assert ack["OriginatorCoversationID"]
    (confirmation,) = await shop.confirmed()
    ((receipt, amount),) = await shop.client.moved(PHONE)
    assert amount == 50
    at = datetime.strptime(confirmation["TransTime"], "%Y%m%d%H%M%S").replace(tzinfo=EAT)
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert confirmation == {
        "TransactionType": "Pay Bill",
        "TransID": receipt,
        "TransTime": confirmation["TransTime"],
        "TransAmount": "50.00",
        "BusinessShortCode": SHORTCODE,
        "BillRefNumber": "HOUSE 7B",
        "InvoiceNumber": "",
        "OrgAccountBalance": "50.00",
        "ThirdPartyTransID": "",
        "MSISDN": "2547 ***** 001",
        "FirstName": "JANE",
    }
    (validation,) = shop.posted("/c2b-validation/")
    # The confirmation may be stamped a second later.
    assert validation | {"TransTime": confirmation["TransTime"]} == confirmation | {"OrgAccountBalance": ""}


async def test_simulated_till_payment_is_confirmed_by_v1_with_the_digest_of_the_payer(shop: Shop) -> None:
    await shop.register("v1")
    status, ack = await shop.simulate("v1", CommandID="CustomerBuyGoodsOnline", BillRefNumber=None)
    assert status == 200
    assert sorted(ack) == ["ConversationID", "OriginatorCoversationID", "ResponseDescription"]
    (confirmation,) = await shop.confirmed()
    assert confirmation["TransactionType"] == "Customer Merchant Payment"
    assert (confirmation["TransAmount"], confirmation["BillRefNumber"]) == ("50", "")
    assert confirmation["MSISDN"] == DIGEST
    assert [confirmation[name] for name in ("FirstName", "MiddleName", "LastName")] == ["JANE", "W", "DOE"]


async def test_simulation_without_registration_moves_money_and_confirms_nothing(shop: Shop) -> None:
    assert (await shop.simulate())[0] == 200

    async def has_moved() -> bool:
        return len(await shop.client.moved(PHONE)) == 1

    await eventually(has_moved)
    await shop.client.quiet()
    assert shop.client.receiver.received == []


async def test_forgetting_sandbox_wants_a_registration_before_each_simulation(shop: Shop) -> None:
    await shop.client.control("PATCH", "habits", {"c2bsimulate": "forgets_registration"})
    await shop.register()
    await shop.simulate()
    await shop.confirmed(1)
    await shop.simulate()

    async def have_moved() -> bool:
        return len(await shop.client.moved(PHONE)) == 2

    await eventually(have_moved)
    await shop.confirmed(1)
    await shop.register()
    await shop.simulate()
    await shop.confirmed(2)


# -- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["C2B00011", "C2B00012", "C2B00013", "C2B00014", "C2B00015", "C2B00016", 1, "1", "C2B00099"]
)
async def test_any_code_but_zero_refuses_before_money_moves_and_the_payer_reads_why(shop: Shop, code: Any) -> None:
    await shop.register()
    shop.verdict = {"ResultCode": code, "ResultDesc": "Rejected"}
    paid = await shop.pay()
    assert (paid["state"], paid["code"]) == ("refused", str(code))
    await shop.client.quiet()
    assert (await shop.client.moved(PHONE), shop.posted("/c2b/")) == ([], [])
    assert [one["receipt"] for one in await shop.client.control("GET", f"c2b?phone={PHONE}")] == [paid["receipt"]]
    _, page = await shop.client.call("GET", f"/simulator?phone={PHONE}", Accept="text/html")
    assert "fail" in page.lower()
    assert ("wrong account number HOUSE 7B" in page) == (code == "C2B00012")


@pytest.mark.parametrize("code", [0, "0"])
async def test_accepting_answer_is_echoed_in_the_confirmation(shop: Shop, code: Any) -> None:
    await shop.register()
    shop.verdict = {"ResultCode": code, "ResultDesc": "Accepted", "ThirdPartyTransID": "INV-77"}
    assert (await shop.pay())["state"] == "paid"
    (confirmation,) = await shop.confirmed()
    assert confirmation["ThirdPartyTransID"] == "INV-77"


@pytest.mark.parametrize("response_type", ["Completed", "Cancelled"])
@pytest.mark.parametrize("failure", ["unreachable", "slow", "error", "no json", "no code"])
async def test_response_type_decides_where_validation_does_not_answer(
    shop: Shop, receiver: Receiver, response_type: str, failure: str
) -> None:
    await shop.register(ResponseType=response_type)
    if failure == "slow":
        receiver.delay = 1.0
    elif failure == "error":
        receiver.answer = lambda one, _: 503 if "validation" in one.path else 200
    else:
        shop.verdict = {"no json": "x", "no code": {"ResultDesc": "Rejected"}}.get(failure, ACCEPTED)
    paid = await shop.pay(validation="unreachable" if failure == "unreachable" else "asked")
    if response_type == "Completed":
        assert (paid["state"], paid["code"]) == ("paid", None)
        assert len(await shop.confirmed()) == 1
    else:
        assert (paid["state"], paid["code"]) == ("refused", "no_answer")
        assert await shop.client.moved(PHONE) == []
    assert len(shop.posted("/c2b-validation/")) == (0 if failure == "unreachable" else 1)


async def test_payment_without_external_validation_asks_nobody(shop: Shop) -> None:
    await shop.register(ResponseType="Cancelled")
    shop.verdict = {"ResultCode": "C2B00016"}
    assert (await shop.pay(validation="not_enabled"))["state"] == "paid"
    await shop.confirmed()
    assert shop.posted("/c2b-validation/") == []


# -- confirmation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 404, 500, 503])
async def test_confirmation_is_sent_once_whatever_the_answer(shop: Shop, receiver: Receiver, status: int) -> None:
    await shop.register()
    receiver.answer = lambda one, _: 200 if "validation" in one.path else status
    await shop.pay()
    await shop.confirmed(1)
    # A retry of other results is due after `callback_pause`.
    await shop.client.control("POST", "ledger", {"phone": PHONE, "amount": 1, "shortcode": SHORTCODE})
    assert not await shop.client.gateway.db.fetchval("SELECT EXISTS (SELECT FROM sim_result WHERE due_at IS NOT NULL)")
    await shop.confirmed(1)


async def test_lost_confirmation_is_found_by_pull_only_and_can_be_sent_by_hand(shop: Shop) -> None:
    await shop.register()
    paid = await shop.pay(confirmation="lost")
    await shop.client.quiet()
    assert shop.posted("/c2b/") == []
    operations = Operations(shop.client)
    await operations.register()
    ((line,),) = (await operations.pull())[1]["Response"]
    assert (line["transactionId"], line["billreference"], line["amount"]) == (paid["receipt"], "HOUSE 7B", "50")
    assert line["transactiontype"] == "c2b-pay-bill-debit"
    for count in (1, 2):
        answer = await shop.client.control("POST", f"c2b/{paid['receipt']}/confirmation")
        assert answer == {"status": 200}
        first, *more = await shop.confirmed(count)
        assert more == [first] * (count - 1)
    status, _ = await shop.client.call("POST", "/simulator/control/c2b/UKT0000000/confirmation")
    assert status == 404


async def test_late_confirmation_comes_after_the_delay(shop: Shop) -> None:
    await shop.client.control("PATCH", "knobs", {"late_delay": 600})
    await shop.register()
    paid = await shop.pay(confirmation="late")
    due = await shop.client.gateway.db.fetchval("SELECT due_at FROM sim_result")
    assert 599 < (due - datetime.fromisoformat(paid["ended_at"])).total_seconds() < 601
    assert shop.posted("/c2b/") == []
    await shop.client.gateway.db.execute("UPDATE sim_result SET due_at = now()")
    await shop.confirmed()


@pytest.mark.parametrize(
    ("shown", "form"),
    [
        ("clear", PHONE),
        ("masked", "2547 ***** 001"),
        ("masked_close", "2547*****001"),
        ("masked_long", "25471****001"),
        ("hashed", DIGEST),
        ("hashed_masked", f"{DIGEST[:4]} ***** {DIGEST[-4:]}"),
    ],
)
async def test_payer_has_each_observed_form(shop: Shop, shown: str, form: str) -> None:
    await shop.register()
    await shop.pay(payer_shown=shown)
    (confirmation,) = await shop.confirmed()
    assert confirmation["MSISDN"] == form


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ("all", {"FirstName": "JANE", "MiddleName": "W", "LastName": "DOE"}),
        ("first", {"FirstName": "JANE"}),
        ("empty", {"FirstName": "", "MiddleName": "", "LastName": ""}),
        ("absent", {}),
    ],
)
async def test_names_can_be_empty_or_absent(shop: Shop, names: str, shown: dict[str, str]) -> None:
    await shop.register()
    await shop.pay(names=names, transaction_type="NI Push")
    (confirmation,) = await shop.confirmed()
    assert {name: value for name, value in confirmation.items() if name.endswith("Name")} == shown
    assert confirmation["TransactionType"] == "NI Push"


async def test_contract_address_pays_like_the_control_address(shop: Shop) -> None:
    body = {"phone": "0711000001", "amount": 50, "shortcode": SHORTCODE, "kind": "buy_goods", "account_number": "x"}
    status, answer = await shop.client.call("POST", "/v1/simulator/c2b", body)
    assert (status, answer["data"]["state"], answer["data"]["account_number"]) == (200, "paid", "")
    status, refused = await shop.client.call("POST", "/v1/simulator/c2b", body | {"amount": 0, "phone": "12"})
    assert status == 422
    assert {error["field"] for error in refused["errors"]} == {"amount", "phone"}
    status, _ = await shop.client.call("POST", "/v1/simulator/c2b", body, Origin="https://elsewhere.example.com")
    assert status == 403


# -- the phone's page -------------------------------------------------------------------------------------------------


async def test_phone_page_pays_a_paybill_and_a_till_and_shows_the_messages(shop: Shop) -> None:
    await shop.register()
    async with Browser(f"{shop.client.base}/simulator") as browser:
        page = await browser.open(f"?phone={PHONE}")
        form = page.form("/pay")
        assert set(form.fields) == {"phone", "shortcode", "account_number", "amount"}
        paid = await browser.submit(page, "/pay", shortcode=SHORTCODE, account_number=" HOUSE 7B ", amount="750")
        ((receipt, _),) = await shop.client.moved(PHONE)
        assert f"{receipt} Confirmed. Ksh750.00 sent to {SHORTCODE} for account HOUSE 7B on" in paid.words
        assert "New M-PESA balance is Ksh24,250.00." in paid.words
        paid = await browser.submit(page, "/pay", shortcode="5123456", account_number="", amount="50")
        assert "Ksh50.00 sent to 5123456 on" in paid.words
        shop.verdict = {"ResultCode": "C2B00013", "ResultDesc": "Rejected"}
        refused = await browser.submit(page, "/pay", shortcode=SHORTCODE, account_number="X", amount="9")
        assert f"Failed. Ksh9.00 is not an amount that {SHORTCODE} accepts. Nothing was paid." in refused.words
        assert "KES 24,200" in refused.words
    (confirmation,) = await shop.confirmed()
    assert (confirmation["BillRefNumber"], confirmation["TransAmount"]) == ("HOUSE 7B", "750.00")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"shortcode": "12"}, "shortcode: must be the 5 to 7 digits"),
        ({"account_number": "A" * 21}, "account_number: must be at most 20"),
        ({"amount": "0"}, "amount: must be a whole number"),
        ({"amount": "1.5"}, "amount: must be a whole number"),
        ({"amount": "250001"}, "amount: must be a whole number"),
        ({"amount": "25001"}, "amount: is more than the balance of this phone, KES 25,000"),
        ({"phone": "12"}, "phone:"),
    ],
)
async def test_phone_page_with_a_bad_payment_names_the_field_and_moves_nothing(
    shop: Shop, fields: dict[str, str], problem: str
) -> None:
    good = {"phone": PHONE, "shortcode": SHORTCODE, "account_number": "HOUSE 7B", "amount": "50"}
    async with Browser(f"{shop.client.base}/simulator") as browser:
        refused = await browser.send("/pay", good | fields)
        assert (refused.status, problem in refused.words) == (422, True), refused.words
    assert await shop.client.control("GET", "c2b") == []


# -- the same money everywhere ----------------------------------------------------------------------------------------


async def test_status_reversal_and_balance_know_the_money(shop: Shop) -> None:
    await shop.register()
    first, second = await shop.pay(amount=300), await shop.pay(amount=20)
    one, two = await shop.confirmed(2)
    assert {one["OrgAccountBalance"], two["OrgAccountBalance"]} == {"300.00", "320.00"}
    assert {one["TransID"], two["TransID"]} == {first["receipt"], second["receipt"]}
    operations = Operations(shop.client)
    await operations.status(first["receipt"])
    shown = parameters((await results(shop, "/status/result"))[0])
    assert (shown["ReceiptNo"], shown["Amount"], shown["ReasonType"]) == (first["receipt"], "300", "Pay Bill")
    await operations.reverse(first["receipt"], 300)
    (result,) = await results(shop, "/reversal/result")
    assert result["ResultCode"] == 0
    await shop.pay(amount=1)
    assert (await shop.confirmed(3))[-1]["OrgAccountBalance"] == "21.00"


async def results(shop: Shop, path: str) -> list[dict[str, Any]]:
    """Return the results posted to a path, at least one."""

    async def have_come() -> bool:
        return bool(shop.posted(path))

    await eventually(have_come)
    return [body["Result"] for body in shop.posted(path)]


@pytest.mark.parametrize("phone", ["254711000001", "254700000007", "254700000021"])
async def test_paid_push_of_a_registered_shortcode_is_also_confirmed_with_its_receipt(shop: Shop, phone: str) -> None:
    await shop.register()
    await shop.client.push(phone, 40)
    (confirmation,) = await shop.confirmed()
    ((receipt, _),) = await shop.client.moved(phone)
    assert (confirmation["TransID"], confirmation["TransAmount"]) == (receipt, "40.00")
    assert (confirmation["BillRefNumber"], confirmation["BusinessShortCode"]) == ("ORDER-1", SHORTCODE)
    assert shop.posted("/c2b-validation/") == []


async def test_push_to_a_till_is_confirmed_where_its_store_number_is_registered(shop: Shop) -> None:
    await shop.register()
    await shop.client.push(PHONE, 40, TransactionType="CustomerBuyGoodsOnline", PartyB="5123456")
    (confirmation,) = await shop.confirmed()
    assert (confirmation["BusinessShortCode"], confirmation["BillRefNumber"]) == ("5123456", "")
    assert confirmation["TransactionType"] == "Customer Merchant Payment"


async def test_unpaid_push_and_other_shortcodes_are_not_confirmed(shop: Shop) -> None:
    await shop.register(ShortCode="600999")
    await shop.client.push(PHONE)
    await shop.client.called_back(PHONE)
    await shop.register()
    await shop.client.push("254700000001")
    await shop.client.called_back("254700000001")
    assert shop.posted("/c2b/") == []


async def test_payment_that_waits_for_validation_survives_a_restart(values: dict[str, Any], receiver: Receiver) -> None:
    async with daraja(values | {"simulator": QUICK | {"validation_timeout": 30.0}}, receiver) as client:
        shop = Shop(client)
        receiver.says = shop.answer
        await shop.register()
        receiver.delay = 60.0
        await shop.simulate()

        async def is_asked() -> bool:
            return bool(shop.posted("/c2b-validation/"))

        await eventually(is_asked)
    receiver.delay = 0.0
    async with daraja(values | {"simulator": QUICK}, receiver) as client:
        # Only now: the first simulator would have claimed it again.
        await client.gateway.db.execute("UPDATE sim_c2b_payment SET due_at = now()")
        shop = Shop(client)
        await shop.confirmed()
        assert len(await client.moved(PHONE)) == 1
