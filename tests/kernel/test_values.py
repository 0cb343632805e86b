"""Protects money, phones, time and secrets: read in every form, stored in one."""

import re
import sys
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.clock import SetClock, daraja_timestamp, from_daraja_timestamp, rfc3339
from mpesa_gateway.daraja.provider_text import provider_text
from mpesa_gateway.db.json_codec import dumps, loads
from mpesa_gateway.erasure import ErasedNumber
from mpesa_gateway.ids import Ids
from mpesa_gateway.money import InvalidAmount, Kes, cents_text, payable
from mpesa_gateway.phone import InvalidPhone, Msisdn, PhoneMatch, compare, mask_phones
from mpesa_gateway.secret import Secret


@given(st.integers(1, 250_000))
def test_kes_of_every_payable_amount_is_the_same_after_its_wire_form(number: int) -> None:
    amount = Kes.parse_payable(number)
    assert amount == number == Kes.parse(amount.wire) == Kes.parse(Decimal(number)) == Kes.parse(str(number))
    assert amount.wire == f"{number}.00"


def test_kes_in_a_text_is_its_digits() -> None:
    assert (str(Kes(501)), f"KES {Kes(501)}", Kes.parse(Kes(501))) == ("501", "KES 501", 501)


@given(st.decimals(allow_nan=True, allow_infinity=True) | st.text(max_size=20) | st.integers())
def test_kes_of_other_values_is_refused_with_a_sentence(value: Decimal | str | int) -> None:
    try:
        expected = Decimal(str(value).strip())
    except InvalidOperation:
        expected = Decimal("NaN")
    if expected.is_finite() and expected == int(expected) and expected >= 0:
        with suppress(InvalidAmount):  # a valid number can have an invalid spelling: 1E+3
            assert Kes.parse(value) == expected
    else:
        with pytest.raises(InvalidAmount, match=r"\w"):
            Kes.parse(value)


@pytest.mark.parametrize("raw", [b"1.5", b'"500.001"', b"1e3", b"null", b"true", b'""', b'"\\u0031"', b"[1]", b"-5"])
def test_kes_parse_json_of_other_numbers_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidAmount, match=r"\w"):
        Kes.parse_json(raw)


@pytest.mark.parametrize(
    ("cents", "text"), [(0, "0.00"), (5, "0.05"), (50_000, "500.00"), (-5, "-0.05"), (-50_005, "-500.05")]
)
def test_cents_text_of_any_sign_is_the_amount(cents: int, text: str) -> None:
    assert cents_text(cents) == text
    assert Decimal(text) * 100 == cents


@pytest.mark.parametrize(
    ("cents", "amount"),
    [
        (None, None),
        (0, None),
        (99, None),
        (-100, None),
        (100, 1),
        (150, None),
        (25_000_000, 250_000),
        (25_000_100, None),
    ],
)
def test_payable_of_cents_is_a_whole_amount_that_a_payment_can_have(cents: int | None, amount: int | None) -> None:
    assert payable(cents) == amount


@given(st.sampled_from("17"), st.integers(0, 99_999_999))
def test_msisdn_of_every_notation_is_the_same_number(first: str, rest: int) -> None:
    national = f"{first}{rest:08}"
    expected = "254" + national
    spaced = f"+254 {national[:3]} {national[3:6]}-{national[6:]}"
    for text in (expected, "+" + expected, "0" + national, national, spaced):
        assert Msisdn.parse(text) == expected
    assert Msisdn(expected).masked == f"{expected[:4]}****{expected[-3:]}"


INVISIBLE = ("\u202a", "\u202c", "\u200b", "\u200e", "\u2060", "\ufeff", "\u00ad", "\u2066")
SPACES = (" ", "\u00a0", "\u2007", "\u202f", "\u3000", "\t")
DASHES = ("-", "\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2212", "\uff0d")


@pytest.mark.parametrize("mark", [*INVISIBLE, *SPACES, *DASHES])
def test_msisdn_with_invisible_or_unusual_characters_is_the_same_number(mark: str) -> None:
    for text in (f"{mark}0712345678{mark}", f"+254{mark}712{mark}345{mark}678", f"{mark}+{mark}254712345678"):
        assert Msisdn.parse(text) == "254712345678"
    assert compare(f"{mark}254712{mark}345678", "254712345678") is PhoneMatch.SAME
    with pytest.raises(InvalidPhone, match="Kenyan mobile number"):
        Msisdn.parse(f"071234567{mark}")


def test_msisdn_in_full_width_digits_is_the_same_number() -> None:
    assert Msisdn.parse("\uff0b\uff12\uff15\uff14712345678") == "254712345678"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        "254812345678",
        "0212345678",
        "+255712345678",
        "07123456789",
        "०७१२३४५६७८",
        "x" * 50,
        "\u202a" * 60 + "0712345678",
    ],
)
def test_msisdn_of_another_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidPhone, match="Kenyan mobile number"):
        Msisdn.parse(text)


