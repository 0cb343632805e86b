"""The strangers of the simulator: who they are, what Pull and status answers show of them, and the seed's part."""

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
from tests.plugins.simulator.line import QUICK, daraja
from tests.plugins.simulator.test_results import PHONE, SHORTCODE, Asking, parameters

AT = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)


def a_push(*, is_till: bool = False, reference: str = "PMT7K2Q9X4A1") -> Push:
    """A push of KES 500 at nine o'clock."""
    return Push(receiver=SHORTCODE, is_till=is_till, phone=PHONE, amount=500, reference=reference, at=AT)


def town(pushes: int = 400, *, is_till: bool = False, reference: str = "PMT7K2Q9X4A1") -> list[Movement]:
    """The strangers of many pushes."""
    push = a_push(is_till=is_till, reference=reference)
    return [one for number in range(pushes) for one in bystanders_of(push, 3.0, number.to_bytes(2, "big"))]


def is_close(one: Movement) -> bool:
    """Whether a careless match takes it for the push's: receiver, amount, minutes, digits that are like or hidden."""
    is_like = one.phone != PHONE and (one.phone[:6], one.phone[-3:]) == (PHONE[:6], PHONE[-3:])
    is_near = timedelta(minutes=-2) <= one.at - AT <= timedelta(minutes=10)
    is_hidden = one.payer_shown not in {"national", "whole"}
    return (
        is_like
        and is_near
        and is_hidden
        and (one.shortcode, one.amount, one.kind in OUTGOING) == (SHORTCODE, 500, False)
    )


def test_strangers_come_three_to_a_push_and_one_in_ten_is_close_to_it() -> None:
    people = town()
    assert len(people) == 1200
    close = sum(map(is_close, people))
    assert 0.07 < close / len(people) < 0.14


def test_every_kind_of_stranger_comes_in_every_way_of_showing() -> None:
    people = town() + town(is_till=True)
    kinds = Counter(one.kind for one in people)
    assert set(kinds) == {"pay_bill", "buy_goods", *OUTGOING}
    assert min(kinds.values()) > 50
    assert {one.payer_shown for one in people} == {"national", "whole", "masked", "partial", "hashed", "absent"}
    assert {one.time_shown for one in people} == {"offset", "no_zone", "z_meaning_eat"}
    assert {one.shortcode for one in people} == {SHORTCODE, OTHER_SHOP}
    assert any(one.skew for one in people)
    # The payer of the push buys the same again, hours earlier and later.
    again = [
        one.at - AT for one in people if one.phone == PHONE and one.kind not in OUTGOING and one.shortcode == SHORTCODE
    ]
    assert min(again) < timedelta(hours=-1)
    assert max(again) > timedelta(hours=1)
    assert all(abs(gap) >= timedelta(minutes=30) for gap in again)


def test_nobody_at_the_receiver_types_the_pushs_own_account() -> None:
    for reference in ("PMT7K2Q9X4A1", "RENT", " x9"):
        inwards = [one for one in town(reference=reference) if one.kind not in OUTGOING and one.shortcode == SHORTCODE]
        assert not any(one.reference.strip().upper() == reference.strip().upper() for one in inwards)
    assert all(one.reference == "" for one in town(is_till=True) if one.kind == "buy_goods")


def test_a_seed_is_one_population_and_a_share_of_a_stranger_is_a_chance() -> None:
    push = a_push()
    assert bystanders_of(push, 3.0, b"seed") == bystanders_of(push, 3.0, b"seed")
    assert bystanders_of(push, 3.0, b"seed") != bystanders_of(push, 3.0, b"other")
    assert bystanders_of(push, 0.0, b"seed") == []
    counts = [len(bystanders_of(push, 0.5, number.to_bytes(2, "big"))) for number in range(400)]
    assert set(counts) == {0, 1}
    assert 150 < sum(counts) < 250


def test_a_payer_is_shown_in_each_of_the_forms_that_pull_has() -> None:
    phone = "254711222042"
    assert shown_payer(phone, "national") == "711222042"
    assert shown_payer(phone, "whole") == phone
    assert shown_payer(phone, "masked") == "25471****042"
    assert shown_payer(phone, "partial") == "711***042"
    assert shown_payer(phone, "hashed") == hashlib.sha256(phone.encode()).hexdigest()
    assert shown_payer(phone, "absent") is None


@pytest.fixture
async def asking(values: dict[str, Any]) -> AsyncGenerator[Asking]:
    """A merchant in front of a simulator with people about."""
    peopled = {"simulator": QUICK | {"strangers": 3.0, "seed": 7}}
    async with receiving() as receiver, daraja(values | peopled, receiver) as line:
        yield Asking(line)


