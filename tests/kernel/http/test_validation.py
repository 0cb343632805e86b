"""Protects request validation: a struct, or every bad field by its path, for any input."""

import string
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.query import Moment
from mpesa_gateway.http.validation import read_body, read_query
from tests.asgi import RAW_TEXT


def even(number: int) -> int:
    if number % 2:
        raise ValueError("must be even")
    return number


def short(text: str) -> str:
    if len(text) > 5:
        raise ValueError("must be at most 5 characters")
    return text


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a body."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"code": short}

    code: str
    weight: int = 0


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A body with a field of each sort."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"count": even, "note": short}

    count: int
    kind: Literal["a", "b"] = "a"
    note: str | None = None
    is_urgent: bool = False
    tags: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    inner: Inner | None = None
    size: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    at: Moment | None = None


class Filters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A query string with a parameter of each sort."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"name": short}

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 50
    name: str | None = None
    count: bool = False
    kind: Literal["a", "b"] | None = None
    since: datetime | None = None
    until: Moment | None = None
    is_open: bool | None = None
    most: int | None = None


def problems(read: Callable[[], Any]) -> dict[str, str]:
    """Return the problem of each field."""
    with pytest.raises(InvalidFields) as refused:
        read()
    found = {problem.field or "": problem.message for problem in refused.value.problems}
    assert len(found) == len(refused.value.problems), "a field was named twice"
    assert {problem.code for problem in refused.value.problems} == {"VALIDATION_ERROR"}
    return found


def body_problems(body: bytes) -> dict[str, str]:
    return problems(lambda: read_body(body, Order))


def query_problems(values: dict[str, list[str]]) -> dict[str, str]:
    return problems(lambda: read_query(values, Filters))


def test_read_body_of_a_valid_body_returns_a_struct() -> None:
    body = (
        b'{"count": 4, "kind": "b", "note": "n", "is_urgent": true, "tags": {"x": "y"}, '
        b'"inner": {"code": "abc", "weight": 2}, "size": 9}'
    )
    assert read_body(body, Order) == Order(
        count=4, kind="b", note="n", is_urgent=True, tags={"x": "y"}, inner=Inner(code="abc", weight=2), size=9
    )
    assert read_body(b' {"count": 0, "note": null, "inner": null} ', Order) == Order(count=0)


@pytest.mark.parametrize(
    ("body", "order"),
    [
        (b'{"count": 4.0}', Order(count=4)),
        (b'{"count": 40e-1, "size": 2e0}', Order(count=4, size=2)),
        (
            b'{"count": 4, "inner": {"code": "4.0", "weight": -2.0}, "tags": {"1.0": "2.0"}}',
            Order(count=4, inner=Inner(code="4.0", weight=-2), tags={"1.0": "2.0"}),
        ),
    ],
    ids=["count", "exponent", "nested"],
)
def test_read_body_whole_number_with_a_zero_fraction_is_accepted(body: bytes, order: Order) -> None:
    # RFC 8259 has one kind of number, and in JSON Schema 4.0 is an integer.
    assert read_body(body, Order) == order


