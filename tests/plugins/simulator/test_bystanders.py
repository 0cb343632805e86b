"""Protects the simulator's bystanders: number, kinds, formats in Pull and status answers, and reproducibility."""

import hashlib
from collections import Counter
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway_simulator.bystanders import (
    OTHER_SHOP,
    OUTGOING,
    PULL_TYPES,
    REVERSAL_TYPE,
    Movement,
    Push,
    bystanders_of,
    shown_payer,
)
from tests.plugins.simulator.daraja_client import QUICK, daraja
from tests.plugins.simulator.test_results import PHONE, SHORTCODE, Operations, parameters

AT = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)


def make_push(*, is_till: bool = False, reference: str = "PMT7K2Q9X4A1") -> Push:
    """A push of KES 500 at 09:00 UTC."""
    return Push(receiver=SHORTCODE, is_till=is_till, phone=PHONE, amount=500, reference=reference, at=AT)


def make_bystanders(pushes: int = 400, *, is_till: bool = False, reference: str = "PMT7K2Q9X4A1") -> list[Movement]:
    """Returns the bystanders around several pushes."""
    push = make_push(is_till=is_till, reference=reference)
    return [one for number in range(pushes) for one in bystanders_of(push, 3.0, number.to_bytes(2, "big"))]


def is_close(one: Movement) -> bool:
    """Returns True if a careless match would take the movement for the push's payment."""
    is_like = one.phone != PHONE and (one.phone[:6], one.phone[-3:]) == (PHONE[:6], PHONE[-3:])
    is_near = timedelta(minutes=-2) <= one.at - AT <= timedelta(minutes=10)
    is_hidden = one.payer_shown not in {"national", "whole"}
    return (
        is_like
        and is_near
        and is_hidden
        and (one.shortcode, one.amount, one.kind in OUTGOING) == (SHORTCODE, 500, False)
    )


def test_bystanders_are_three_per_push_and_one_in_ten_resembles_it() -> None:
    bystanders = make_bystanders()
    assert len(bystanders) == 1200
    close = sum(map(is_close, bystanders))
    assert 0.07 < close / len(bystanders) < 0.14


def test_bystanders_have_every_kind_and_every_format() -> None:
    bystanders = make_bystanders() + make_bystanders(is_till=True)
    kinds = Counter(one.kind for one in bystanders)
    assert set(kinds) == {"pay_bill", "buy_goods", *OUTGOING}
    assert min(kinds.values()) > 50
    assert {one.payer_shown for one in bystanders} == {"national", "whole", "masked", "partial", "hashed", "absent"}
    assert {one.time_shown for one in bystanders} == {"offset", "no_zone", "z_meaning_eat"}
    assert {one.shortcode for one in bystanders} == {SHORTCODE, OTHER_SHOP}
    assert any(one.skew for one in bystanders)
    # The payer of the push pays the same amount again, hours before and after.
    again = [
        one.at - AT
        for one in bystanders
        if one.phone == PHONE and one.kind not in OUTGOING and one.shortcode == SHORTCODE
    ]
    assert min(again) < timedelta(hours=-1)
    assert max(again) > timedelta(hours=1)
    assert all(abs(gap) >= timedelta(minutes=30) for gap in again)


def test_bystanders_at_the_receiver_never_use_the_reference_of_the_push() -> None:
    for reference in ("PMT7K2Q9X4A1", "RENT", " x9"):
        inwards = [
            one
            for one in make_bystanders(reference=reference)
            if one.kind not in OUTGOING and one.shortcode == SHORTCODE
        ]
        assert not any(one.reference.strip().upper() == reference.strip().upper() for one in inwards)
    assert all(one.reference == "" for one in make_bystanders(is_till=True) if one.kind == "buy_goods")


def test_bystanders_of_one_seed_are_equal_and_a_share_is_a_probability() -> None:
    push = make_push()
    assert bystanders_of(push, 3.0, b"seed") == bystanders_of(push, 3.0, b"seed")
    assert bystanders_of(push, 3.0, b"seed") != bystanders_of(push, 3.0, b"other")
    assert bystanders_of(push, 0.0, b"seed") == []
    counts = [len(bystanders_of(push, 0.5, number.to_bytes(2, "big"))) for number in range(400)]
    assert set(counts) == {0, 1}
    assert 150 < sum(counts) < 250


def test_payer_is_shown_in_each_format_of_pull() -> None:
    phone = "254711222042"
    assert shown_payer(phone, "national") == "711222042"
    assert shown_payer(phone, "whole") == phone
    assert shown_payer(phone, "masked") == "25471****042"
    assert shown_payer(phone, "partial") == "711***042"
    assert shown_payer(phone, "hashed") == hashlib.sha256(phone.encode()).hexdigest()
    assert shown_payer(phone, "absent") is None


@pytest.fixture
async def operations(values: dict[str, Any]) -> AsyncGenerator[Operations]:
    """A client of a simulator with bystanders."""
    with_bystanders = {"simulator": QUICK | {"strangers": 3.0, "seed": 7}}
    async with receiving() as receiver, daraja(values | with_bystanders, receiver) as client:
        yield Operations(client)


