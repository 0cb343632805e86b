"""Protects times as people type and read them: East Africa Time, and a message that repeats bad input."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.clock import EAT
from mpesa_gateway.local_time import format_local, format_near, parse_local

MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-30T19:00", datetime(2026, 11, 30, 16, tzinfo=UTC)),
        (" 2026-11-30 19:00:05 ", datetime(2026, 11, 30, 16, 0, 5, tzinfo=UTC)),
        ("2026-11-30", datetime(2026, 11, 29, 21, tzinfo=UTC)),
        ("2026-11-30T19:00:00Z", datetime(2026, 11, 30, 19, tzinfo=UTC)),
        ("2026-11-30T19:00:00+03:00", datetime(2026, 11, 30, 16, tzinfo=UTC)),
    ],
)
def test_parse_local_reads_east_africa_time(text: str, expected: datetime) -> None:
    assert parse_local(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-30", datetime(2026, 11, 30, 21, tzinfo=UTC)),
        ("2026-12-31", datetime(2026, 12, 31, 21, tzinfo=UTC)),
        ("2026-11-30T00:00", datetime(2026, 11, 29, 21, tzinfo=UTC)),
        ("2026-11-30T19:00 03:00", datetime(2026, 11, 30, 16, tzinfo=UTC)),
    ],
)
def test_parse_local_of_an_end_includes_the_whole_day(text: str, expected: datetime) -> None:
    assert parse_local(text, is_end=True) == expected


@pytest.mark.parametrize("text", ["2026-11-30T19:00 03:00", "2026-11-30T19:00:00 03:00", "2026-11-30 19:00:00.5 03:00"])
def test_parse_local_reads_a_space_before_the_zone_as_plus(text: str) -> None:
    assert parse_local(text).replace(microsecond=0) == datetime(2026, 11, 30, 16, tzinfo=UTC)


@pytest.mark.parametrize("text", ["soon", "", "30/11/2026", "2026-13-01", "2026-11-30T25:00", "0001-01-01", "0" * 500])
def test_parse_local_with_bad_input_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time: choose a time such as") as refused:
        parse_local(text)
    assert not text or text not in str(refused.value)
    assert len(str(refused.value)) < 160


@pytest.mark.parametrize("text", ["254711000001", "0712 345 678", "sk_test_" + "a1" * 24, "x" * 32 + "254712345678"])
def test_parse_local_does_not_repeat_a_number_or_key(text: str) -> None:
    with pytest.raises(ValueError, match="not a time") as refused:
        parse_local(text)
    assert text[:8] not in str(refused.value)
    assert "25471" not in str(refused.value)


@given(MOMENTS)
def test_field_value_is_parsed_to_the_same_second(moment: datetime) -> None:
    assert parse_local(format_local(moment, "field")) == moment.replace(microsecond=0)


def test_near_time_has_its_day_unless_it_is_todays_in_east_africa() -> None:
    now = datetime(2026, 11, 30, 20, 50, tzinfo=UTC)
    assert format_near(datetime(2026, 11, 30, 20, 59, tzinfo=UTC), now) == "23:59"
    assert format_near(datetime(2026, 11, 30, 21, 1, tzinfo=UTC), now) == "1 Dec 00:01"
    assert format_near(datetime(2026, 12, 1, 0, 1, tzinfo=EAT), now) == "1 Dec 00:01"