@pytest.mark.parametrize("number", [b"4.5", b"1e400", b"-1e400", b"1e300", b"4.0000000000000001e20"])
def test_read_body_other_number_for_a_whole_one_is_refused(number: bytes) -> None:
    assert list(body_problems(b'{"count": ' + number + b"}")) in (["count"], ["body"])


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        (b"{}", "count", "is required"),
        (b'{"count": "4"}', "count", "must be a whole number, not text"),
        (b'{"count": 4.5}', "count", "must be a whole number"),
        (b'{"count": null}', "count", "must be a whole number, not null"),
        (b'{"count": true}', "count", "must be a whole number, not true"),
        (b'{"count": 3}', "count", "must be even"),
        (b'{"count": 4, "note": 1}', "note", "must be text, not a number"),
        (b'{"count": 4, "note": "too long"}', "note", "must be at most 5 characters"),
        (b'{"count": 4, "is_urgent": "yes"}', "is_urgent", "must be true or false, not text"),
        (b'{"count": 4, "kind": "c"}', "kind", "must be one of a, b"),
        (b'{"count": 4, "tags": {"x": 1}}', "tags.x", "must be text, not a number"),
        (b'{"count": 4, "tags": []}', "tags", "must be an object, not a list"),
        (b'{"count": 4, "size": 10}', "size", "must be a whole number from 1 to 9, not 10"),
        (b'{"count": 4, "inner": {}}', "inner.code", "is required"),
        (b'{"count": 4, "inner": []}', "inner", "must be an object, not a list"),
        (b'{"count": 4, "inner": {"code": 5}}', "inner.code", "must be text, not a number"),
        (b'{"count": 4, "inner": {"code": "too long"}}', "inner.code", "must be at most 5 characters"),
        (b'{"count": 4, "inner": {"code": "c", "cod": 1}}', "inner.cod", "known: code, weight"),
        (b'{"count": 4, "Count": 4}', "Count", "unknown field"),
        (b'{"count": 4, "": 4}', "", "unknown field"),
        (b"[]", "body", "send a JSON object"),
        (b"null", "body", "send a JSON object"),
        (b"4", "body", "send a JSON object"),
        (b'"{}"', "body", "send a JSON object"),
        (b"", "body", "send a JSON object"),
        (b"{", "body", "send a JSON object"),
        (b'{"count": 4} 5', "body", "send a JSON object"),
        (b'{"count": NaN}', "body", "send a JSON object"),
        (b'{"count": 4, "note": "\xff"}', "body", "send a JSON object"),
        (b'{"count": 4, "note": "\\ud800"}', "body", "send a JSON object"),
        (b"[" * 50_000, "body", "send a JSON object"),
        (b'{"count": 4, "note": "a\\u0000"}', "note", "must not contain NUL"),
        (b'{"count": 4, "tags": {"a": "\\u0000"}}', "tags.a", "must not contain NUL"),
        (b'{"count": 4, "tags": {"\\u0000": "a"}}', "tags", "must not contain NUL"),
        (b'{"count": 4, "inner": {"code": "\\u0000"}}', "inner.code", "must not contain NUL"),
        (b'{"count": 4, "at": "0001-01-01T00:00:00+14:00"}', "at", "between the years 1 and 9999"),
        (b'{"count": 4, "at": "9999-12-31T23:59:59-14:00"}', "at", "between the years 1 and 9999"),
        (b'{"count": 4, "at": "2026-11-24T00:00:00"}', "at", "a time with its zone"),
    ],
    ids=lambda value: value[:44].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_read_body_one_bad_field_is_named_and_explained(body: bytes, field: str, said: str) -> None:
    found = body_problems(body)
    assert list(found) == [field]
    assert said in found[field]


def test_read_body_all_bad_fields_are_named_at_every_depth() -> None:
    found = body_problems(
        b'{"kind": 1, "note": "too long", "is_urgent": 0, "tags": null, "size": 0, "more": 1, '
        b'"inner": {"code": "too long", "weight": "w", "other": 2}}'
    )
    assert sorted(found) == sorted(
        [
            "count",
            "kind",
            "note",
            "is_urgent",
            "tags",
            "size",
            "more",
            "inner.code",
            "inner.weight",
            "inner.other",
        ]
    )


def test_read_body_rules_apply_beside_wrong_types() -> None:
    assert body_problems(b'{"count": 3, "kind": 7}').keys() == {"count", "kind"}
    assert body_problems(b'{"count": 3, "inner": {"code": "too long"}}').keys() == {"count", "inner.code"}


def test_read_body_long_name_is_cut_in_the_problem() -> None:
    (field,) = body_problems(b'{"count": 4, "' + b"x" * 5000 + b'": 1}')
    assert field == "x" * 64


def test_read_body_of_thousands_of_unknown_names_lists_some() -> None:
    names = {f"n{number}": 1 for number in range(5000)}
    assert len(body_problems(msgspec.json.encode(names))) == 21
    assert len(query_problems({name: ["1"] for name in names})) == 20


