"""Protects identifiers: text such as ``pay_01jd…`` in Python, a ``uuid`` in Postgres, the same order in both."""

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.migrator import find, migrate
from mpesa_gateway.ids import NO_ROW, Ids, base32, id_of, renamed, uuid_of
from mpesa_gateway.testing.serving import running_gateway
from tests.identifiers import identifier

NOON = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
NOTHING = UUID(bytes=NO_ROW)
NIL = UUID(int=0)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PREFIXES = st.text(LETTERS, min_size=3, max_size=3)
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - made aware
CHANCE = st.binary(min_size=8, max_size=8) | st.sampled_from([bytes(8), b"\xff" * 8])

IN_POSTGRES = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(prefix: str, moment: datetime, chance: bytes) -> str:
    """Return the identifier that ``Ids.new`` makes at this time with these random bytes."""
    return Ids(SetClock(moment), lambda _: chance).new(prefix)


IDS = st.builds(made, PREFIXES, MOMENTS, CHANCE)
MANY = st.lists(IDS, min_size=1, max_size=20)

GOOD = identifier("pay", 31, at=NOON)
UNFIT = [
    GOOD[:-1],
    GOOD + "0",
    "rfd" + GOOD[3:],
    GOOD.upper(),
    "PAY" + GOOD[3:],
    GOOD[:4] + GOOD[4:].upper(),
    *(GOOD[:-1] + letter for letter in "iloulILOU-_ \n"),
    GOOD[:4] + "8" + GOOD[5:],
    GOOD.replace("_", "-"),
    GOOD[4:],
    "pay_",
    "pay",
    " ",
    "\0",
    f" {GOOD}",
    f"{GOOD}\n",
    f"{GOOD} ",
    GOOD[:-1] + "\u0661",
    "pa1" + GOOD[3:],
    "\u00e9" * 30,
    str(UUID(bytes=uuid_of(GOOD))).upper(),
    str(NOTHING),
    "%",
    "' OR true --",
    "x" * 100_000,
]
"""Texts that are no identifiers of ours; most differ little from one."""


@pytest.fixture
async def kernel(db: Database) -> Database:
    """Return a database with the kernel's tables and functions."""
    await migrate(db, find("kernel", "mpesa_gateway.db.migrations"))
    return db


# -- in Python ----------------------------------------------------------------------------------------------------


@given(PREFIXES, MOMENTS, CHANCE)
def test_new_id_is_its_16_bytes_of_time_and_randomness_and_back(prefix: str, moment: datetime, chance: bytes) -> None:
    text = made(prefix, moment, chance)
    uuid = uuid_of(text)
    assert (len(text), text[:4], len(uuid), id_of(uuid)) == (30, f"{prefix}_", 16, text)
    assert int.from_bytes(uuid[:6], "big") == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert uuid[8:] == chance
    assert text[4:] == base32(int.from_bytes(uuid, "big"), 26)


@given(st.binary(min_size=16, max_size=16))
def test_id_of_any_bytes_is_an_id_or_a_uuid_of_these_bytes(uuid: bytes) -> None:
    text = id_of(uuid)
    assert uuid_of(text) == uuid_of(str(UUID(bytes=uuid))) == uuid
    assert text[3] == "_" or text == str(UUID(bytes=uuid))


@given(st.lists(st.tuples(st.sampled_from(["evt", "pay"]), st.binary(min_size=8, max_size=8)), max_size=50))
def test_new_ids_of_one_millisecond_are_in_the_order_of_creation(made: list[tuple[str, bytes]]) -> None:
    # A start so near to the end that the numbers wrap around has a probability of one in some thousand million.
    chances = iter([bytes(1) + chance[1:] for _, chance in made])
    ids = Ids(SetClock(NOON), lambda _: next(chances))
    found = [ids.new(prefix) for prefix, _ in made]
    for prefix in ("evt", "pay"):
        own = [one for one in found if one.startswith(prefix)]
        assert own == sorted(set(own))


@given(st.text(max_size=40) | st.text("pay_0123456789abcdefghjkmnpqrstvwxyz", min_size=29, max_size=31))
def test_uuid_of_any_text_is_of_this_text_or_names_no_row(text: str) -> None:
    uuid = uuid_of(text)
    assert uuid in {NO_ROW, bytes(16)} or id_of(uuid) == text
    assert (uuid == bytes(16)) == (text == "")


@pytest.mark.parametrize("text", UNFIT, ids=range(len(UNFIT)))
def test_uuid_of_text_that_is_no_id_names_no_row(text: str) -> None:
    assert uuid_of(text) == NO_ROW
    with pytest.raises(ValueError, match="no identifier"):
        renamed(text, "evt")


