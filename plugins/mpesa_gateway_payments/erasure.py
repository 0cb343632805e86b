"""Erasure of a payer's phone number from payments that have ended; amounts stay."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpesa_gateway.db import idempotency
from mpesa_gateway.erasure import ERASED, ErasedNumber, ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments import erasure_sql
from mpesa_gateway_payments.operator_service import needs_review
from mpesa_gateway_payments.states import Status
from mpesa_gateway_payments.tables import PaymentRow, PaymentStepRow, StatusCheckRow

_PAGE = 100

_TEXTS = ("reference", "description", "result_desc", "callback_url", "checkout_request_id")
"""Other columns that may contain the number."""

_TEXTS_OF_CHECK = ("result_desc", "reference", "asked_for", "review_note")
_NAMES_OF_CHECK = ("check_id", "payment_id", "originator_conversation_id", "conversation_id")


async def _find(gateway: Runtime, merchant_id: str, number: ErasedNumber, after: str) -> Sequence[str]:
    rows = await gateway.db.fetch(
        erasure_sql.FIND_OF_PAYER, merchant_id, str(number.phone), list(number.forms), after, _PAGE
    )
    return [row["payment_id"] for row in rows]


async def _widen(gateway: Runtime, case: ErasureCase) -> set[str]:
    """Locks the payment and its status queries; returns all their ids."""
    rows = await gateway.db.fetch(erasure_sql.LOCK_OF_CASE, case.named)
    checks = await gateway.db.fetch(erasure_sql.CHECKS_OF_CASE, case.named, case.merchant_id)
    named = [row["checkout_request_id"] for row in rows]
    for check in checks:
        named += [check[name] for name in _NAMES_OF_CHECK]
    return {name for name in named if name}


async def _objects(gateway: Runtime, case: ErasureCase) -> str | None:
    for row in await gateway.db.fetch(erasure_sql.LOCK_OF_CASE, case.named):
        if row["status"] == Status.PENDING.value:
            return "the payment is pending"
        if needs_review(row):
            return "a mismatch of the payment needs review"
        if row["claim"] is not None or row["due_at"] is not None:
            return "a status query about the payment is due"
        if row["refund_reserved"] > 0:
            return "a refund is under way"
        if row["updated_at"] >= case.before:
            return f"the payment changed on {row['updated_at']:%Y-%m-%d}, which is too recent"
    return None


async def _erase(gateway: Runtime, case: ErasureCase) -> Mapping[str, int]:
    without = case.number.without
    payments = 0
    for row in await gateway.db.fetch(erasure_sql.LOCK_OF_CASE, case.named):
        is_payers = row["phone"] == case.number.phone
        cleaned: dict[Any, Any] = {name: row[name] and without(row[name]) for name in _TEXTS} | {
            "phone": ERASED if is_payers else row["phone"],
            "erased_at": gateway.clock.now() if is_payers else row["erased_at"],
            "received_phone": None if case.number.is_in(row["received_phone"]) else row["received_phone"],
            "metadata": case.number.without_in_json(row["metadata"]),
        }
        if any(cleaned[name] != row[name] for name in cleaned):
            await gateway.db.run(PaymentRow.update(cleaned).where(PaymentRow.payment_id == row["payment_id"]))
            # The fingerprint would reveal the number to a search over all numbers.
            await idempotency.delete_key(
                gateway.db, merchant_id=row["merchant_id"], env=row["env"], key=row["idempotency_key"]
            )
            payments += 1
    for step in await gateway.db.fetch(erasure_sql.STEPS_OF_CASE, case.named):
        if case.number.is_in(step["detail"]):
            await gateway.db.run(
                PaymentStepRow.update({PaymentStepRow.detail: without(step["detail"])}).where(
                    PaymentStepRow.payment_id == step["payment_id"], PaymentStepRow.number == step["number"]
                )
            )
    for check in await gateway.db.fetch(erasure_sql.CHECKS_OF_CASE, case.named, case.merchant_id):
        if any(case.number.is_in(check[name]) for name in _TEXTS_OF_CHECK):
            texts: dict[Any, Any] = {name: check[name] and without(check[name]) for name in _TEXTS_OF_CHECK}
            await gateway.db.run(StatusCheckRow.update(texts).where(StatusCheckRow.check_id == check["check_id"]))
    return {"payments": payments}


async def _keeps(gateway: Runtime, case: ErasureCase) -> Sequence[str]:
    rows = await gateway.db.fetch(erasure_sql.LOCK_OF_CASE, case.named)
    return [
        "the merchant's Idempotency-Key contains the number; it is kept, or it could create a second payment"
        for row in rows
        if case.number.is_in(row["idempotency_key"])
    ]


PAYMENTS = Eraser(find=_find, widen=_widen, objects=_objects, erase=_erase, keeps=_keeps)