def test_read_query_of_a_valid_query_returns_a_struct() -> None:
    values = {"limit": ["7"], "name": ["a b"], "count": ["true"], "kind": ["b"], "since": ["2026-11-23T10:15:00Z"]}
    moment = datetime(2026, 11, 23, 10, 15, tzinfo=UTC)
    assert read_query(values, Filters) == Filters(limit=7, name="a b", count=True, kind="b", since=moment)
    assert read_query({}, Filters) == Filters()
    assert read_query({"limit": [""], "name": [""], "since": [""]}, Filters) == Filters()
    assert read_query({"name": ["7"]}, Filters) == Filters(name="7")
    assert read_query({"name": ["null"]}, Filters) == Filters(name="null")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        ("2026-11-23t10:15:00z", datetime(2026, 11, 23, 10, 15, tzinfo=UTC)),
        ("2026-11-23T10:15:00+03:00", datetime(2026, 11, 23, 7, 15, tzinfo=UTC)),
        ("2026-11-23T10:15:00 03:00", datetime(2026, 11, 23, 7, 15, tzinfo=UTC)),
        ("2026-11-23T10:15:00.25Z", datetime(2026, 11, 23, 10, 15, 0, 250_000, tzinfo=UTC)),
    ],
)
def test_read_query_time_is_always_aware(text: str, moment: datetime) -> None:
    read = read_query({"since": [text], "until": [text]}, Filters)
    for found in (read.since, read.until):
        assert found == moment
        assert found is not None
        assert found.tzinfo is not None


@pytest.mark.parametrize(
    ("name", "texts", "said"),
    [
        ("limit", ["0"], 'must be a whole number from 1 to 100, not "0"'),
        ("limit", ["101"], 'must be a whole number from 1 to 100, not "101"'),
        ("limit", ["ten"], "a whole number"),
        ("limit", ["1.5"], "a whole number"),
        ("limit", ["1", "2"], "once"),
        ("limit", [], "once"),
        ("count", ["perhaps"], "true or false"),
        ("kind", ["c"], 'must be one of a, b, not "c"'),
        ("kind", ["null"], 'must be one of a, b, not "null"'),
        ("since", ["null"], "2026-11-23"),
        ("is_open", ["null"], "true or false"),
        ("most", ["null"], "a whole number"),
        ("since", ["yesterday"], "2026-11-23"),
        ("since", ["2026-13-01"], "2026-11-23"),
        ("since", ["2026-11-23T10:15:00"], "2026-11-23"),
        ("until", ["2026-11-23T10:15:00"], "2026-11-23"),
        ("until", ["20261123"], "2026-11-23"),
        ("until", ["2026-W47-1"], "2026-11-23"),
        ("until", ["0.5"], "2026-11-23"),
        ("until", ["1700000000"], "2026-11-23"),
        ("until", ["null"], "2026-11-23"),
        ("Limit", ["1"], "known: count, is_open, kind, limit, most, name, since, until"),
        ("name", ["too long"], "at most 5"),
        ("name", ["a\x00"], "must not contain NUL"),
    ],
)
def test_read_query_one_bad_parameter_is_named_and_explained(name: str, texts: list[str], said: str) -> None:
    found = query_problems({name: texts})
    assert list(found) == [name]
    assert said in found[name]


def test_read_query_all_bad_parameters_are_named_at_once() -> None:
    bad = {"limit": ["0"], "count": ["x"], "since": ["x"], "kind": ["x"], "more": ["x"], "name": ["x", "y"]}
    assert query_problems(bad).keys() == bad.keys()


NAMES = st.sampled_from([*Order.__struct_fields__, *Inner.__struct_fields__, "other"]) | st.text(max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=12)
    | st.sampled_from(["a", "b", 2, 4]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)
