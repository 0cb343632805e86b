"""Protects the CSV export: the rows of the list, complete, safe in a spreadsheet, with constant memory."""

import csv
import io
import resource
from collections.abc import AsyncGenerator
from typing import Any

import niquests
import pytest

from mpesa_gateway.http.csv import cell, stream_csv
from mpesa_gateway.testing.serving import eventually, shop
from tests.conftest import Harness
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


async def fill(harness: Harness, merchant_id: str, first: int, last: int) -> None:
    """Insert failed payments with these numbers, the lowest the newest."""
    numbers = range(first, last + 1)
    await harness.gateway.db.execute(FILL, merchant_id, identifiers("pay", numbers), list(numbers))


async def export_rows(harness: Harness, query: str = "", path: str = "/v1/payments/export") -> list[dict[str, str]]:
    """The rows of the file, read by a CSV reader."""
    answer = await harness.api.download(path + query)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    return list(csv.DictReader(io.StringIO((answer.content or b"").decode(), newline="")))


async def merchant_of(harness: Harness) -> str:
    merchant_id: str = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    return merchant_id


async def test_export_has_the_rows_of_all_pages_of_the_list(harness: Harness) -> None:
    await fill(harness, await merchant_of(harness), 1, 2500)
    made = (await harness.api.pay("254711000018", 60, key="one", reference="table 4")).data
    await harness.api.settled(made["id"], "completed")
    rows = await export_rows(harness)
    assert len({row["id"] for row in rows}) == len(rows) == 2501
    listed = (await harness.api.call("GET", "/v1/payments?limit=100")).data
    assert [row["id"] for row in rows[:100]] == [payment["id"] for payment in listed]
    first = rows[0]
    shown = listed[0]
    same = ("amount", "phone", "reference", "receipt", "status", "created_at", "completed_at", "refunded_amount")
    assert {name: first[name] for name in same} == {name: shown[name] for name in same}
    assert (first["failure_reason"], first["metadata"]) == ("", "{}")


async def test_export_accepts_the_filters_of_the_list(harness: Harness) -> None:
    await fill(harness, await merchant_of(harness), 1, 300)
    assert len(await export_rows(harness, "?min_amount=51&max_amount=60")) == 30
    assert [row["reference"] for row in await export_rows(harness, "?reference=ROW7")] == ["ROW7"]
    for query, field in (("?min_amount=many", "min_amount"), ("?limit=5", "limit"), ("?phone=12", "phone")):
        refused = await harness.api.call("GET", f"/v1/payments/export{query}")
        assert (refused.status, refused.error["field"]) == (422, field)


async def test_export_has_no_rows_of_other_merchants(harness: Harness) -> None:
    await fill(harness, await merchant_of(harness), 1, 3)
    async with shop(harness.gateway, harness.base) as other:
        answer = await other.download("/v1/payments/export")
        assert len((answer.content or b"").decode().splitlines()) == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", " =1", "\n=1", "\uff1d1", "\u00a0+1"])
def test_export_cell_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    assert cell(text) == f"'{text}"


async def test_export_returns_reference_and_metadata_unchanged(harness: Harness) -> None:
    written = {"note": 'a "quoted", line'}
    await harness.api.pay("254711000018", 60, key="one", reference="=1+1", metadata=written)
    (row,) = await export_rows(harness)
    assert (row["reference"], row["metadata"]) == ("'=1+1", '{"note": "a \\"quoted\\", line"}')


async def test_export_uses_constant_memory_and_releases_its_connection(harness: Harness) -> None:
    merchant_id = await merchant_of(harness)
    await fill(harness, merchant_id, 1, 5_000)
    assert len(await export_rows(harness)) == 5_000
    await fill(harness, merchant_id, 5_001, 60_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    async with harness.api.streaming("/v1/payments/export") as chunks:
        async for chunk in chunks:
            count += chunk.count(b"\n")
    assert count == 60_001
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 30_000, f"{grown} KiB for 55,000 rows more"
    async with harness.api.streaming("/v1/payments/export") as chunks:
        await anext(chunks)
    pool: Any = harness.gateway.db.engine.pool

    async def is_released() -> bool:
        return bool(pool.get_idle_size() == pool.get_size())

    await eventually(is_released)


async def test_export_failing_midway_breaks_the_connection(harness: Harness) -> None:
    await fill(harness, await merchant_of(harness), 1, 60_000)
    async with harness.api.streaming("/v1/payments/export") as chunks:
        taken = [await anext(chunks)]
        await harness.gateway.db.execute("ALTER TABLE payment RENAME TO payment_gone")
        with pytest.raises(niquests.exceptions.ChunkedEncodingError):
            taken += [chunk async for chunk in chunks]
    assert taken[0].startswith(b"id,")
    assert b"".join(taken).count(b"\n") < 60_001
    await harness.gateway.db.execute("ALTER TABLE payment_gone RENAME TO payment")
    assert (await harness.api.call("GET", "/v1/payments?limit=1")).status == 200


async def test_export_failing_before_the_first_row_is_an_internal_error(harness: Harness) -> None:
    await harness.gateway.db.execute("ALTER TABLE payment RENAME TO payment_gone")
    answer = await harness.api.call("GET", "/v1/payments/export")
    assert (answer.status, answer.error["code"]) == (500, "INTERNAL_ERROR")
    await harness.gateway.db.execute("ALTER TABLE payment_gone RENAME TO payment")


@pytest.mark.usefixtures("initiated")
async def test_export_of_refunds_has_the_rows_of_the_list(harness: Harness) -> None:
    made = (await harness.api.pay("254711000018", 60, key="one")).data
    await harness.api.settled(made["id"], "completed")
    part = {"payment_id": made["id"], "amount": 20}
    refund = (await harness.api.call("POST", "/v1/refunds", part, headers={"Idempotency-Key": "part"})).data
    (row,) = await export_rows(harness, f"?payment_id={made['id']}", "/v1/refunds/export")
    assert (row["id"], row["amount"], row["payment_id"]) == (refund["id"], "20.00", made["id"])
    assert await export_rows(harness, "?payment_id=pay_other", "/v1/refunds/export") == []


@pytest.mark.parametrize("text", ["A;@SUM(1)", "A;-1+1", "A\t=1+1", 'said "yes"', "a,b"])
async def test_cell_with_a_separator_of_any_spreadsheet_is_quoted(text: str) -> None:
    async def pages() -> AsyncGenerator[list[tuple[str, ...]]]:
        yield [("1", text, "2")]

    parts: Any = (await stream_csv("x.csv", ("a", "b", "c"), pages())).iterator
    lines = b"".join([part async for part in parts]).decode().split("\r\n")
    doubled = text.replace('"', '""')
    assert lines == ["a,b,c", f'1,"{doubled}",2', ""]
