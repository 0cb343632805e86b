"""Protects the meaning of Daraja's faults: each row of the table, and what the gateway does after it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.daraja.faults import KNOWN_FAULTS, Delivered, Retry, known_faults, read_fault, read_response
from mpesa_gateway_payments.result_codes import FAILURE_REASONS

ROWS = [
    ("400.008.01", "Invalid Authentication passed", Delivered.NO, Retry.FIX),
    ("400.008.02", "Invalid grant type passed", Delivered.NO, Retry.FIX),
    ("400.002.02", "Bad Request - Invalid PhoneNumber", Delivered.NO, Retry.FIX),
    ("400.002.05", "Invalid Request Payload", Delivered.NO, Retry.FIX),
    ("400.003.01", "Something", Delivered.NO, Retry.NEW_TOKEN),
    ("401.001", "Something", Delivered.NO, Retry.NEW_TOKEN),
    ("401.002.01", "Error Occurred - Invalid Access Token - abc", Delivered.NO, Retry.NEW_TOKEN),
    ("401.002.01", "", Delivered.NO, Retry.NEW_TOKEN),
    ("401.003.01", "Error Occurred: Invalid API call as no apiproduct match found", Delivered.NO, Retry.NEW_TOKEN),
    ("404.001.03", "Invalid Access Token", Delivered.NO, Retry.NEW_TOKEN),
    ("500.001.1001", "Invalid Access Token", Delivered.NO, Retry.NEW_TOKEN),
    ("404.001.04", "Invalid Access Token", Delivered.NO, Retry.NEW_TOKEN),
    ("keymanagement.service.invalid_access_token", "the token is not valid", Delivered.NO, Retry.NEW_TOKEN),
    ("keymanagement.service.access_token_expired", "expired", Delivered.NO, Retry.NEW_TOKEN),
    ("keymanagement.service.InvalidAPICallAsNoApiProductMatchFound", "", Delivered.NO, Retry.NEW_TOKEN),
    ("oauth.v2.InvalidAccessToken", "", Delivered.NO, Retry.NEW_TOKEN),
    ("400.003.02", "kindly use your own ShortCode", Delivered.NO, Retry.FIX),
    ("404.001.04", "Invalid Authentication Header", Delivered.NO, Retry.FIX),
    ("404.001.01", "Resource not found", Delivered.NO, Retry.FIX),
    ("404.002.01", "Resource not found", Delivered.NO, Retry.FIX),
    ("404.003.01", "Resource not found", Delivered.NO, Retry.FIX),
    ("403.002.1001", "You are not authorized to initiate this transaction", Delivered.NO, Retry.FIX),
    ("405.001", "Method Not Allowed", Delivered.NO, Retry.FIX),
    ("429.001.01", "Too many requests", Delivered.NO, Retry.BACK_OFF),
    ("policies.ratelimit.SpikeArrestViolation", "spike arrest, rate 5ps", Delivered.NO, Retry.BACK_OFF),
    ("policies.ratelimit.QuotaViolation", "Rate limit quota violation", Delivered.NO, Retry.BACK_OFF),
    ("500.001.1001", "Wrong credentials", Delivered.NO, Retry.FIX),
    ("500.001.1001", "Merchant does not exist", Delivered.NO, Retry.FIX),
    ("500.001.1001", "[CBS - ] No ICCID found", Delivered.NO, Retry.FIX),
    ("500.001.1001", "Unable to lock subscriber, a transaction is in process", Delivered.NO, Retry.AFTER_A_MINUTE),
    ("500.001.1001", "[MerchantValidate] - unable to lock subscriber", Delivered.NO, Retry.AFTER_A_MINUTE),
    ("500.001.1001", "The transaction is being processed", Delivered.UNKNOWN, Retry.PENDING),
    ("500.001.1001", "The transaction is still under processing", Delivered.UNKNOWN, Retry.PENDING),
    ("500.001.1001", "The transaction does not exist", Delivered.UNKNOWN, Retry.PENDING),
    ("500.001.1001", "Internal Server Error", Delivered.UNKNOWN, Retry.ASK),
    ("500.001.1001", "The merchant's system timed out", Delivered.UNKNOWN, Retry.ASK),
    ("500.001.1001", "", Delivered.UNKNOWN, Retry.ASK),
    ("500.002.1001", "Duplicate OriginatorConversationID.", Delivered.EARLIER, Retry.NEVER),
    ("500.002.1001", "Service is currently under maintenance. Please try again later", Delivered.NO, Retry.BACK_OFF),
    ("500.002.1001", "System internal error.", Delivered.UNKNOWN, Retry.ASK),
    ("500.002.1001", "", Delivered.UNKNOWN, Retry.ASK),
    ("00.002.1001", "", Delivered.NO, Retry.BACK_OFF),
    ("500.003.02", "Error Occurred: Spike Arrest Violation", Delivered.NO, Retry.BACK_OFF),
    ("500.003.02", "System is busy", Delivered.UNKNOWN, Retry.ASK),
    ("500.003.02", "System is busy. Please try again in few minutes.", Delivered.UNKNOWN, Retry.ASK),
    ("500.003.02", "", Delivered.UNKNOWN, Retry.ASK),
    ("500.003.03", "Error Occurred: Quota Violation", Delivered.NO, Retry.BACK_OFF),
    ("500.003.1001", "Internal Server Error", Delivered.UNKNOWN, Retry.ASK),
]


@pytest.mark.parametrize(("code", "message", "sent", "retry"), ROWS)
def test_read_fault_known_fault_has_its_meaning_with_any_status(
    code: str, message: str, sent: Delivered, retry: Retry
) -> None:
    for status in (200, 400, 401, 404, 500, 503):
        for text in (message, message.upper(), f"[{message.lower()}]"):
            meaning = read_fault(status, f" {code} ", text)
            assert (meaning.code, meaning.sent, meaning.retry) == (code, sent, retry)
            assert meaning.meaning
            assert meaning.mitigation
            assert meaning.failure_reason in FAILURE_REASONS


def test_read_fault_no_code_is_known_beyond_the_tested_rows() -> None:
    assert {code for code, _, _, _ in ROWS} >= KNOWN_FAULTS
    assert len(list(known_faults())) >= len(KNOWN_FAULTS)


@pytest.mark.parametrize("code", [None, "", "429.001.01", "500.003.1001", "500.003.02", "401.002.01", "7"])
def test_read_fault_any_429_was_not_sent(code: str | None) -> None:
    meaning = read_fault(429, code, "System is busy")
    assert (meaning.sent, meaning.retry) == (Delivered.NO, Retry.BACK_OFF)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 499])
def test_read_fault_unknown_code_of_a_refusal_was_not_carried_out(status: int) -> None:
    meaning = read_fault(status, "400.777.77", None)
    assert (meaning.code, meaning.sent, meaning.retry) == ("400.777.77", Delivered.NO, Retry.FIX)
    meaning = read_fault(status, "401.777.77", None)
    assert (meaning.sent, meaning.retry) == (Delivered.NO, Retry.NEW_TOKEN)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((status, "400.777.77") for status in (200, 302, 500, 502, 503, 504)),
        *((400, code) for code in ("500.777.77", "408.001", "409.001", "425.001", "steps.jsonthreat", "x400", "4", "")),
        (504, "messaging.adaptors.http.flow.GatewayTimeout"),
        (400, "steps.servicecallout.ExecutionFailed"),
    ],
)
def test_read_fault_outside_the_table_has_unknown_outcome(status: int, code: str) -> None:
    meaning = read_fault(status, code, "Something went wrong")
    assert (meaning.code, meaning.sent, meaning.retry) == (code or f"http_{status}", Delivered.UNKNOWN, Retry.ASK)


@given(st.integers(200, 599), st.text(max_size=30), st.text(max_size=60))
def test_read_fault_retry_is_offered_only_if_nothing_was_sent(status: int, code: str, message: str) -> None:
    meaning = read_fault(status, code, message)
    assert meaning.failure_reason in FAILURE_REASONS
    if meaning.retry in {Retry.FIX, Retry.NEW_TOKEN, Retry.BACK_OFF, Retry.AFTER_A_MINUTE}:
        assert meaning.sent is Delivered.NO
    else:
        assert meaning.sent is not Delivered.NO
    if (
        status >= 500
        and code not in KNOWN_FAULTS
        and not code.lower().startswith(("policies", "keymanagement", "oauth"))
    ):
        assert meaning.sent is Delivered.UNKNOWN or "arrest" in message.lower()


@pytest.mark.parametrize(
    ("code", "said", "sent", "retry"),
    [
        ("1", "Rejected", Delivered.NO, Retry.FIX),
        ("17", "", Delivered.NO, Retry.FIX),
        ("15", "Duplicate Detected", Delivered.EARLIER, Retry.NEVER),
        ("26", "System busy", Delivered.UNKNOWN, Retry.ASK),
        ("100000000", "Request was cached, waiting for resending", Delivered.UNKNOWN, Retry.ASK),
        ("5", "Request was cached, waiting for resending", Delivered.UNKNOWN, Retry.ASK),
        ("100000005", "", Delivered.UNKNOWN, Retry.ASK),
        ("100000100", "", Delivered.UNKNOWN, Retry.ASK),
        ("500.003.1001", "Internal Server Error", Delivered.UNKNOWN, Retry.ASK),
        ("500.777.77", "", Delivered.UNKNOWN, Retry.ASK),
        ("400.002.02", "Bad Request - Invalid Amount", Delivered.NO, Retry.FIX),
        ("404.001.03", "", Delivered.NO, Retry.NEW_TOKEN),
        ("100000002", "throttled", Delivered.NO, Retry.BACK_OFF),
        ("1", "Spike arrest violation", Delivered.NO, Retry.BACK_OFF),
        ("1", "Invalid Access Token", Delivered.NO, Retry.NEW_TOKEN),
    ],
)
def test_read_response_other_than_zero_is_a_refusal_unless_its_text_differs(
    code: str, said: str, sent: Delivered, retry: Retry
) -> None:
    meaning = read_response(code, said)
    assert (meaning.code, meaning.sent, meaning.retry) == (code, sent, retry)