ORDERS = st.fixed_dictionaries(
    {"count": st.sampled_from([2, 3, "4", None])},
    optional={
        "kind": st.sampled_from(["a", "b", "c", 1]),
        "note": st.none() | st.text(string.ascii_letters, max_size=9) | VALUES,
        "is_urgent": st.booleans() | VALUES,
        "tags": st.dictionaries(st.text(string.ascii_letters, max_size=3), st.text(max_size=3), max_size=3) | VALUES,
        "inner": st.none()
        | st.fixed_dictionaries({}, optional={"code": st.text(max_size=9) | VALUES, "weight": st.integers() | VALUES})
        | VALUES,
        "size": st.integers(-2, 12) | VALUES,
        "more": VALUES,
    },
)


def is_struct_or_invalid(read: Callable[[], Any], kind: type[msgspec.Struct]) -> bool:
    """Return True for a struct, False for Invalid; any other error fails the test."""
    try:
        found = read()
    except InvalidFields as refused:
        explained = [problem for problem in refused.problems if problem.field is not None and problem.message]
        if not explained or explained != refused.problems or any(RAW_TEXT.search(one.message) for one in explained):
            raise AssertionError("refused without a field and a reason, or in a library's words") from refused
        return False
    assert type(found) is kind
    return True


@given(ORDERS | VALUES)
def test_read_body_any_json_is_a_struct_or_a_list_of_problems(content: Any) -> None:
    body = msgspec.json.encode(content)
    if is_struct_or_invalid(lambda: read_body(body, Order), Order):
        read = read_body(body, Order)
        assert read.count % 2 == 0
        assert read.note is None or len(read.note) <= 5
        assert read.inner is None or len(read.inner.code) <= 5
        assert 1 <= read.size <= 9
        assert set(content) <= set(Order.__struct_fields__)


@given(st.binary(max_size=200))
def test_read_body_any_bytes_are_a_struct_or_a_list_of_problems(body: bytes) -> None:
    is_struct_or_invalid(lambda: read_body(body, Order), Order)


@given(
    st.dictionaries(
        st.sampled_from([*Filters.__struct_fields__, "more"]) | st.text(max_size=6),
        st.lists(st.text(max_size=20) | st.integers().map(str) | st.sampled_from(["true", "a", "7"]), max_size=2),
        max_size=5,
    )
)
def test_read_query_any_query_is_a_struct_or_a_list_of_problems(values: dict[str, list[str]]) -> None:
    if is_struct_or_invalid(lambda: read_query(values, Filters), Filters):
        read = read_query(values, Filters)
        assert 1 <= read.limit <= 100
        assert read.since is None or read.since.tzinfo is not None


@given(
    st.dates().map(date.isoformat)
    | st.datetimes(
        timezones=st.none()
        | st.just(UTC)
        | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
    ).map(datetime.isoformat)
)
def test_read_query_any_time_is_aware_or_a_problem(text: str) -> None:
    if is_struct_or_invalid(lambda: read_query({"since": [text]}, Filters), Filters):
        read = read_query({"since": [text]}, Filters).since
        assert read is not None
        assert read.tzinfo is not None


WRONG_BEFORE_BROKEN = (
    b'{"count": "4", oops',
    b'{"count": "4"',
    b'{"count": "4"} 5',
    b'{"count": 4, "more": NaN}',
    b'{"more": 1, "note": "\xff"}',
    b'{"count": 4, "note": ' + b"[" * 50_000,
    b'{"count": 4, "more": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
)


