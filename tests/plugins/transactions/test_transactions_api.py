"""Protects the API of transactions: lists, sums and exports are exact, and show each merchant its own money."""

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from mpesa_gateway_transactions.api import Subject
from tests.identifiers import identifier
from tests.plugins.transactions.test_allocations import NUMBER, TwoShops, shops

__all__ = ["shops"]

PATH = "/v1/transactions"

OTHER_RECEIVER = """
INSERT INTO receiver (receiver_id, env, number, kind, created_at) VALUES ($1, 'sandbox', '600000', 'till', now())
"""


async def fill(shops: TwoShops) -> list[str]:
    """Record five transactions, oldest first, and return their ids."""
    await shops.gateway.db.execute(OTHER_RECEIVER, identifier("rcv"))
    reports = [
        shops.report("TKA0000001", account_number="Order 7", payer="254711000001", payer_name="JOHN"),
        shops.report("TKA0000002", amount_cents=70_050, payer_digest="0" * 64),
        shops.report("TKA0000003", number="600000", amount_cents=None),
        shops.report("TKA0000004", direction="out", kind="Business Payment to Customer via API B2C", amount_cents=100),
        shops.report("TKR0000005", account_number="RENT", amount_cents=300_000),
    ]
    return [(await shops.receive(report))[0].transaction_id for report in reports]


@pytest.mark.parametrize(
    ("query", "places"),
    [
        ("", [5, 4, 3, 2, 1]),
        ("direction=in", [5, 3, 2, 1]),
        ("direction=out", [4]),
        ("kind=c2b", [5, 3, 2, 1]),
        ("kind=b2c", [4]),
        ("kind=stk", []),
        ("allocated=true", [5]),
        ("allocated=false", [4, 3, 2, 1]),
        ("shortcode=600000", [3]),
        ("shortcode=600001", []),
        ("account_number=order%207", [1]),
        ("phone=0711000001", [1]),
        ("receipt=tka0000002", [2]),
        ("min_amount=500&max_amount=701", [2, 1]),
        ("since=2020-01-01T00:00:00Z", [5, 4, 3, 2, 1]),
        ("until=2020-01-01T00:00:00Z", []),
        ("direction=in&allocated=false&min_amount=501", [2]),
    ],
)
async def test_list_filter_returns_the_matching_transactions_with_their_sum(
    shops: TwoShops, query: str, places: list[int]
) -> None:
    ids = await fill(shops)
    cents = [50_000, 70_050, 0, 100, 300_000]
    answer = await shops.api.call("GET", f"{PATH}?count=true&{query}")
    assert [one["id"] for one in answer.data] == [ids[place - 1] for place in places]
    amount = sum(cents[place - 1] for place in places)
    assert answer.body["meta"]["total"] == len(places)
    assert answer.body["meta"]["total_amount"] == f"{amount // 100}.{amount % 100:02}"


async def test_list_pages_are_complete_and_the_view_has_every_field(shops: TwoShops) -> None:
    ids = await fill(shops)
    found: list[dict[str, Any]] = []
    cursor = ""
    for _ in ids:
        answer = await shops.api.call("GET", f"{PATH}?limit=2{cursor}")
        found += answer.data
        if not answer.body["meta"]["has_more"]:
            break
        cursor = f"&cursor={answer.body['meta']['next_cursor']}"
    assert [one["id"] for one in found] == ids[::-1]
    shown = found[-1]
    assert (shown["shortcode"], shown["kind"], shown["amount"], shown["fee"]) == (NUMBER, "c2b", "500.00", None)
    assert (shown["payer"], shown["account_number"]) == ({"phone": "254711000001", "name": "JOHN"}, "Order 7")
    assert [one["source"] for one in shown["witnesses"]] == ["c2b"]
    assert found[2]["amount"] is None


async def test_get_shows_witnesses_and_allocations(shops: TwoShops) -> None:
    *_, last = await fill(shops)
    await shops.receive(shops.report("TKR0000005", source="pull", amount_cents=200))
    shown = (await shops.api.call("GET", f"{PATH}/{last}")).data
    assert [(one["source"], one["detail"]) for one in shown["witnesses"]] == [
        ("c2b", None),
        ("pull", "reports 200 cents, not 300000"),
    ]
    (allocation,) = shown["allocations"]
    assert (allocation["by"], allocation["allocated_to"]) == ("rents", shown["allocated_to"])
    assert shown["allocated_to"]["type"] == "rent"