@given(PREFIXES, MOMENTS, CHANCE, CHANCE)
def test_least_is_between_earlier_and_later_ids(prefix: str, moment: datetime, before: bytes, then: bytes) -> None:
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    least = Ids.least(prefix, moment)
    assert made(prefix, moment - timedelta(milliseconds=1), before) < least <= made(prefix, moment, then)
    assert least == made(prefix, moment, bytes(8))


@given(IDS, PREFIXES)
def test_renamed_keeps_time_and_random_bytes(text: str, prefix: str) -> None:
    other = renamed(text, prefix)
    assert other.startswith(f"{prefix}_")
    assert (uuid_of(other)[:6], uuid_of(other)[8:]) == (uuid_of(text)[:6], uuid_of(text)[8:])
    assert renamed(other, text[:3]) == text


@given(IDS, IDS)
def test_ids_of_one_prefix_sort_as_their_bytes(one: str, other: str) -> None:
    other = renamed(other, one[:3])
    assert (one < other) == (uuid_of(one) < uuid_of(other))


def test_renamed_of_the_empty_text_raises() -> None:
    with pytest.raises(ValueError, match="no identifier"):
        renamed("", "evt")


# -- through Postgres ---------------------------------------------------------------------------------------------


@IN_POSTGRES
@given(ids=MANY)
async def test_id_is_returned_by_postgres_unchanged(db: Database, ids: list[str]) -> None:
    with_none: list[str | None] = [*ids, None]
    row = await db.fetchrow(
        "SELECT $1::uuid AS one, $2::uuid[] AS many, $3::uuid AS nothing, ROW($1::uuid, $2::uuid[]) AS both,"
        " ARRAY[$2::uuid[], $2::uuid[]] AS nested, '{}'::uuid[] AS none",
        ids[0],
        with_none,
        None,
    )
    assert row is not None
    assert tuple(row) == (ids[0], with_none, None, (ids[0], with_none), [with_none, with_none], [])


@IN_POSTGRES
@given(ids=MANY)
async def test_ids_in_postgres_sort_as_their_text_within_a_prefix(db: Database, ids: list[str]) -> None:
    ours = [renamed(one, ids[0][:3]) for one in ids]
    rows = await db.fetch("SELECT id FROM unnest($1::uuid[]) AS id ORDER BY id", ours)
    assert [row["id"] for row in rows] == sorted(ours)
    assert await db.fetchval("SELECT bool_and($2 < id) FROM unnest($1::uuid[]) AS id", ours, "") is True


@IN_POSTGRES
@given(ids=MANY)
async def test_id_functions_of_postgres_agree_with_python(kernel: Database, ids: list[str]) -> None:
    rows = await kernel.fetch(
        "SELECT id::text, id_text(id) AS text, id_uuid(id_text(id)) AS again, is_id(id) AS is_id,"
        " has_prefix(id, substr(id_text(id), 1, 3)) AS has_prefix, has_prefix(id, $2) AS has_other"
        " FROM unnest($1::uuid[]) AS id",
        ids,
        "pay",
    )
    assert [tuple(row) for row in rows] == [
        (str(UUID(bytes=uuid_of(one))), one, one, True, True, one.startswith("pay_")) for one in ids
    ]


async def test_id_functions_of_postgres_return_null_for_null_and_accept_no_other_uuid(kernel: Database) -> None:
    row = await kernel.fetchrow("SELECT id_text(NULL), id_uuid(NULL), is_id(NULL), has_prefix(NULL, 'pay')")
    assert row is not None
    assert tuple(row) == (None, None, None, None)
    for uuid in (NOTHING, NIL):
        assert await kernel.fetchval(f"SELECT is_id('{uuid}') OR has_prefix('{uuid}', 'pay')") is False


async def test_text_that_is_no_id_finds_nothing_and_cannot_be_stored(kernel: Database) -> None:
    merchant = identifier("mer", at=NOON)
    insert = "INSERT INTO merchant (merchant_id, name, created_at, updated_at) VALUES ($1, 'Shop', now(), now())"
    await kernel.execute(insert, merchant)
    for unfit in [*UNFIT, "", identifier("pay", at=NOON)]:
        assert await kernel.fetchval("SELECT count(*) FROM merchant WHERE merchant_id = $1", unfit) == 0
        assert await kernel.fetchval("SELECT count(*) FROM merchant WHERE merchant_id = ANY($1::uuid[])", [unfit]) == 0
        with pytest.raises(asyncpg.CheckViolationError, match="merchant_merchant_id_check"):
            await kernel.execute(insert, unfit)
    assert await kernel.fetchval("SELECT merchant_id FROM merchant WHERE merchant_id > $1", "") == merchant


