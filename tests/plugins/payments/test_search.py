"""Protects search: by whole values and by parts of some, of one merchant and env, and bounded."""

from urllib.parse import urlencode

import pytest

from mpesa_gateway.testing.serving import Api, shop
from mpesa_gateway_payments.search import MOST_FOUND
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


async def test_search_by_a_part_of_many_is_bounded_and_paged(harness: Harness) -> None:
    api = harness.api
    first = (await api.pay("254711000888", 500, key="first", reference="MANY-0000")).data
    # raw SQL: copies of a payment, with the values that are unique.
    await harness.gateway.db.execute(
        """INSERT INTO payment (payment_id, merchant_id, shortcode_id, created_at, updated_at, expires_at, amount,
            reference_is_ours, env, provider, shortcode, currency, phone, reference, description, idempotency_key,
            status, charge, failure_reason)
        SELECT (left(payment_id::text, 24) || lpad(to_hex(n), 12, '0'))::uuid, merchant_id, shortcode_id, created_at,
            updated_at, expires_at, amount, reference_is_ours, env, provider, shortcode, currency, phone,
            'MANY-' || lpad(n::text, 4, '0'), description, 'copy-' || n, 'failed', 'refused', 'not_sent'
        FROM payment, generate_series(1, $2::int) AS n WHERE payment_id = $1""",
        first["id"],
        MOST_FOUND * 2,
    )
    pages: list[str] = []
    cursor = ""
    while True:
        answer = await api.call("GET", f"/v1/payments?search=MANY&limit=100{cursor}")
        pages += [each["id"] for each in answer.data]
        if not answer.body["meta"]["has_more"]:
            break
        cursor = f"&cursor={answer.body['meta']['next_cursor']}"
    assert len(pages) == len(set(pages)) == MOST_FOUND
    assert pages == sorted(pages, reverse=True)
    # More characters find what the bound left out.
    assert len(await found(api, "MANY-0399")) == 1


@pytest.mark.parametrize(
    "text", ["\u00e9t\u00e9", "~~~~", "pay_~~~~", "pay_zzzzzzzz", "'; --", "{0}", "{{}}", "%s", "9" * 100]
)
async def test_search_for_any_text_is_answered(harness: Harness, text: str) -> None:
    assert await found(harness.api, text) == []
