"""Protects how `just sizes` copies rows: names of payments are new and keep their form, other values stay."""

from datetime import UTC, datetime, timedelta

from bench.sizes.copies import Column, Copy, Rows, Templates
from bench.sizes.measure import growing

_NOW = datetime(2026, 11, 30, 9, tzinfo=UTC)
_COLUMNS = [
    Column("payment_id", "text", is_indexed=True, is_unique=True),
    Column("uuid", "uuid", is_indexed=True, is_unique=True),
    Column("number", "int8", is_indexed=True, is_unique=True),
    Column("reference", "text", is_indexed=True, is_unique=True),
    Column("receipt", "text", is_indexed=False, is_unique=False),
    Column("at", "timestamptz", is_indexed=True, is_unique=False),
    Column("digest", "bytea", is_indexed=True, is_unique=False),
    Column("status", "text", is_indexed=True, is_unique=False),
    Column("body", "text", is_indexed=False, is_unique=False),
]


def _row(number: int) -> list[str]:
    payment_id, receipt = f"pay_01kh615wdjjyws590xb9hyz8w{number}", f"UKU7Z4S03{number}"
    checkout = f"ws_CO_3011202612403800{number}719605393"
    body = (
        f'{{"share":"100%","id":"{payment_id}","of":"mer_01m8nx7brvrkhg9zqx3x1mmeh0","for":["{checkout}","{receipt}"]}}'
    )
    uuid = f"{int(_NOW.timestamp() * 1000):012x}"
    return [
        payment_id,
        f"{uuid[:8]}-{uuid[8:]}-3c19-90aa-00000000000{number}",
        str(number),
        f"A12J0UN882E{number}",
        receipt,
        "2026-11-30 08:00:00.000001+00",
        f"\\\\x{number:064x}",
        "completed",
        body,
    ]


def test_copies_have_distinct_names_of_the_same_form() -> None:
    sample = [_row(number) for number in range(1, 4)]
    templates = Templates({"payment": Rows(_COLUMNS, sample)}, {"mer_01m8nx7brvrkhg9zqx3x1mmeh0"}, _NOW)
    lines = [
        text
        for number in range(5)
        for text in templates.lines("payment", Copy(number, timedelta(days=number - 4))).decode().splitlines()
    ]
    rows = [line.split("\t") for line in lines]
    assert len(rows) == 15
    for place, column in enumerate(_COLUMNS):
        values = {row[place] for row in rows}
        assert {len(value) for value in values} <= {len(value) for value in (_row(1)[place], "10", _row(1)[5] + ":00")}
        assert len(values) == {"status": 1, "at": 5}.get(column.name, 15)
    for payment_id, _, _, _, receipt, *_, body in rows:
        assert payment_id in body
        assert receipt in body
        assert "mer_01m8nx7brvrkhg9zqx3x1mmeh0" in body
        assert '"100%"' in body
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert [row[4][:3] for row in rows[::3]] == ["UKQ", "UKR", "UKS", "UKT", "UKU"]


def test_tables_that_grow_with_payments_are_copied() -> None:
    before = {"payment": 5, "hour": 1, "merchant": 1}
    after = {"payment": 205, "hour": 3, "merchant": 1, "step": 20}
    assert growing(before, after, 200) == ["payment", "step"]