@given(st.text(max_size=30), st.integers(0, 99_999_999), st.text(max_size=30))
def test_mask_phones_of_any_text_shows_no_whole_number(before: str, rest: int, after: str) -> None:
    phone = f"2547{rest:08}"
    text = f"{before} {phone} {after}"
    assert phone not in mask_phones(text)


_BETWEEN = [
    chr(code)
    for code in range(sys.maxunicode + 1)
    if chr(code) in "-().\t/_\u2212\u200b\u200e\u202a\u202c\ufeff" or unicodedata.category(chr(code)) in {"Zs", "Pd"}
]


def _written(prefix: str, national: str, between: list[str]) -> str:
    return prefix + "".join(f"{gap}{digit}" for gap, digit in zip(between, national, strict=True))


@pytest.mark.parametrize("gap", _BETWEEN)
@pytest.mark.parametrize("prefix", ["0", "254", "+254", "00254", "+254 (0)"])
def test_number_with_separators_is_masked_and_erased(prefix: str, gap: str) -> None:
    shown = _written(prefix, "711000001", ["", "", "", gap, "", "", gap, "", ""])
    assert "000" not in mask_phones(f"call {shown}.")
    assert "000" not in provider_text(f"call {shown}.")
    assert ErasedNumber(Msisdn("254711000001")).without(f"call {shown}.") == "call erased."


@given(st.lists(st.text(st.sampled_from(_BETWEEN), max_size=3), min_size=9, max_size=9))
def test_number_with_any_separators_is_masked_and_erased(between: list[str]) -> None:
    shown = _written("0", "711000001", between)
    assert not re.search("0.{0,3}0.{0,3}0.{0,3}0", mask_phones(shown))
    assert ErasedNumber(Msisdn("254711000001")).without(shown) == "erased"
    assert ErasedNumber(Msisdn("254711000002")).without(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "KES 1,000.00 of 2026-12-01 07:11:00",
        "2026-12-01T07:11:00Z",
        "0.71234567",
        "pay_01m8qz3hn75jwqa1jk1g0djgn7",
        "0711 000 00",
        "0711 000 0012",
        "0 of 1 000 000",
        "174379 and 600111",
        "10.0.17.1, 127.0.0.1",
    ],
)
def test_text_that_is_no_number_stays(text: str) -> None:
    assert mask_phones(text) == text
    assert ErasedNumber(Msisdn("254711000001")).without(text) == text


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)))  # noqa: DTZ001 - the zone is set below
def test_daraja_timestamp_is_read_back_as_the_same_time(naive: datetime) -> None:
    moment = naive.replace(tzinfo=UTC, microsecond=0)
    assert from_daraja_timestamp(daraja_timestamp(moment)) == moment


def test_daraja_timestamp_is_three_hours_ahead_of_utc() -> None:
    moment = datetime(2026, 11, 23, 22, 30, 5, tzinfo=UTC)
    assert daraja_timestamp(moment) == "20261124013005"
    assert rfc3339(moment) == "2026-11-23T22:30:05.000000Z"


@pytest.mark.parametrize("text", ["", "2026112322300", "20261323223000", "2026112322300x"])
def test_daraja_timestamp_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        from_daraja_timestamp(text)


def test_new_ids_sort_by_time() -> None:
    clock = SetClock(datetime(2026, 1, 1, tzinfo=UTC))
    ids = Ids(clock)
    made: list[str] = []
    for _ in range(50):
        made.append(ids.new("pay"))
        clock.advance(timedelta(milliseconds=1))
    assert made == sorted(made)
    assert len({len(one) for one in made}) == 1


def test_secret_shows_at_most_its_last_four_characters() -> None:
    secret = Secret("consumer-secret-ef12")
    shown = f"{secret} {secret!r} {[secret]}"
    assert shown == "****ef12 ****ef12 [****ef12]"
    assert Secret("short").masked == "****"
    with pytest.raises(TypeError, match="Secret"):
        msgspec.json.encode(secret)
    assert secret == Secret("consumer-secret-ef12") != Secret("another")


class Kept(msgspec.Struct, frozen=True):
    """A struct with each of our stored types."""

    amount: Kes | None
    phone: Msisdn | None


@given(st.integers(1, 250_000) | st.none(), st.from_regex(r"254[17][0-9]{8}", fullmatch=True) | st.none())
def test_json_codec_reads_back_stored_types(amount: int | None, phone: str | None) -> None:
    kept = Kept(None if amount is None else Kes(amount), None if phone is None else Msisdn(phone))
    found = loads(dumps(kept), Kept)
    assert found == kept
    assert (type(found.amount), type(found.phone)) == (type(kept.amount), type(kept.phone))


def test_json_codec_refuses_secrets_and_amounts_as_text() -> None:
    with pytest.raises(TypeError, match="Secret is not kept"):
        dumps({"password": Secret("hunter2hunter2")})
    with pytest.raises(msgspec.ValidationError, match="Kes"):
        loads('{"amount": "500", "phone": null}', Kept)