@pytest.mark.parametrize("body", WRONG_BEFORE_BROKEN, ids=lambda body: body[:30].decode("latin-1"))
def test_read_body_that_breaks_off_after_a_bad_field_is_no_json_object(body: bytes) -> None:
    (said,) = body_problems(body).items()
    assert said[0] == "body"
    assert said[1].startswith("send a JSON object (RFC 8259, UTF-8): ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"count": 4,}', "line 1, column 13: remove the comma before }"),
        (b'{\n  "count": 4,\n  "tags": {"a": "1",},\n}', "line 3, column 21: remove the comma before }"),
        (b'{"note": "\xc3\xa9\xc3\xa9", oops}', "line 1, column 16: put each name in double quotes"),
        (b"{'count': 4}", "line 1, column 2: put each name in double quotes"),
        (b'{"count" 4}', "line 1, column 10: put a colon after the name"),
        (b'{"count": 4 "note": "a"}', "line 1, column 13: put a comma between members"),
        (b'{"count": 4} 5', "line 1, column 14: remove the text after the end of the object"),
        (b'{"count": NaN}', "line 1, column 11: JSON has no NaN"),
        (b'{"count": -Infinity}', "line 1, column 11: JSON has no NaN"),
        (b'{"count": 4, "is_urgent": True}', "line 1, column 27: write true, false and null in lower case"),
        (b'{"count": 4, "note": \'a\'}', 'put text in straight double quotes (")'),
        ('{"count": 4, "note": “a”}'.encode(), 'put text in straight double quotes (")'),
        (b'{"count": 4} // four', "remove the text after the end"),
        (b'// four\n{"count": 4}', "line 1, column 1: remove the comment"),
        (b'{"count": 04}', "line 1, column 12: write the number as 500"),
        (b'{"count": +4}', "line 1, column 11: write the number without a plus sign"),
        (b'{"count": }', "line 1, column 11: a value is missing"),
        (b'{"count": ten}', "line 1, column 11: put text in double quotes"),
        (b'{"count": 4, "is_urgent": tru}', "line 1, column 27: put text in double quotes"),
        (b'{"count": four}', "line 1, column 11: put text in double quotes"),
        (b'{"count": 4, "note": "a\nb"}', "line 1, column 24: escape line breaks"),
        (b'{"count": 4, "note": "\\q"}', "write a backslash in text as"),
        (b'{"count": 4, "note": "\xff"}', "line 1, column 23: this is not UTF-8"),
        (b'{"count": 4, "note": "\\ud83d\\ude00 \\ud800"}', "line 1, column 36: this is half of a surrogate pair"),
        (b'\\ud800 {"a": 1}', "line 1, column 1:"),
        (b' \\ud800 {"a": 1}', "line 1, column 2:"),
        (b'{"count": 4, "note": "\\ude00"}', "line 1, column 23: this is half of a surrogate pair"),
        (b'{"count": 4, "note": "a', "line 1, column 24: it ends too early"),
        (b"", "the body is empty"),
        (b" \n ", "the body is empty"),
        (b'{"count": 4, "more": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "it is nested too deeply"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_read_body_malformed_json_is_explained_with_its_position(body: bytes, said: str) -> None:
    found = body_problems(body)
    assert list(found) == ["body"]
    assert said in found["body"]
    assert not RAW_TEXT.search(found["body"])


def test_read_body_sent_text_is_never_repeated() -> None:
    for sent in ("254711000001", "sk_test_" + "a1" * 24, "secret_word", "x" * 5000, "\x1b[31m"):
        for kind in ({"kind": sent}, {"is_urgent": sent}, {"size": sent}, {"at": sent}):
            (message,) = body_problems(msgspec.json.encode({"count": 4} | kind)).values()
            assert sent not in message
    assert body_problems(b'{"count": 4, "note": 123456789}') == {"note": "must be text, not a number"}


SECRETS = (
    "712345678",
    "0712-345678",
    "254712345678",
    "Zq8mN4vRt6Yb1Xc9LwPk",
    "sk_test_" + "a1" * 24,
    "hunter2",
    "-712345678",
)


@pytest.mark.parametrize("name", ["limit", "kind", "count", "is_open", "since", "until", "name"])
@pytest.mark.parametrize("sent", [*SECRETS, "c" * 21])
def test_read_query_sent_secret_or_number_is_never_repeated(name: str, sent: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        read_query({name: [sent]}, Filters)
    assert sent not in str(refused.value)
    assert "712" not in str(refused.value)


@pytest.mark.parametrize("number", [1_000_000, -1_000_000, 0])
def test_read_small_whole_number_is_repeated(number: int) -> None:
    assert query_problems({"limit": [str(number)]})["limit"].endswith(f'not "{number}"')
    assert body_problems(b'{"count": 4, "size": %d}' % number)["size"].endswith(f"not {number}")
    assert body_problems(b'{"count": 4, "size": 712345678}')["size"] == "must be a whole number from 1 to 9"


@pytest.mark.parametrize(
    "sent",
    [
        "254712345678",
        "712345678",
        "0712 345 678",
        "sk_test_" + "a1" * 24,
        "x" * 30 + "sk_live_" + "a1" * 24,
        "whsec_b3JkZXItMTA0MS1pcy1wYWlkLWJ5LWFtaW5h",
    ],
)
def test_read_secret_or_number_in_a_name_is_masked(sent: str) -> None:
    found = query_problems({sent: ["1"]})
    found |= body_problems(msgspec.json.encode({"count": 4, sent: 1}))
    found |= body_problems(msgspec.json.encode({"count": 4, "tags": {sent: 1}}))
    found |= body_problems(msgspec.json.encode({"count": 4, "inner": {"code": "c", sent: 1}}))
    found |= body_problems(b'{"count": 4, "%b": 1, "%b": 2}' % (sent.encode(), sent.encode()))
    said = "; ".join(f"{name}: {message}" for name, message in found.items())
    for part in (sent, "712345678", "345 678", "a1a1", "b3Jk"):
        assert part not in said
    assert "****" in said


def test_read_body_nested_values_are_named_by_their_path() -> None:
    found = body_problems(b'{"count": 4, "tags": {"a": 1, "b": "x", "c": [], "d": null}}')
    assert found == {
        "tags.a": "must be text, not a number",
        "tags.c": "must be text, not a list",
        "tags.d": "must be text, not null",
    }
    many = {"count": 4, "tags": {f"n{number}": number for number in range(5000)}}
    assert len(body_problems(msgspec.json.encode(many))) == 20


@given(ORDERS, st.integers(0, 400), st.binary(max_size=3))
def test_read_body_any_damaged_json_is_a_struct_or_a_list_of_problems(content: Any, at: int, put: bytes) -> None:
    body = msgspec.json.encode(content)
    is_struct_or_invalid(lambda: read_body(body[:at] + put + body[at + len(put) :], Order), Order)
    is_struct_or_invalid(lambda: read_body(body[:at], Order), Order)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"count": 2, "count": 4}', "count"),
        (b'{"count": 4, "count": 4}', "count"),
        (b'{"count": "x", "count": 4}', "count"),
        (b'{"count": 4, "c\\u006funt": 2}', "count"),
        (b'{"count": 4, "tags": {"order": "1", "order": "2"}}', "tags.order"),
        (b'{"count": 4, "inner": {"code": "a", "weight": 1, "code": "b"}}', "inner.code"),
        (b'{"count": 4, "tags": {}, "tags": {}}', "tags"),
        (b'{"count": 4, "unknown": 1, "unknown": 2}', "unknown"),
        (b'{"count": 4, "": 1, "": 2}', "body"),
        (b'{"count": 4, "tags": {"a\tb": "1", "a\\tb": "2"}}', "tags.a\tb"),
        (b'{"count": ' + b"9" * 5000 + b', "count": 4}', "count"),
    ],
)
def test_read_body_with_repeated_field_names_it(body: bytes, field: str) -> None:
    assert body_problems(body) == {field: "is repeated in one object: send it once"}


def test_read_body_skips_one_byte_order_mark_at_the_start() -> None:
    assert read_body(b"\xef\xbb\xbf" + b'{"name": "amina"}', Named) == Named(name="amina")
    for body in (b'{"name": "amina"}\xef\xbb\xbf', b"\xef\xbb\xbf" * 2 + b"{}", b"\xef\xbb\xbf", b"\xef\xbb{}"):
        with pytest.raises(InvalidFields, match="send a JSON object"):
            read_body(body, Named)


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body with one field."""

    name: str
