"""Protects search: by whole values and by parts of some, of one merchant and env, none left out."""

import csv
import io
from urllib.parse import urlencode

import niquests
import pytest

from mpesa_gateway.testing.serving import Api, shop
from mpesa_gateway_payments.operator_service import (
    OPERATORS_EXPORTED,
    OperatorPaymentFilters,
    PaymentOperatorService,
)
from tests.conftest import Harness

PAYS = "254711000001"


async def found(api: Api, text: str, **more: str) -> list[str]:
    answer = await api.call("GET", f"/v1/payments?{urlencode({'search': text} | more)}")
    assert answer.status == 200, answer
    return [each["id"] for each in answer.data]


async def test_search_finds_a_payment_by_parts_of_its_values(harness: Harness) -> None:
    api = harness.api
    made = (await api.pay(PAYS, 500, key="a", reference="INV-1041", metadata={"cart": "Blue Shoes 42"})).data
    other = (await api.pay("254711000777", 500, key="b", reference="BILL-7", metadata={"cart": "red hat"})).data
    own = (await api.pay("254711000888", 500, key="c")).data
    ended = await api.settled(made["id"])
    for text in (
        "INV",
        "INV-1",
        "inv-10",
        "INV-1041",
        made["id"][:12],
        made["id"],
        ended["receipt"][:6],
        ended["receipt"][:4].lower(),
        "0001",
        "00 0001",
        "Blue Shoes 42",
        "blue shoes 42",
    ):
        expected = {made["id"]} if text != made["id"][:12] else {made["id"], other["id"], own["id"]}
        assert set(await found(api, text)) >= {made["id"]}, text
        assert set(await found(api, text)) <= expected | (
            {other["id"], own["id"]} if text.startswith("pay_") else set()
        )
    assert await found(api, own["reference"][:5]) == [own["id"]]
    # A part in the middle, a part of a value of the metadata, and too little are not searched for.
    for text in ("1041", "Blue", "shoes", "IN", "001", "pay_", "pay_0", "_", "%", "INV%", "INV_1041"):
        assert await found(api, text) == [], text
    assert await found(api, "INV", status="failed") == []
    assert await found(api, "INV", status="completed") == [made["id"]]


async def test_search_by_a_part_finds_nothing_of_another_merchant_or_env(harness: Harness) -> None:
    made = (await harness.api.pay(PAYS, 500, key="a", reference="INV-1041", metadata={"cart": "blue shoes"})).data
    receipt = (await harness.api.settled(made["id"]))["receipt"]
    async with shop(harness.gateway, harness.base, is_configured=False) as other:
        for text in ("INV", made["id"][:14], receipt[:6], "0001", "blue shoes"):
            assert await found(other, text) == [], text
            assert await found(harness.api, text) == [made["id"]], text


MANY = 300


async def pay_many(harness: Harness) -> Api:
    first = await harness.api.pay("254711000888", 500, key="one", reference="M-0000", metadata={"shop": "nairobi"})
    # raw SQL: copies of a payment, with the values that are unique.
    await harness.gateway.db.execute(
        """INSERT INTO payment (payment_id, merchant_id, shortcode_id, created_at, updated_at, expires_at, amount,
            reference_is_ours, env, provider, shortcode, currency, phone, reference, description, idempotency_key,
            status, charge, failure_reason, metadata)
        SELECT (left(payment_id::text, 24) || lpad(to_hex(n), 12, '0'))::uuid, merchant_id, shortcode_id, created_at,
            updated_at, expires_at, amount, reference_is_ours, env, provider, shortcode, currency, phone,
            'M-' || lpad(n::text, 4, '0'), description, 'copy-' || n, 'failed', 'refused', 'not_sent', metadata
        FROM payment, generate_series(1, $2::int) AS n WHERE payment_id = $1""",
        first.data["id"],
        MANY,
    )
    return harness.api


@pytest.mark.parametrize("text", ["M-0", "nairobi", "0888"])
async def test_search_of_many_is_whole_and_newest_first(harness: Harness, text: str) -> None:
    api = await pay_many(harness)
    pages: list[str] = []
    cursor = ""
    while True:
        answer = await api.call("GET", f"/v1/payments?search={text}&limit=100&count=true{cursor}")
        assert answer.body["meta"]["total"] == MANY + 1
        pages += [each["id"] for each in answer.data]
        if not answer.body["meta"]["has_more"]:
            break
        cursor = f"&cursor={answer.body['meta']['next_cursor']}"
    assert len(pages) == len(set(pages)) == MANY + 1
    assert pages == sorted(pages, reverse=True)


@pytest.mark.parametrize("text", ["M-0", "nairobi", "0888"])
async def test_search_with_a_filter_finds_all_that_match_both(harness: Harness, text: str) -> None:
    api = await pay_many(harness)
    for number in range(0, MANY + 1, 50):
        assert len(await found(api, text, reference=f"M-{number:04}")) == 1, number
    counted = await api.call("GET", f"/v1/payments?search={text}&status=failed&count=true&limit=1")
    assert counted.body["meta"]["total"] == MANY


@pytest.mark.parametrize("text", ["M-0", "nairobi", "0888"])
async def test_export_and_total_of_a_search_are_whole(harness: Harness, text: str) -> None:
    api = await pay_many(harness)
    async with niquests.AsyncSession() as http:
        exported = await http.get(
            f"{harness.base}/v1/payments/export?search={text}", headers={"X-API-Key": api.key or ""}
        )
    assert len(list(csv.DictReader(io.StringIO(exported.text or "")))) == MANY + 1
    service = harness.gateway.port(PaymentOperatorService)
    filters = OperatorPaymentFilters(search=text)
    total = await service.total("sandbox", filters, within=None, sees_numbers=True)
    assert (total.count, total.amount) == (MANY + 1, 500 * (MANY + 1))
    rows = [row async for batch in service.export("sandbox", filters, within=None) for row in batch]
    assert len(rows) == MANY + 1
    page = await service.page("sandbox", filters, 10, within=None, sees_numbers=True)
    assert [row["reference"] for row in page.rows] == [row[OPERATORS_EXPORTED.index("reference")] for row in rows[:10]]


@pytest.mark.parametrize(
    "text", ["\u00e9t\u00e9", "~~~~", "pay_~~~~", "pay_zzzzzzzz", "'; --", "{0}", "{{}}", "%s", "9" * 100]
)
async def test_search_for_any_text_is_answered(harness: Harness, text: str) -> None:
    assert await found(harness.api, text) == []
