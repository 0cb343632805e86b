"""Protects the table of reversal result codes: no other code proves anything."""

from mpesa_gateway_refunds.result_codes import REVERSAL_RESULTS, reversal_outcome

REVERSALS = {"0", "R000001", "R000002", "1", "11", "2006", "21", "2001", "2028", "8006"}


def test_reversal_outcome_is_known_for_codes_of_the_table_only() -> None:
    assert set(REVERSAL_RESULTS) == REVERSALS
    for code in REVERSALS:
        assert reversal_outcome(f" {code.lower()} ").is_known
    for code in ("15", "100000100", "100000000", "26", "17", "R000003", "2032", "", "0.5"):
        outcome = reversal_outcome(code, "Duplicate Detected")
        assert (outcome.is_known, outcome.word) == (False, "other")


def test_reversal_outcome_of_equal_numbers_is_equal() -> None:
    for code in ("0.0", "00000000", "-0", "0e1"):
        assert reversal_outcome(code).word == "reversed"
    assert reversal_outcome("2001.0").word == "initiator_invalid"