async def statement(operations: Operations) -> list[dict[str, Any]]:
    """Returns the statement rows of the last 24 hours."""
    _, answer = await operations.pull(hours=24)
    return [row for rows in answer["Response"] for row in rows]


async def test_statement_contains_bystanders_of_the_past(operations: Operations) -> None:
    await operations.register()
    for number in range(20):
        await operations.client.push(f"2547110002{number:02}", 500)
    await operations.client.ended("254711000219")
    ledger = {one["receipt"]: one for one in await operations.client.control("GET", "ledger")}
    rows = {row["transactionId"]: row for row in await statement(operations)}
    at_receiver = {receipt for receipt, one in ledger.items() if one["shortcode"] == SHORTCODE}
    assert set(rows) == at_receiver
    ours = [one for one in ledger.values() if one["kind"] == "push"]
    assert len(ours) == 20
    assert len(ledger) - len(ours) > 30
    for receipt, row in rows.items():
        kind = ledger[receipt]["kind"]
        assert row["transactiontype"] == PULL_TYPES["pay_bill" if kind == "push" else kind]
    assert any("msisdn" not in row for row in rows.values())
    shown = {"Z" if row["trxDate"][-1] == "Z" else row["trxDate"][19:] for row in rows.values()}
    assert shown == {"Z", "", "+03:00"}


async def test_status_result_names_debit_and_credit_party_by_direction(operations: Operations) -> None:
    parties: dict[str, tuple[Any, Any]] = {}
    for kind in ("pay_bill", "payout", "shop_payment", "portal_reversal", "charge"):
        receipt = await operations.money(700, kind=kind, payer_shown="absent")
        await operations.status(receipt)
        (result,) = await operations.results("/status/result")
        found = parameters(result)
        assert (found["ReceiptNo"], found["TransactionStatus"], found["Amount"]) == (receipt, "Completed", "700")
        parties[kind] = (found["DebitPartyName"].split(" ")[0], found["CreditPartyName"].split(" ")[0])
    assert parties == {
        "pay_bill": (PHONE, SHORTCODE),
        "payout": (SHORTCODE, PHONE),
        "shop_payment": (SHORTCODE, OTHER_SHOP),
        "portal_reversal": (SHORTCODE, PHONE),
        "charge": (SHORTCODE, "Safaricom"),
    }


async def test_status_query_of_another_shortcode_or_a_future_transaction_is_2032(operations: Operations) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    for money in ({"shortcode": OTHER_SHOP}, {"at": later.isoformat()}):
        await operations.status(await operations.money(700, **money))
        (result,) = await operations.results("/status/result")
        assert result["ResultCode"] == 2032


async def test_reversal_is_on_the_statement_and_has_its_own_status(operations: Operations) -> None:
    await operations.register()
    receipt = await operations.money(500, reference="ORDER-1")
    await operations.reverse(receipt, 500)
    (reversal,) = await operations.results("/reversal/result")
    reversal_receipt = reversal["TransactionID"]
    (row,) = [row for row in await statement(operations) if row["transactionId"] == reversal_receipt]
    assert (row["transactiontype"], row["amount"], row["billreference"]) == (REVERSAL_TYPE, "500", "ORDER-1")
    await operations.status(reversal_receipt)
    (result,) = await operations.results("/status/result")
    found = parameters(result)
    assert (found["DebitPartyName"], found["CreditPartyName"]) == (f"{SHORTCODE} - Shop", f"{PHONE} - JANE DOE")
    assert (found["ReceiptNo"], found["ReasonType"]) == (reversal_receipt, REVERSAL_TYPE)


async def test_reversal_of_an_outgoing_transaction_is_refused(operations: Operations) -> None:
    for kind in OUTGOING:
        await operations.reverse(await operations.money(500, kind=kind), 500)
        (result,) = await operations.results("/reversal/result")
        assert result["ResultCode"] == "R000002"


async def test_transaction_with_clock_skew_is_shifted_in_statement_and_status(operations: Operations) -> None:
    await operations.register()
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30)
    receipt = await operations.money(500, at=at.isoformat(), skew=-75)
    shown = (at - timedelta(seconds=75)).astimezone(EAT)
    (row,) = await statement(operations)
    assert row["trxDate"] == f"{shown:%Y-%m-%dT%H:%M:%S}+03:00"
    await operations.status(receipt)
    (result,) = await operations.results("/status/result")
    assert parameters(result)["FinalisedTime"] == f"{shown:%Y%m%d%H%M%S}"


async def test_ledger_without_bystanders_has_the_requested_payments_only(values: dict[str, Any]) -> None:
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver) as client:
        operations = Operations(client)
        await operations.register()
        await client.push(PHONE)
        await client.ended(PHONE)
        (entry,) = await client.control("GET", "ledger")
        await operations.reverse(entry["receipt"], 7)
        await operations.results("/reversal/result")
        (row,) = await statement(operations)
        assert (row["transactionId"], row["msisdn"]) == (entry["receipt"], PHONE[3:])