async def test_id_is_text_on_pooled_and_separate_connections(db: Database, database_url: str) -> None:
    connection = await db.connect()
    plain = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("SELECT $1::uuid", GOOD) == GOOD
        assert await plain.fetchval(f"SELECT '{UUID(bytes=uuid_of(GOOD))}'::uuid") == UUID(bytes=uuid_of(GOOD))
        await read_ids(plain)
        assert await plain.fetchval("SELECT $1::uuid", GOOD) == GOOD
    finally:
        await plain.close()
        await connection.close()


# -- stored values ----------------------------------------------------------------------------------------------------


COLUMNS = """
SELECT class.relname AS name, attname AS name_of_column, EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = class.oid AND contype = 'p' AND conkey = ARRAY[attnum]
    ) AS is_key, EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = class.oid AND contype = 'f' AND conkey @> ARRAY[attnum]
    ) AS has_foreign_key, ARRAY(
        SELECT pg_get_expr(conbin, conrelid) FROM pg_constraint
        WHERE conrelid = class.oid AND contype = 'c' AND conkey = ARRAY[attnum]
    ) AS checks
FROM pg_class AS class JOIN pg_attribute ON attrelid = class.oid
WHERE class.relnamespace = current_schema()::regnamespace AND class.relkind IN ('r', 'p') AND atttypid = 'uuid'::regtype
    AND attnum > 0 AND NOT attisdropped
ORDER BY relname, attname
"""


OF_SEVERAL_KINDS = {"account_entry.source_id": {"pay", "rfd", "txn"}}
"""Keys that are the id of another plugin's object, with the prefixes that they must accept."""

DIGESTS = {"idempotency_key.digest"}
"""Columns that store digests. No statement returns them to Python."""


@pytest.fixture
async def gateway(values: dict[str, Any]) -> AsyncGenerator[Gateway]:
    """Yield a gateway with the tables of all plugins."""
    async with running_gateway(values | {"worker": {"in_process": False}}) as (found, _):
        yield found


async def refuse(db: Database, column: str, checks: Sequence[str], value: str) -> bool:
    """Return True if a CHECK of a column rejects this value, a uuid in SQL."""
    passes = " AND ".join(f"({check})" for check in checks) or "true"
    found = await db.fetchval(f"SELECT ({passes}) IS FALSE FROM (SELECT '{value}'::uuid AS {column}) AS each")  # noqa: S608
    assert isinstance(found, bool)
    return found


async def test_uuid_columns_store_only_ids_and_keys_only_those_of_their_prefix(gateway: Gateway) -> None:
    columns = await gateway.db.fetch(COLUMNS)
    own_keys: list[str] = []
    for table, column, is_key, has_foreign_key, checks in columns:
        place = f"{table}.{column}"
        if place in DIGESTS:
            continue
        if is_key and not has_foreign_key:
            own_keys.append(place)
            known = [
                one
                for one in sorted(gateway.id_prefixes)
                if not await refuse(gateway.db, column, checks, str(UUID(bytes=uuid_of(identifier(one)))))
            ]
            several = OF_SEVERAL_KINDS.get(place)
            assert len(known) == 1 or (several and several <= set(known)), f"{place} stores ids with {known}"
        for value in (NOTHING, NIL):
            assert has_foreign_key or await refuse(gateway.db, column, checks, str(value)), f"{place} stores {value}"
    assert {"merchant.merchant_id", "event.event_id", "payment.payment_id", "refund.refund_id"} <= set(own_keys)


@given(st.integers(0, 2**46), st.integers(4, 26))
def test_range_of_start_contains_every_id_with_this_start_and_no_other(milliseconds: int, length: int) -> None:
    at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds % 2**44)
    whole = Ids.least("pay", at)
    bounds = Ids.range_of_start(whole[: 4 + length], "pay")
    assert bounds is not None
    least, greatest = bounds
    assert least <= whole <= greatest
    for bound in bounds:
        assert Ids.has_form(bound, "pay")
        assert bound.startswith(whole[: 4 + length])
    before, after = int.from_bytes(uuid_of(least), "big") - 1, int.from_bytes(uuid_of(greatest), "big") + 1
    for number in (before, after):
        if 0 <= number < 2**128:
            assert not id_of(number.to_bytes(16, "big")).startswith(whole[: 4 + length])


@pytest.mark.parametrize(
    "text", ["", "pay_", "pay_0", "pay_012", "ref_0123", "pay_z123", "pay_01il", "pay_0123 ", "0123", "pay_" + "0" * 26]
)
def test_range_of_start_of_another_text_is_none(text: str) -> None:
    assert Ids.range_of_start(text, "pay") is None