async def test_export_has_the_rows_of_the_list(shops: TwoShops) -> None:
    ids = await fill(shops)
    answer = await shops.api.download(f"{PATH}/export?direction=in")
    rows = list(csv.DictReader(io.StringIO(answer.text or "")))
    assert [row["id"] for row in rows] == [ids[place] for place in (4, 2, 1, 0)]
    assert (rows[-1]["amount"], rows[-1]["shortcode"], rows[-1]["payer_phone"]) == ("500.00", NUMBER, "254711000001")


@pytest.mark.parametrize(
    ("query", "field"),
    [("receipt=x", "receipt"), ("phone=7", "phone"), ("min_amount=1.5", "min_amount"), ("shortcode=ab", "shortcode")],
)
async def test_list_unreadable_filter_is_422_and_names_the_field(shops: TwoShops, query: str, field: str) -> None:
    answer = await shops.api.call("GET", f"{PATH}?{query}")
    assert (answer.status, answer.body["errors"][0]["field"]) == (422, field)


async def test_another_merchants_money_is_not_found(shops: TwoShops) -> None:
    ids = await fill(shops)
    other = shops.other
    assert (await other.call("GET", PATH)).data == []
    for path in (f"{PATH}/{ids[0]}", f"{PATH}/{identifier('txn', 9)}", f"{PATH}/nonsense"):
        assert (await other.call("GET", path)).status == 404
    answer = await other.call("POST", f"{PATH}/{ids[0]}/allocate", {"note": "mine now"})
    assert answer.status == 404


@pytest.mark.as_owner
async def test_owner_of_a_receiver_sees_what_another_merchant_is_paid_there(shops: TwoShops) -> None:
    # Only live receivers have owners.
    await shops.gateway.db.execute("ALTER TABLE receiver DROP CONSTRAINT receiver_sandbox_has_no_owner")
    ids = await fill(shops)
    owner, user = shops.merchant_id, shops.other_id
    await shops.gateway.db.execute("UPDATE receiver SET owner_id = $1 WHERE number = $2", owner, NUMBER)
    used = shops.report("TKU0000001", merchant_id=user, source="stk", payer="254711000009")
    (one,) = await shops.record(replace(used, subject=Subject("payment", identifier("pay", 7))))
    assert one is not None
    listed = await shops.api.call("GET", f"{PATH}?count=true")
    assert [each["id"] for each in listed.data] == [one.transaction_id, *ids[::-1]]
    assert listed.body["meta"]["total"] == 6
    found = (await shops.api.call("GET", f"{PATH}?phone=254711000009&shortcode={NUMBER}")).data
    assert [each["id"] for each in found] == [one.transaction_id]
    assert (await shops.api.call("GET", f"{PATH}/{one.transaction_id}")).status == 200
    # The other merchant sees its payment's money alone.
    assert [each["id"] for each in (await shops.other.call("GET", PATH)).data] == [one.transaction_id]


@pytest.mark.parametrize(
    "reported", ["711000009", "0711000009", "254711000009", "+254711000009", "254711000009.0", " 711000009 "]
)
async def test_payer_in_any_spelling_of_mpesa_is_shown_as_one_and_found_by_every_spelling(
    shops: TwoShops, reported: str
) -> None:
    (one,) = await shops.receive(shops.report("TKP0000001", payer=reported))
    assert (await shops.api.call("GET", f"{PATH}/{one.transaction_id}")).data["payer"]["phone"] == "254711000009"
    for typed in ("254711000009", "0711000009", "%2B254711000009"):
        found = (await shops.api.call("GET", f"{PATH}?phone={typed}")).data
        assert [each["id"] for each in found] == [one.transaction_id], typed


@pytest.mark.parametrize("reported", ["2547*****009", "JOHN", "254711", "erased"])
async def test_payer_that_is_no_whole_number_is_shown_as_reported(shops: TwoShops, reported: str) -> None:
    (one,) = await shops.receive(shops.report("TKP0000002", payer=reported))
    assert (await shops.api.call("GET", f"{PATH}/{one.transaction_id}")).data["payer"]["phone"] == reported
