"""Protects the next step of an unpaid payment: when M-Pesa is asked again, when the gateway gives up, what to do."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway_payments.next_step import next_step

NOW = datetime(2026, 11, 30, 16, 0, tzinfo=UTC)
"""19:00 in East Africa."""

PENDING: dict[str, Any] = {
    "status": "pending",
    "mismatch": None,
    "claim": None,
    "charge": "accepted",
    "checkout_request_id": "ws_CO_1",
    "due_at": NOW + timedelta(minutes=1),
    "expires_at": NOW + timedelta(minutes=11),
    "outcome_is_final": False,
    "failure_reason": None,
}
FAILED: dict[str, Any] = PENDING | {"status": "failed", "due_at": None, "failure_reason": "expired"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            PENDING,
            "M-Pesa is asked again at 19:01; the gateway gives up at 19:11. Do not ask the customer again yet.",
        ),
        (
            PENDING | {"due_at": NOW},
            "M-Pesa is being asked now; the gateway gives up at 19:11. Do not ask the customer again yet.",
        ),
        (
            PENDING | {"due_at": NOW + timedelta(minutes=12)},
            "M-Pesa's callback can still arrive; the gateway gives up at 19:11. Do not ask the customer again yet.",
        ),
        (
            PENDING | {"expires_at": NOW},
            "The time for an answer has passed: the payment ends within a minute. Do not ask the customer again yet.",
        ),
        (
            PENDING | {"charge": "unknown", "checkout_request_id": None},
            (
                "M-Pesa has not acknowledged the STK push. Its callback can still arrive; the gateway gives up at "
                "19:11. Do not ask the customer again yet."
            ),
        ),
        (
            PENDING | {"charge": "released", "checkout_request_id": None},
            "The STK push was not sent. A call with the same Idempotency-Key sends it; the gateway gives up at 19:11.",
        ),
        (
            PENDING | {"claim": dict[str, Any]()},
            "A report says paid. M-Pesa is asked again at 19:01 to confirm it. Do not ask the customer again yet.",
        ),
        (FAILED | {"outcome_is_final": True}, "Nothing was paid. The customer can be asked again, with a new payment."),
        (
            FAILED | {"due_at": NOW + timedelta(hours=6)},
            (
                "M-Pesa has not reported an outcome. M-Pesa is asked again at 1 Dec 01:00; if the customer has paid, "
                "the payment becomes completed. Ask for the customer's M-Pesa message before you ask for money again."
            ),
        ),
        (
            FAILED,
            (
                "This failure is not M-Pesa's final word: a receipt that arrives later completes the payment. Ask for "
                "the customer's M-Pesa message before you ask for money again."
            ),
        ),
        (PENDING | {"mismatch": "amount"}, None),
        (PENDING | {"status": "completed"}, None),
    ],
)
def test_next_step_of_a_payment(row: dict[str, Any], expected: str | None) -> None:
    assert next_step(row, NOW) == expected  # type: ignore[arg-type]  # a row is a mapping
