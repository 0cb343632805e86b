"""Protects account numbers: each part payment counts once, and each crossing is published once."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.events import Event
from mpesa_gateway.plugin import Subscriber
from mpesa_gateway.testing.fixtures import PublishedEvents
from mpesa_gateway.testing.serving import INITIATED, shop
from mpesa_gateway_c2b.account_states import as_text, crossed, normalise, state_of
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_c2b.counting import AccountCounting, Entry
from mpesa_gateway_c2b.events import AccountEvent
from mpesa_gateway_payments.api import RefundablePayments
from tests.daraja import result, stk_callback
from tests.ledger import broken_invariants
from tests.plugins.c2b.c2b_site import PHONE, C2bSite, c2b_site, path_of

PATH = "/v1/account-numbers/House%207"


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found
        assert await broken_invariants(found.gateway) == {}


@pytest.fixture
def told(site: C2bSite) -> PublishedEvents:
    published = PublishedEvents()
    site.gateway.outbox.subscribe(Subscriber(Event, published.note, inside=True))
    return published


def states(told: PublishedEvents) -> list[tuple[str, str, str]]:
    return [(one.kind, one.received, one.outstanding) for one in told.of(AccountEvent)]


async def put(site: C2bSite, path: str = PATH, **fields: Any) -> dict[str, Any]:
    data: dict[str, Any] = (await site.api.call("PUT", path, fields)).data
    return data


async def shown(site: C2bSite) -> dict[str, Any]:
    data: dict[str, Any] = (await site.api.call("GET", PATH)).data
    return data


async def call_back(site: C2bSite, payment: dict[str, Any], receipt: str, code: int = 0) -> None:
    sent = site.daraja.requests_of("stkpush")[-1]
    body = stk_callback(
        payment["provider_ref"], code, receipt=receipt, amount=int(float(payment["amount"])), phone=int(PHONE)
    )
    assert (await site.api.call("POST", path_of(sent["CallBackURL"]), body)).status == 200


async def test_part_payments_count_and_each_crossing_is_told_once(site: C2bSite, told: PublishedEvents) -> None:
    path, _ = await site.addresses()
    assert (await put(site, expected=1000))["state"] == "unpaid"
    for number, (amount, typed) in enumerate(
        [("300", "House 7"), ("200", "HOUSE 7"), ("500", " house  7"), ("5", "House 7")]
    ):
        assert (await site.confirm(path, f"TKN000000{number}", amount=amount, account=typed)).status == 200
    assert states(told) == [
        ("account.part_paid", "300.00", "700.00"),
        ("account.paid", "1000.00", "0.00"),
        ("account.overpaid", "1005.00", "0.00"),
    ]
    found = await shown(site)
    assert (found["state"], found["received"], found["outstanding"], found["expected"]) == (
        "overpaid",
        "1005.00",
        "0.00",
        "1000.00",
    )
    assert [one["receipt"] for one in found["transactions"]] == ["TKN0000003", "TKN0000002", "TKN0000001", "TKN0000000"]
    assert next(row["account_number"] for row in await site.transactions()) == "House 7"


async def test_repeated_confirmation_counts_once(site: C2bSite, told: PublishedEvents) -> None:
    path, _ = await site.addresses()
    await put(site, expected=500)
    for account in ("House 7", "House 7", "HOUSE 7"):
        assert (await site.confirm(path, account=account)).status == 200
    assert (await shown(site))["received"] == "500.00"
    assert [kind for kind, _, _ in states(told)] == ["account.paid"]


async def test_concurrent_part_payments_tell_each_crossing_once(site: C2bSite, told: PublishedEvents) -> None:
    path, _ = await site.addresses()
    await put(site, expected=1000)
    answers = await asyncio.gather(
        *(site.confirm(path, f"TKN00000{number:02}", amount="100", account="House 7") for number in range(20))
    )
    assert {answer.status for answer in answers} == {200}
    assert [kind for kind, _, _ in states(told)] == ["account.part_paid", "account.paid", "account.overpaid"]
    assert (await shown(site))["received"] == "2000.00"


async def test_payment_with_the_number_as_reference_counts(site: C2bSite, told: PublishedEvents) -> None:
    await put(site, expected=800)
    payment = (await site.api.pay(PHONE, key="k-1", amount=500, reference="House 7")).data
    await call_back(site, payment, "TKN4A1B2C3")
    found = await shown(site)
    assert (found["received"], found["state"]) == ("500.00", "part_paid")
    (entry,) = found["transactions"]
    assert (entry["type"], entry["id"], entry["receipt"]) == ("payment", payment["id"], "TKN4A1B2C3")
    # The confirmation of the same money is a witness.
    path, _ = await site.addresses()
    assert (await site.confirm(path, account="House 7")).status == 200
    assert (await shown(site))["received"] == "500.00"
    assert [kind for kind, _, _ in states(told)] == ["account.part_paid"]


async def test_confirmation_of_a_push_before_its_callback_counts_once(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site, expected=800)
    payment = (await site.api.pay(PHONE, key="k-1", amount=500, reference="House 7")).data
    # The payer is hidden, so that the money may be the payment's or a stranger's.
    assert (await site.confirm(path, account="House 7", phone="ec595053 ***** 134bbb95")).status == 200
    assert (await shown(site))["received"] == "0.00"
    await call_back(site, payment, "TKN4A1B2C3")
    assert (await shown(site))["received"] == "500.00"
    assert (await site.api.call("GET", f"/v1/payments/{payment['id']}")).data["status"] == "completed"


async def test_money_left_for_a_payment_that_fails_is_allocated_later(site: C2bSite, told: PublishedEvents) -> None:
    path, _ = await site.addresses()
    await put(site, expected=500)
    payment = (await site.api.pay(PHONE, key="k-1", amount=500, reference="House 7")).data
    assert (await site.confirm(path, account="House 7", phone=None)).status == 200
    numbers = site.gateway.port(AccountNumbers)
    assert await numbers.allocate_waiting() == 0
    await call_back(site, payment, "", 1032)
    assert await numbers.allocate_waiting() == 1
    assert [kind for kind, _, _ in states(told)] == ["account.paid"]
    assert (await shown(site))["received"] == "500.00"


async def test_money_before_its_account_number_is_allocated_later(site: C2bSite, told: PublishedEvents) -> None:
    path, _ = await site.addresses()
    assert (await site.confirm(path, account="house 7")).status == 200
    await put(site, expected=500)
    assert await site.gateway.port(AccountNumbers).allocate_waiting() == 1
    assert await site.gateway.port(AccountNumbers).allocate_waiting() == 0
    assert [kind for kind, _, _ in states(told)] == ["account.paid"]


async def test_refund_of_a_payment_is_subtracted(values: dict[str, Any]) -> None:
    async with c2b_site(values) as site:
        await put(site, expected=500)
        payment = (await site.api.pay(PHONE, key="k-1", amount=500, reference="House 7")).data
        await call_back(site, payment, "TKN4A1B2C3")
        refund_id, refunds = site.gateway.ids.new("rfd"), site.gateway.port(RefundablePayments)
        async with site.gateway.db.transaction():
            reserved = await refunds.reserve(payment["merchant_id"], "sandbox", payment["id"], None, refund_id)
            await refunds.reverse(payment["id"], refund_id, reserved.amount, None)
        found = await shown(site)
        assert (found["received"], found["state"], found["outstanding"]) == ("0.00", "unpaid", "500.00")
        assert [(one["type"], one["amount"]) for one in found["transactions"]] == [
            ("refund", "-500.00"),
            ("payment", "500.00"),
        ]


async def test_entry_of_a_deleted_number_is_skipped_or_refused(site: C2bSite) -> None:
    """A payment is completed all the same, and a transaction is received again without the number."""
    counting, gone = site.gateway.port(AccountCounting), site.gateway.ids.new("acc")
    entry = Entry(site.gateway.ids.new("pay"), gone, 100)
    async with site.gateway.db.transaction():
        await counting.add([entry])
    with pytest.raises(ConcurrentUpdate):
        async with site.gateway.db.transaction():
            await counting.add([entry], must_exist=True)
    assert await site.gateway.db.fetchval("SELECT count(*) FROM account_entry") == 0


async def test_entry_given_twice_counts_once(site: C2bSite) -> None:
    account = (await put(site, expected=500))["id"]
    entry = Entry(site.gateway.ids.new("rfd"), account, -100)
    async with site.gateway.db.transaction():
        await site.gateway.port(AccountCounting).add([entry, entry])
    assert (await shown(site))["received"] == "-1.00"


async def test_refund_of_a_transaction_is_subtracted_once(site: C2bSite) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    await put(site, expected=400)
    await site.confirm(path, account="House 7")
    (money,) = await site.transactions()
    assert (await shown(site))["state"] == "overpaid"
    body, key = {"transaction_id": money["transaction_id"], "amount": 100}, {"Idempotency-Key": "back"}
    refund = (await site.api.call("POST", "/v1/refunds", body, headers=key)).data
    assert (await shown(site))["received"] == "500.00"
    (sent,) = site.daraja.requests_of("reversal")
    said = result(0, transaction_id="TKN9REV001", says={"OriginalTransactionID": refund["receipt"]})
    for _ in range(2):
        assert (await site.api.call("POST", path_of(sent["ResultURL"]), said)).status == 200
    found = await shown(site)
    assert (found["received"], found["state"]) == ("400.00", "paid")
    assert [(one["type"], one["amount"]) for one in found["transactions"]] == [
        ("refund", "-100.00"),
        ("transaction", "500.00"),
    ]


async def test_expected_amount_changed_tells_the_crossing(site: C2bSite, told: PublishedEvents) -> None:
    path, _ = await site.addresses()
    await put(site, expected=1000)
    await site.confirm(path, account="House 7")
    assert (await put(site, expected=500))["state"] == "paid"
    assert (await put(site, expected=500))["state"] == "paid"
    assert (await put(site))["state"] == "open"
    assert [(kind, one.amount) for (kind, _, _), one in zip(states(told), told.of(AccountEvent), strict=True)] == [
        ("account.part_paid", "500.00"),
        ("account.paid", None),
    ]


async def test_inactive_number_takes_no_money(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site, expected=500, active=False)
    assert (await site.confirm(path, account="House 7")).status == 200
    assert (await shown(site))["received"] == "0.00"
    (row,) = await site.transactions()
    assert row["subject_id"] is None


async def test_account_numbers_of_another_merchant_and_env_are_not_seen(site: C2bSite) -> None:
    await put(site, expected=500)
    async with shop(site.gateway, site.base) as other:
        assert (await other.call("GET", PATH)).status == 404
        assert (await other.call("DELETE", PATH)).status == 404
        assert (await other.call("GET", "/v1/account-numbers")).data == []
        # At the sandbox's shared number each merchant has its own.
        assert (await other.call("PUT", PATH, {"expected": 9})).data["expected"] == "9.00"
    assert (await shown(site))["expected"] == "500.00"


async def test_bulk_stores_all_or_none_and_names_each_wrong_row(site: C2bSite) -> None:
    rows: list[dict[str, Any]] = [{"number": f"A{number}", "expected": 100 + number} for number in range(500)]
    assert (await site.api.call("POST", "/v1/account-numbers", {"account_numbers": rows})).data == {"stored": 500}
    wrong = [
        {"number": "B1", "min": 10, "max": 5},
        {"number": "x" * 21},
        {"number": "B2", "expected": "1.50"},
        {"number": " b2"},
        {"number": "B3", "expected": 0},
        {"number": "a/b"},
    ]
    refused = await site.api.call("POST", "/v1/account-numbers", {"account_numbers": wrong})
    assert refused.status == 422
    assert {one["field"] for one in refused.body["errors"]} == {
        "account_numbers[0].max",
        "account_numbers[1].number",
        "account_numbers[2].expected",
        "account_numbers[4].expected",
        "account_numbers[5].number",
    }
    twice = await site.api.call("POST", "/v1/account-numbers", {"account_numbers": [{"number": "C"}, {"number": "c "}]})
    assert twice.error["field"] == "account_numbers[1].number"
    many = await site.api.call("POST", "/v1/account-numbers", {"account_numbers": [*rows, {"number": "X"}]})
    assert many.error["field"] == "account_numbers"
    listed = await site.api.call("GET", "/v1/account-numbers?limit=2&count=true&active=true&shortcode=174379")
    assert (len(listed.data), listed.body["meta"]["total"], listed.body["meta"]["has_more"]) == (2, 500, True)


async def test_deleted_without_money_and_kept_with_money(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site)
    assert (await site.api.call("DELETE", PATH)).data["number"] == "HOUSE 7"
    assert (await site.api.call("GET", PATH)).status == 404
    await put(site)
    await site.confirm(path, account="House 7")
    refused = await site.api.call("DELETE", PATH)
    assert (refused.status, "active false" in refused.error["message"]) == (409, True)


@pytest.mark.parametrize("query", ["?shortcode=600001", "?shortcode=x"])
async def test_unknown_shortcode_is_not_found(site: C2bSite, query: str) -> None:
    assert (await site.api.call("PUT", PATH + query, {})).status == 404


@pytest.mark.parametrize(
    ("received", "expected", "state"),
    [
        (0, None, "open"),
        (0, 100, "unpaid"),
        (99, 100, "part_paid"),
        (100, 100, "paid"),
        (101, 100, "overpaid"),
        (-1, 5, "unpaid"),
    ],
)
def test_state_by_received_and_expected(received: int, expected: int | None, state: str) -> None:
    assert state_of(received, expected) == state
    assert crossed(received, expected, received, expected) is None


def test_numbers_are_compared_without_case_width_and_blanks() -> None:
    assert normalise("  house \t 7 ") == normalise("HOUSE 7") == normalise("\uff28OUSE 7") == "HOUSE 7"
    assert normalise(None) == ""


def test_cents_are_written_with_two_places() -> None:
    assert [as_text(cents) for cents in (0, 5, 100, -150)] == ["0.00", "0.05", "1.00", "-1.50"]
