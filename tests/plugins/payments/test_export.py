"""The list as a CSV file: the same rows as the list, all of them, safe to open, and with memory flat."""

import csv
import io
import resource
from typing import Any

import niquests
import pytest

from mpesa_gateway.http.csv import cell
from mpesa_gateway.testing.serving import eventually, shop
from tests.conftest import Town
from tests.identifiers import identifiers

pytestmark = pytest.mark.as_owner

FILL = """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, idempotency_key, status, failure_reason, expires_at, created_at, updated_at)
SELECT id, $1, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1), 1 + i % 100, 'KES', '254711000001',
    'ROW' || i, false, 'Payment', 'fill-' || i, 'failed', 'expired', now(), now() - i * interval '1 second', now()
FROM unnest($2::uuid[], $3::int[]) AS given(id, i)
"""


async def fill(town: Town, merchant_id: str, first: int, last: int) -> None:
    """Write failed payments with these numbers, the lowest the newest."""
    numbers = range(first, last + 1)
    await town.gateway.db.execute(FILL, merchant_id, identifiers("pay", numbers), list(numbers))


async def exported(town: Town, query: str = "", path: str = "/v1/payments/export") -> list[dict[str, str]]:
    """The file, read as a spreadsheet reads it."""
    answer = await town.api.download(path + query)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    return list(csv.DictReader(io.StringIO((answer.content or b"").decode(), newline="")))


async def merchant_of(town: Town) -> str:
    merchant_id: str = (await town.api.call("GET", "/v1/merchant/me")).data["id"]
    return merchant_id


async def test_the_file_has_the_rows_of_the_list_over_several_pages(town: Town) -> None:
    await fill(town, await merchant_of(town), 1, 2500)
    made = (await town.api.pay("254711000018", 60, key="one", reference="table 4")).data
    await town.api.settled(made["id"], "completed")
    rows = await exported(town)
    assert len({row["id"] for row in rows}) == len(rows) == 2501
    listed = (await town.api.call("GET", "/v1/payments?limit=100")).data
    assert [row["id"] for row in rows[:100]] == [payment["id"] for payment in listed]
    first = rows[0]
    shown = listed[0]
    same = ("amount", "phone", "reference", "receipt", "status", "created_at", "completed_at", "refunded_amount")
    assert {name: first[name] for name in same} == {name: shown[name] for name in same}
    assert (first["failure_reason"], first["metadata"]) == ("", "{}")


async def test_its_filters_are_those_of_the_list(town: Town) -> None:
    await fill(town, await merchant_of(town), 1, 300)
    assert len(await exported(town, "?min_amount=51&max_amount=60")) == 30
    assert [row["reference"] for row in await exported(town, "?reference=ROW7")] == ["ROW7"]
    for query, field in (("?min_amount=many", "min_amount"), ("?limit=5", "limit"), ("?phone=12", "phone")):
        refused = await town.api.call("GET", f"/v1/payments/export{query}")
        assert (refused.status, refused.error["field"]) == (422, field)


async def test_another_merchants_rows_are_not_in_it(town: Town) -> None:
    await fill(town, await merchant_of(town), 1, 3)
    async with shop(town.gateway, town.base) as other:
        answer = await other.download("/v1/payments/export")
        assert len((answer.content or b"").decode().splitlines()) == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", " =1", "\n=1", "\uff1d1", "\u00a0+1"])
def test_nothing_in_it_is_run_by_a_spreadsheet(text: str) -> None:
    assert cell(text) == f"'{text}"


async def test_what_a_merchant_wrote_comes_back_whole(town: Town) -> None:
    written = {"note": 'a "quoted", line'}
    await town.api.pay("254711000018", 60, key="one", reference="=1+1", metadata=written)
    (row,) = await exported(town)
    assert (row["reference"], row["metadata"]) == ("'=1+1", '{"note": "a \\"quoted\\", line"}')


async def test_memory_is_flat_and_a_client_that_hangs_up_leaves_nothing_behind(town: Town) -> None:
    merchant_id = await merchant_of(town)
    await fill(town, merchant_id, 1, 5_000)
    assert len(await exported(town)) == 5_000
    await fill(town, merchant_id, 5_001, 60_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    async with town.api.streaming("/v1/payments/export") as chunks:
        async for chunk in chunks:
            count += chunk.count(b"\n")
    assert count == 60_001
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 30_000, f"{grown} KiB for 55,000 rows more"
    async with town.api.streaming("/v1/payments/export") as chunks:
        await anext(chunks)
    pool: Any = town.gateway.db.engine.pool

    async def is_given_back() -> bool:
        return bool(pool.get_idle_size() == pool.get_size())

    await eventually(is_given_back)


async def test_a_file_that_fails_in_the_middle_breaks_off_and_never_looks_whole(town: Town) -> None:
    await fill(town, await merchant_of(town), 1, 60_000)
    async with town.api.streaming("/v1/payments/export") as chunks:
        taken = [await anext(chunks)]
        await town.gateway.db.execute("ALTER TABLE payment RENAME TO payment_gone")
        with pytest.raises(niquests.exceptions.ChunkedEncodingError):
            taken += [chunk async for chunk in chunks]
    assert taken[0].startswith(b"id,")
    assert b"".join(taken).count(b"\n") < 60_001
    await town.gateway.db.execute("ALTER TABLE payment_gone RENAME TO payment")
    assert (await town.api.call("GET", "/v1/payments?limit=1")).status == 200


async def test_a_file_that_cannot_even_begin_is_an_answer_like_any_other(town: Town) -> None:
    await town.gateway.db.execute("ALTER TABLE payment RENAME TO payment_gone")
    answer = await town.api.call("GET", "/v1/payments/export")
    assert (answer.status, answer.error["code"]) == (500, "INTERNAL_ERROR")
    await town.gateway.db.execute("ALTER TABLE payment_gone RENAME TO payment")


@pytest.mark.usefixtures("initiated")
async def test_refunds_too(town: Town) -> None:
    made = (await town.api.pay("254711000018", 60, key="one")).data
    await town.api.settled(made["id"], "completed")
    part = {"payment_id": made["id"], "amount": 20}
    refund = (await town.api.call("POST", "/v1/refunds", part, headers={"Idempotency-Key": "part"})).data
    (row,) = await exported(town, f"?payment_id={made['id']}", "/v1/refunds/export")
    assert (row["id"], row["amount"], row["payment_id"]) == (refund["id"], "20.00", made["id"])
    assert await exported(town, "?payment_id=pay_other", "/v1/refunds/export") == []