async def statement(asking: Asking) -> list[dict[str, Any]]:
    """Every row of the last day."""
    _, answer = await asking.pull(hours=24)
    return [row for rows in answer["Response"] for row in rows]


async def test_strangers_are_on_the_statement_once_their_time_has_come(asking: Asking) -> None:
    await asking.register()
    for number in range(20):
        await asking.line.push(f"2547110002{number:02}", 500)
    await asking.line.ended("254711000219")
    ledger = {one["receipt"]: one for one in await asking.line.control("GET", "ledger")}
    rows = {row["transactionId"]: row for row in await statement(asking)}
    here = {receipt for receipt, one in ledger.items() if one["shortcode"] == SHORTCODE}
    assert set(rows) == here
    ours = [one for one in ledger.values() if one["kind"] == "push"]
    assert len(ours) == 20
    assert len(ledger) - len(ours) > 30
    for receipt, row in rows.items():
        kind = ledger[receipt]["kind"]
        assert row["transactiontype"] == PULL_TYPES["pay_bill" if kind == "push" else kind]
    assert any("msisdn" not in row for row in rows.values())
    shown = {"Z" if row["trxDate"][-1] == "Z" else row["trxDate"][19:] for row in rows.values()}
    assert shown == {"Z", "", "+03:00"}


async def test_a_status_answer_says_which_way_the_money_went(asking: Asking) -> None:
    parties: dict[str, tuple[Any, Any]] = {}
    for kind in ("pay_bill", "payout", "shop_payment", "portal_reversal", "charge"):
        receipt = await asking.money(700, kind=kind, payer_shown="absent")
        await asking.status(receipt)
        (result,) = await asking.told("/status/result")
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


async def test_a_status_answer_knows_no_money_of_others_and_none_that_has_not_moved_yet(asking: Asking) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    for money in ({"shortcode": OTHER_SHOP}, {"at": later.isoformat()}):
        await asking.status(await asking.money(700, **money))
        (result,) = await asking.told("/status/result")
        assert result["ResultCode"] == 2032


async def test_our_own_reversal_is_on_the_statement_and_has_a_status_of_its_own(asking: Asking) -> None:
    await asking.register()
    receipt = await asking.money(500, reference="ORDER-1")
    await asking.reverse(receipt, 500)
    (reversal,) = await asking.told("/reversal/result")
    back = reversal["TransactionID"]
    (row,) = [row for row in await statement(asking) if row["transactionId"] == back]
    assert (row["transactiontype"], row["amount"], row["billreference"]) == (REVERSAL_TYPE, "500", "ORDER-1")
    await asking.status(back)
    (result,) = await asking.told("/status/result")
    found = parameters(result)
    assert (found["DebitPartyName"], found["CreditPartyName"]) == (f"{SHORTCODE} - Shop", f"{PHONE} - JANE DOE")
    assert (found["ReceiptNo"], found["ReasonType"]) == (back, REVERSAL_TYPE)


async def test_money_that_left_is_not_reversed(asking: Asking) -> None:
    for kind in OUTGOING:
        await asking.reverse(await asking.money(500, kind=kind), 500)
        (result,) = await asking.told("/reversal/result")
        assert result["ResultCode"] == "R000002"


async def test_a_clock_that_is_wrong_shows_in_statement_and_status(asking: Asking) -> None:
    await asking.register()
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30)
    receipt = await asking.money(500, at=at.isoformat(), skew=-75)
    shown = (at - timedelta(seconds=75)).astimezone(EAT)
    (row,) = await statement(asking)
    assert row["trxDate"] == f"{shown:%Y-%m-%dT%H:%M:%S}+03:00"
    await asking.status(receipt)
    (result,) = await asking.told("/status/result")
    assert parameters(result)["FinalisedTime"] == f"{shown:%Y%m%d%H%M%S}"


async def test_without_strangers_the_ledger_is_what_was_asked_for(values: dict[str, Any]) -> None:
    async with receiving() as receiver, daraja(values | {"simulator": QUICK}, receiver) as line:
        asking = Asking(line)
        await asking.register()
        await line.push(PHONE)
        await line.ended(PHONE)
        (entry,) = await line.control("GET", "ledger")
        await asking.reverse(entry["receipt"], 7)
        await asking.told("/reversal/result")
        (row,) = await statement(asking)
        assert (row["transactionId"], row["msisdn"]) == (entry["receipt"], PHONE[3:])
