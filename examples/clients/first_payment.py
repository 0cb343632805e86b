"""A payment from start to end with a Python client generated from the OpenAPI document: docs/clients.md.

``GATEWAY`` is the address of the gateway, ``KEY`` an API key. Run it with the simulator or in the sandbox.
"""

import os
import time
import uuid
from typing import TypeVar

from mpesa_gateway_client import AuthenticatedClient
from mpesa_gateway_client.api.merchant import set_webhook
from mpesa_gateway_client.api.payments import create_payment, get_payment, list_payments
from mpesa_gateway_client.api.refunds import create_refund, get_refund
from mpesa_gateway_client.models import (
    CreatePayment,
    CreateRefund,
    ErrorCode,
    Failure,
    PaymentStatus,
    PaymentWithTimeline,
    RefundStatus,
    SetWebhook,
)

T = TypeVar("T")

PATIENCE = 60
"""Seconds for a payer to type their PIN."""


class Refused(Exception):
    """The gateway rejected a request; the message has the reason."""

    def __init__(self, failure: Failure) -> None:
        super().__init__("; ".join(f"{problem.code}: {problem.message}" for problem in failure.errors))
        self.failure = failure


def expect(truth: bool, what: object) -> None:
    """Raise RuntimeError if the condition is false."""
    if not truth:
        raise RuntimeError(what)


def good(answer: T | Failure | None) -> T:
    """Return a successful answer. Raises Refused for any other."""
    if isinstance(answer, Failure):
        raise Refused(answer)
    if answer is None:
        raise RuntimeError("an answer that the document does not contain")
    return answer


def pay(client: AuthenticatedClient, phone: str, amount: int) -> PaymentWithTimeline:
    """Create a payment and wait until it is completed."""
    key = f"order-{uuid.uuid4()}"
    body = CreatePayment(amount=amount, phone=phone, reference="order 1041")
    payment = good(create_payment.sync(client=client, idempotency_key=key, body=body)).data
    again = good(create_payment.sync(client=client, idempotency_key=key, body=body)).data
    expect(again.id == payment.id, "the same key returns the same payment")
    for _ in range(PATIENCE):
        found = good(get_payment.sync(payment.id, client=client)).data
        if found.status is not PaymentStatus.PENDING:
            expect(found.status is PaymentStatus.COMPLETED, found.failure_reason)
            print(f"{found.id}: {found.amount} {found.currency}, receipt {found.receipt}")
            return found
        time.sleep(1)
    raise TimeoutError(f"{payment.id} is still pending")


def completed(client: AuthenticatedClient) -> list[str]:
    """Return the ids of all completed payments, page by page."""
    ids: list[str] = []
    page = good(list_payments.sync(client=client, status=PaymentStatus.COMPLETED, limit=1))
    ids += [payment.id for payment in page.data]
    while page.meta.next_cursor is not None:
        cursor = page.meta.next_cursor
        page = good(list_payments.sync(client=client, status=PaymentStatus.COMPLETED, limit=1, cursor=cursor))
        ids += [payment.id for payment in page.data]
    return ids


def refund(client: AuthenticatedClient, payment_id: str) -> None:
    """Refund a whole payment and wait for the result."""
    body = CreateRefund(payment_id=payment_id, reason="ordered twice")
    created = good(create_refund.sync(client=client, idempotency_key=f"refund-{payment_id}", body=body)).data
    for _ in range(PATIENCE):
        found = good(get_refund.sync(created.id, client=client)).data
        if found.status is not RefundStatus.PENDING:
            expect(found.status is RefundStatus.COMPLETED, found.advice)
            print(f"{found.id}: {found.amount} {found.currency} refunded")
            return
        time.sleep(1)
    raise TimeoutError(f"{created.id} is still pending")


def main() -> None:
    """Run all steps."""
    with AuthenticatedClient(
        base_url=os.environ["GATEWAY"], token=os.environ["KEY"], prefix="", auth_header_name="X-API-Key"
    ) as client:
        endpoint = SetWebhook(webhook_url=os.environ.get("WEBHOOK_URL", "http://127.0.0.1:8080/mpesa"))
        print(f"webhooks are sent to {good(set_webhook.sync(client=client, body=endpoint)).data.webhook_url}")
        first, second = pay(client, "254711000001", 500), pay(client, "254711000002", 250)
        newest, older = completed(client)[:2]
        expect((newest, older) == (second.id, first.id), "the list has the newest first")
        refund(client, first.id)
        try:
            good(
                create_payment.sync(
                    client=client, idempotency_key="bad-phone", body=CreatePayment(amount=1, phone="12345")
                )
            )
        except Refused as problem:
            (bad,) = problem.failure.errors
            expect(bad.code is ErrorCode.VALIDATION_ERROR and bad.field == "phone", problem)
            print(f"rejected as expected: {bad.field} {bad.message} ({problem.failure.request_id})")
        else:
            raise RuntimeError("a number that is none was taken")


if __name__ == "__main__":
    main()
