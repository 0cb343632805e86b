"""Protects the table of STK result codes: the outcome, reason and advice of each code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.daraja.numerals import canonical
from mpesa_gateway_payments.result_codes import (
    FAILURE_REASONS,
    STK_RESULTS,
    FailureReason,
    stk_outcome,
    stk_query_outcome,
)

RESULTS: dict[str, FailureReason] = {
    "1": "insufficient_funds",
    "2": "limit_exceeded",
    "3": "limit_exceeded",
    "4": "limit_exceeded",
    "8": "limit_exceeded",
    "17": "duplicate_in_progress",
    "26": "other",
    "9999": "other",
    "1025": "other",
    "1001": "duplicate_in_progress",
    "1019": "timeout",
    "1031": "cancelled_by_user",
    "1032": "cancelled_by_user",
    "1036": "unreachable",
    "1037": "unreachable",
    "2001": "wrong_pin",
    "2028": "rejected_by_provider",
    "SFC_IC0003": "rejected_by_provider",
    "8006": "rejected_by_provider",
}


def test_stk_outcome_is_paid_for_zero_only() -> None:
    outcome = stk_outcome("0", "The service request is processed successfully.")
    assert (outcome.is_paid, outcome.is_pending, outcome.code) == (True, False, "0")
    for code in (" 0 ", "00", "0.0", "-0", "00000000", "0e5", "0E-3"):
        assert stk_outcome(code).is_paid
    for code in ("", "O", "0x0", "0,0", "zero", "NaN", "0.5", "1e-99", "0 0", "\u0660", "-", *RESULTS, "4999"):
        assert not stk_outcome(code).is_paid


@pytest.mark.parametrize("code", ["1032", " 1032 ", "1032.0", "1.032e3", "001032", "+1032"])
def test_stk_outcome_of_equal_numbers_is_equal(code: str) -> None:
    outcome = stk_outcome(code)
    assert (outcome.code, outcome.failure_reason) == ("1032", "cancelled_by_user")


NOT_FINAL = {"26", "9999", "1019", "1036", "1037"}


def test_stk_outcome_is_final_as_the_table_says() -> None:
    for code in RESULTS:
        for text in ("", "No response from user"):
            assert stk_outcome(code, text).is_final == (code not in NOT_FINAL), code
    for code in ("0", "4999", "7777", "SFC_IC9999", ""):
        assert not stk_outcome(code).is_final


@given(st.text(max_size=20), st.text(max_size=60))
def test_stk_query_outcome_of_an_unknown_code_is_pending_and_never_final(code: str, text: str) -> None:
    outcome = stk_query_outcome(code, text)
    assert outcome.is_paid == stk_outcome(code, text).is_paid
    assert not outcome.is_final
    assert outcome.is_paid or outcome.is_pending or outcome.code in RESULTS.keys() - {"26", "9999"}


@pytest.mark.parametrize("code", ["9999", "26", "7777", "15", "SFC_IC9999", "9999.0"])
def test_stk_query_outcome_of_an_undecided_code_is_pending(code: str) -> None:
    assert stk_query_outcome(code, "an error occurred").is_pending


@pytest.mark.parametrize(("code", "reason"), RESULTS.items())
def test_stk_outcome_of_a_known_code_has_reason_and_advice(code: str, reason: str) -> None:
    outcome = stk_outcome(f" {code} ", "Something that Daraja says")
    assert (outcome.code, outcome.failure_reason) == (code, reason)
    assert (outcome.is_paid, outcome.is_pending) == (False, False)
    assert outcome.meaning
    assert outcome.advice


def test_stk_results_equal_the_table() -> None:
    assert set(STK_RESULTS) == set(RESULTS)


def test_stk_outcome_of_no_response_is_a_timeout() -> None:
    assert stk_outcome("1037", "DS timeout user cannot be reached").failure_reason == "unreachable"
    assert stk_outcome("1037", "No response from user.").failure_reason == "timeout"
    assert stk_outcome("1037", "[NO RESPONSE FROM USER]").failure_reason == "timeout"
    assert stk_outcome("1036", "No response from user").failure_reason == "unreachable"


def test_stk_outcome_under_processing_is_pending() -> None:
    for code, text in (
        ("4999", ""),
        ("4999", "The transaction is still under processing"),
        ("500.001.1001", "The transaction is being processed"),
        ("1", "The transaction is STILL UNDER PROCESSING"),
    ):
        outcome = stk_outcome(code, text)
        assert (outcome.is_pending, outcome.is_paid) == (True, False)


def test_stk_outcome_of_an_unknown_code_fails_with_darajas_text() -> None:
    outcome = stk_outcome("7777", "A new kind of trouble")
    assert (outcome.failure_reason, outcome.meaning) == ("other", "A new kind of trouble")
    assert (outcome.is_paid, outcome.is_pending) == (False, False)
    assert stk_outcome("7777").meaning


@given(st.text(max_size=20), st.text(max_size=60))
def test_stk_outcome_of_any_code_has_a_known_reason(code: str, text: str) -> None:
    outcome = stk_outcome(code, text)
    assert outcome.failure_reason in FAILURE_REASONS
    assert outcome.is_paid == (canonical(code) == "0")
    assert not (outcome.is_paid and outcome.is_pending)
    assert outcome.meaning
