"""Protects payments of a merchant with several shortcodes: each is queried, reconciled and refunded at its own."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT, SetClock
from mpesa_gateway.testing.serving import INITIATED, Answer, Api
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_credentials.ownership import ReceiverOwnership
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_reconciliation.service import ReconciliationService
from tests.plugins.credentials.two_env_site import (
    PHONE,
    RECONCILE,
    REGISTER,
    SPIKE_ARREST,
    Account,
    TwoEnvSite,
    complete_payment,
    two_env_site,
)

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SHORTCODES = "/v1/merchant/shortcodes"
FIRST, SECOND = "600001", "600002"


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW)


@pytest.fixture
async def site(values: dict[str, Any], clock: SetClock) -> AsyncGenerator[TwoEnvSite]:
    async with two_env_site(values, clock) as found:
        yield found


async def add(api: Api, shortcode: str, env: str = "live", **changes: Any) -> Answer:
    fields = INITIATED["mpesa"] | {"env": env, "shortcode": shortcode} | changes
    answer = await api.call("POST", SHORTCODES, {name: each for name, each in fields.items() if each is not None})
    assert answer.status == 201, answer.body
    return answer


@pytest.fixture
async def shop(site: TwoEnvSite) -> Account:
    """A merchant with two live shortcodes; FIRST is the default."""
    made = await site.account()
    for number in (FIRST, SECOND):
        await add(made.live, number)
    return made


def pushed_to(site: TwoEnvSite) -> list[str]:
    return [each["BusinessShortCode"] for each in site.live.requests_of("stkpush")]


async def shortcode_id(site: TwoEnvSite, shop: Account, number: str) -> str:
    return (await site.gateway.port(Credentials).active(shop.merchant_id, "live", number)).shortcode_id


# -- creation ---------------------------------------------------------------------------------------------------------


async def test_payment_at_a_named_shortcode_shows_it_everywhere(site: TwoEnvSite, shop: Account) -> None:
    made = await shop.live.pay(PHONE, key="a", shortcode=SECOND)
    assert (made.status, made.data["shortcode"]) == (201, SECOND)
    await shop.live.pay(PHONE, key="b")
    assert pushed_to(site) == [SECOND, FIRST]
    for query, keys in ((f"?shortcode={SECOND}", ["a"]), (f"?shortcode={FIRST}", ["b"]), ("?shortcode=600009", [])):
        listed = (await shop.live.call("GET", f"/v1/payments{query}&count=true")).body
        assert [each["idempotency_key"] for each in listed["data"]] == keys
        assert listed["meta"]["total"] == len(keys)
    assert (await shop.live.call("GET", "/v1/payments?shortcode=12")).error["field"] == "shortcode"
    shown = (await shop.live.call("GET", f"/v1/payments/{made.data['id']}")).data
    assert shown["shortcode"] == SECOND


async def test_key_with_another_shortcode_is_a_mismatch(site: TwoEnvSite, shop: Account) -> None:
    made = await shop.live.pay(PHONE, key="a", shortcode=SECOND)
    for other in ({"shortcode": FIRST}, {}):
        refused = await shop.live.pay(PHONE, key="a", **other)
        assert (refused.status, refused.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    again = await shop.live.pay(PHONE, key="a", shortcode=SECOND)
    assert (again.status, again.data["id"]) == (200, made.data["id"])
    # Also after the key's record has expired.
    await site.gateway.db.execute("DELETE FROM idempotency_key")
    refused = await shop.live.pay(PHONE, key="a", shortcode=FIRST)
    assert (refused.status, refused.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    again = await shop.live.pay(PHONE, key="a", shortcode=SECOND)
    assert (again.status, again.data["id"]) == (200, made.data["id"])
    assert pushed_to(site) == [SECOND]


async def test_key_without_shortcode_is_replayed_after_the_default_changed(site: TwoEnvSite, shop: Account) -> None:
    made = await shop.live.pay(PHONE, key="a")
    assert (await shop.live.call("POST", f"{SHORTCODES}/{SECOND}/default")).status == 200
    again = await shop.live.pay(PHONE, key="a")
    assert (again.status, again.data["id"], again.data["shortcode"]) == (200, made.data["id"], FIRST)
    assert pushed_to(site) == [FIRST]


@pytest.mark.parametrize("named", [{}, {"shortcode": FIRST}])
async def test_unsent_payment_is_retried_at_its_own_shortcode(
    site: TwoEnvSite, shop: Account, named: dict[str, str]
) -> None:
    site.live.add_answers("stkpush", SPIKE_ARREST)
    assert (await shop.live.pay(PHONE, key="a", **named)).status == 503
    await shop.live.call("POST", f"{SHORTCODES}/{SECOND}/default")
    again = await shop.live.pay(PHONE, key="a", **named)
    assert (again.status, again.data["shortcode"]) == (201, FIRST)
    assert pushed_to(site) == [FIRST, FIRST]


async def test_unsent_payment_of_a_retired_shortcode_is_a_conflict(site: TwoEnvSite, shop: Account) -> None:
    site.live.add_answers("stkpush", SPIKE_ARREST)
    assert (await shop.live.pay(PHONE, key="a", shortcode=SECOND)).status == 503
    await shop.live.call("DELETE", f"{SHORTCODES}/{SECOND}")
    refused = await shop.live.pay(PHONE, key="a", shortcode=SECOND)
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    await add(shop.live, SECOND)
    assert (await shop.live.pay(PHONE, key="a", shortcode=SECOND)).status == 201
    assert pushed_to(site) == [SECOND, SECOND]


async def test_shortcode_of_another_env_or_merchant_takes_no_payment(site: TwoEnvSite, shop: Account) -> None:
    other = await site.account()
    await add(other.live, "600005")
    await add(shop.sandbox, "600006", "sandbox")
    for number in ("600005", "600006", "600009"):
        refused = await shop.live.pay(PHONE, key=number, shortcode=number)
        assert (refused.status, refused.error["code"], refused.error["field"]) == (
            422,
            "PROVIDER_NOT_CONFIGURED",
            "shortcode",
        )
    assert site.live.requests_of("stkpush") == site.sandbox.requests_of("stkpush") == []


async def test_shared_receiver_needs_permission_for_itself_only(site: TwoEnvSite, shop: Account) -> None:
    other = await site.account()
    await add(other.live, "600005")
    await add(other.live, SECOND)
    assert (await shop.live.pay(PHONE, key="a", shortcode=SECOND)).status == 201
    assert (await other.live.pay(PHONE, key="a", shortcode=SECOND)).status == 409
    assert (await other.live.pay(PHONE, key="b")).status == 201
    missing = (await other.live.call("GET", f"{SHORTCODES}/{SECOND}")).body["meta"]["missing"]
    assert "receiver" in {each["name"] for each in missing if each.get("shortcode") == SECOND}
    missing = (await other.live.call("GET", f"{SHORTCODES}/600005")).body["meta"]["missing"]
    assert "receiver" not in {each["name"] for each in missing}
    ownership = site.gateway.services.get(ReceiverOwnership)
    await ownership.allow_use(SECOND, other.merchant_id, is_allowed=True, actor="test")
    assert (await other.live.pay(PHONE, key="c", shortcode=SECOND)).status == 201


async def test_token_belongs_to_the_app_of_each_shortcode(site: TwoEnvSite) -> None:
    shop = await site.account()
    for number, key in ((FIRST, "consumer-key-one"), (SECOND, "consumer-key-two"), ("600003", "consumer-key-one")):
        await add(shop.live, number, consumer_key=key)
        assert (await shop.live.pay(PHONE, key=number, shortcode=number)).status == 201
    assert len(site.live.requests_of("oauth")) == 2


# -- questions --------------------------------------------------------------------------------------------------------


async def test_spike_arrest_pauses_the_queries_of_its_shortcode_only(
    site: TwoEnvSite, shop: Account, clock: SetClock
) -> None:
    for number in (FIRST, SECOND):
        assert (await shop.live.pay(PHONE, key=number, shortcode=number)).status == 201
    clock.advance(timedelta(minutes=5))
    queries = site.gateway.services.get(StkQueries)
    site.live.add_answers("stkquery", SPIKE_ARREST)
    await queries.query_due(await shortcode_id(site, shop, FIRST))
    await queries.query_due(await shortcode_id(site, shop, SECOND))
    clock.advance(timedelta(seconds=2))
    await queries.query_due(await shortcode_id(site, shop, FIRST))
    assert [each["BusinessShortCode"] for each in site.live.requests_of("stkquery")] == [FIRST, SECOND]


async def test_check_status_asks_at_the_payments_shortcode_or_the_named_one(site: TwoEnvSite, shop: Account) -> None:
    made = (await shop.live.pay(PHONE, key="a", shortcode=SECOND)).data
    check = "/v1/payments/mpesa/check-status"
    for subject, asked in (
        (made["id"], SECOND),
        ("TKN4A1B2C3", FIRST),
        (f"TKN4A1B2C4?shortcode={SECOND}", SECOND),
    ):
        assert (await shop.live.call("POST", f"{check}/{subject}")).status == 200
        assert site.live.requests_of("transactionstatus")[-1]["PartyA"] == asked
    wrong = await shop.live.call("POST", f"{check}/{made['id']}?shortcode={FIRST}")
    assert (wrong.status, wrong.error["field"]) == (422, "shortcode")
    unknown = await shop.live.call("POST", f"{check}/TKN4A1B2C5?shortcode=600009")
    assert (unknown.status, unknown.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")


async def test_refund_is_sent_by_the_payments_shortcode(site: TwoEnvSite, shop: Account) -> None:
    made = (await shop.live.pay(PHONE, key="a", shortcode=SECOND)).data
    await complete_payment(site, made["id"])
    await shop.live.call("DELETE", f"{SHORTCODES}/{SECOND}")
    refund = await shop.live.call("POST", "/v1/refunds", {"payment_id": made["id"]})
    assert (refund.status, refund.data["shortcode"]) == (201, SECOND)
    (sent,) = site.live.requests_of("reversal")
    assert sent["ReceiverParty"] == SECOND


# -- statements -------------------------------------------------------------------------------------------------------


def line(site: TwoEnvSite, receipt: str, reference: str, kind: str = "c2b-pay-bill-debit") -> dict[str, Any]:
    return {
        "transactionId": receipt,
        "trxDate": f"{site.gateway.clock.now().astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
        "msisdn": PHONE,
        "sender": "MPESA",
        "transactiontype": kind,
        "billreference": reference,
        "amount": "500.0",
        "organizationname": "Shop",
    }


def statement_of(lines: dict[str, list[dict[str, Any]]]) -> Any:
    """Return an answer with the lines of the asked shortcode."""

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        found = lines.get(body["ShortCode"], []) if body["OffSetValue"] == "0" else []
        return 200, {"ResponseCode": "1000", "ResponseMessage": "Success", "Response": [found]}

    return answer


async def test_pull_is_registered_for_each_shortcode(site: TwoEnvSite, shop: Account) -> None:
    for query, number in (("", FIRST), (f"?shortcode={SECOND}", SECOND)):
        registered = await shop.live.call("POST", f"{REGISTER}{query}")
        assert (registered.status, registered.data["shortcode"]) == (200, number)
        missing = (await shop.live.call("GET", f"{SHORTCODES}/{number}")).body["meta"]["missing"]
        assert "pull" not in {each["name"] for each in missing}
    assert [each["ShortCode"] for each in site.live.requests_of("pullregister")] == [FIRST, SECOND]
    assert (await shop.live.call("POST", f"{REGISTER}?shortcode=600009")).status == 422


async def test_pull_windows_advance_for_each_shortcode(site: TwoEnvSite, shop: Account, clock: SetClock) -> None:
    service = site.gateway.services.get(ReconciliationService)
    ids = [await shortcode_id(site, shop, number) for number in (FIRST, SECOND)]
    sources = await site.gateway.port(Credentials).statement_sources()
    assert sorted(each.shortcode_id for each in sources) == sorted(ids)
    assert [await service.run_due(each) for each in ids] == [True, True]
    clock.advance(timedelta(hours=5))
    # A failed run of one does not move the window of the other.
    site.live.add_answers("pullquery", (400, {"errorCode": "400.002.02", "errorMessage": "Bad Request"}))
    assert [await service.run_due(each) for each in ids] == [True, True]
    clock.advance(timedelta(hours=5))
    assert [await service.run_due(each) for each in ids] == [True, True]
    rows = await site.gateway.db.fetch(
        "SELECT shortcode, status, window_end - window_start AS length FROM reconciliation_run ORDER BY run_id"
    )
    assert [(row["shortcode"], row["status"]) for row in rows] == [
        (FIRST, "completed"),
        (SECOND, "completed"),
        (FIRST, "failed"),
        (SECOND, "completed"),
        (FIRST, "completed"),
        (SECOND, "completed"),
    ]
    assert [row["length"] // timedelta(hours=1) for row in rows[-2:]] == [10, 5]


async def test_statements_of_two_shortcodes_complete_their_own_payments(site: TwoEnvSite, shop: Account) -> None:
    made = {
        number: (await shop.live.pay(PHONE, key=number, shortcode=number, reference="table 4")).data
        for number in (FIRST, SECOND)
    }
    answer = statement_of({SECOND: [line(site, "TKN4A1B2C3", "table 4")]})
    site.live.add_answers("pullquery", *[answer] * 4)
    runs = await asyncio.gather(
        *(shop.live.call("POST", RECONCILE, {"shortcode": number}) for number in (FIRST, SECOND))
    )
    assert [(run.status, run.data["shortcode"], run.data["recovered"]) for run in runs] == [
        (200, FIRST, 0),
        (200, SECOND, 1),
    ]
    found = {number: (await shop.live.call("GET", f"/v1/payments/{each['id']}")).data for number, each in made.items()}
    assert (found[FIRST]["status"], found[FIRST]["receipt"]) == ("pending", None)
    assert (found[SECOND]["status"], found[SECOND]["receipt"]) == ("completed", "TKN4A1B2C3")


async def test_tills_of_one_store_are_shortcodes_of_their_own(site: TwoEnvSite) -> None:
    """ADR 75: the store's number proves no till, each till's statement does."""
    shop = await site.account()
    tills = ("5123456", "5123457")
    for till in tills:
        await add(shop.live, "600001", till_number=till)
    made = {till: (await shop.live.pay(PHONE, key=till, shortcode=till)).data for till in tills}
    assert [(each["BusinessShortCode"], each["PartyB"]) for each in site.live.requests_of("stkpush")] == [
        ("600001", till) for till in tills
    ]
    assert (await shop.live.pay(PHONE, key="store", shortcode="600001")).status == 422
    answer = statement_of({tills[1]: [line(site, "TKN4A1B2C3", "", "c2b-buy-goods-debit")]})
    site.live.add_answers("pullquery", *[answer] * 2)
    assert (await shop.live.call("POST", RECONCILE, {"shortcode": tills[1]})).data["recovered"] == 1
    states = [(await shop.live.call("GET", f"/v1/payments/{made[till]['id']}")).data["status"] for till in tills]
    assert states == ["pending", "completed"]
