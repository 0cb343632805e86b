"""Correct rejections of input that the OpenAPI document allows, each with a reason that no schema can express.

There are no other exclusions. An entry applies to its calls, code and fields, and a run reports how often it was
needed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_INDEX = re.compile(r"\[[0-9]+\]")


@dataclass(frozen=True)
class Beyond:
    """A 400 or 422 of these calls, with this code, for one of these fields (None for no field)."""

    why: str
    calls: frozenset[str]
    fields: frozenset[str | None]
    code: str = "VALIDATION_ERROR"


BEYOND: tuple[Beyond, ...] = (
    Beyond(
        "a cursor is a position in a list, which only the previous page contains",
        frozenset(
            {
                "GET /v1/account-numbers",
                "GET /v1/admin/merchants",
                "GET /v1/admin/callbacks",
                "GET /v1/admin/callbacks/refused",
                "GET /v1/audit/logs",
                "GET /v1/events",
                "GET /v1/merchant/shortcodes",
                "GET /v1/payments",
                "GET /v1/payments/mpesa/reconciliations",
                "GET /v1/payments/mpesa/reconciliations/{run_id}",
                "GET /v1/refunds",
                "GET /v1/transactions",
                "GET /v1/webhooks/logs",
            }
        ),
        frozenset({"cursor"}),
    ),
    Beyond(
        "confirm repeats the identifier in the path",
        frozenset(
            {
                "POST /v1/admin/merchants/{merchant_id}/deactivate",
                "POST /v1/admin/merchants/{merchant_id}/keys/{key_id}/revoke",
                "POST /v1/admin/refunds/{refund_id}/resolve",
            }
        ),
        frozenset({"confirm"}),
    ),
    Beyond(
        "a key ends in the future of the call",
        frozenset({"POST /v1/admin/merchants/{merchant_id}/keys"}),
        frozenset({"expires_at"}),
    ),
    Beyond(
        "a statement is read of the last 48 hours before the call, from its start to its end",
        frozenset({"POST /v1/payments/mpesa/reconcile"}),
        frozenset({"start", "end"}),
    ),
    Beyond(
        "the host of an address is this gateway's own, or one that its settings name",
        frozenset({"POST /v1/payments", "PUT /v1/merchant/providers"}),
        frozenset({"callback_url", "mpesa.result_url", "mpesa.timeout_url"}),
    ),
    Beyond(
        "credentials belong to the env of the calling API key",
        frozenset({"PUT /v1/merchant/providers"}),
        frozenset({"mpesa.env"}),
    ),
    Beyond(
        "a shortcode has the number of its path, the env of the key, and a till number if it is a till",
        frozenset({"POST /v1/merchant/shortcodes", "PUT /v1/merchant/shortcodes/{shortcode}"}),
        frozenset({"env", "kind", "result_url", "shortcode", "till_number", "timeout_url"}),
    ),
    Beyond(
        "an account number is printable after its blanks are removed, no amount is 0, and max is not less than min",
        frozenset({"POST /v1/account-numbers", "PUT /v1/account-numbers/{number}"}),
        frozenset(
            {
                "max",
                "min",
                "expected",
                "number",
                "account_numbers[0].max",
                "account_numbers[0].min",
                "account_numbers[0].expected",
                "account_numbers[0].number",
            }
        ),
    ),
    Beyond(
        "money is allocated to a payment, or its note states what it is for",
        frozenset({"POST /v1/transactions/{transaction_id}/allocate"}),
        frozenset({"note"}),
    ),
    Beyond(
        "a key is made by an admin key of the same environment",
        frozenset({"POST /v1/admin/merchants/{merchant_id}/keys"}),
        frozenset({"env"}),
    ),
    Beyond(
        "a shortcode is one of the merchant's",
        frozenset(
            {
                "POST /v1/payments",
                "POST /v1/payments/mpesa/check-status/{receipt}",
                "POST /v1/payments/mpesa/pull/register",
                "POST /v1/payments/mpesa/reconcile",
            }
        ),
        frozenset({"shortcode"}),
        "PROVIDER_NOT_CONFIGURED",
    ),
    Beyond(
        "a status check of a known receipt is at the shortcode of its payment",
        frozenset({"POST /v1/payments/mpesa/check-status/{receipt}"}),
        frozenset({"shortcode"}),
    ),
    Beyond(
        "a refund is of a payment or of a transaction: generators of clients cannot read a choice between fields",
        frozenset({"POST /v1/refunds"}),
        frozenset({"payment_id", "transaction_id"}),
    ),
    Beyond(
        "a refund of a part needs an Idempotency-Key, and one of the whole does not",
        frozenset({"POST /v1/refunds"}),
        frozenset({None}),
        "IDEMPOTENCY_KEY_REQUIRED",
    ),
    Beyond(
        "an Idempotency-Key goes with one body, and an earlier request had it with another",
        frozenset({"POST /v1/payments", "POST /v1/refunds"}),
        frozenset({None}),
        "IDEMPOTENCY_MISMATCH",
    ),
    Beyond(
        "what M-Pesa sends is M-Pesa's to describe: all of it is kept, and what can be understood is taken",
        frozenset(
            {
                "POST /v1/cb/{kind}/{token}",
                "POST /v1/webhooks/mpesa/{token}",
                "POST /v1/webhooks/mpesa/{subject}/{ending}/{token}",
            }
        ),
        frozenset({None}),
        "CALLBACK_REFUSED",
    ),
)


KEPT = "a body at an address with a valid token is kept, whatever it is (ADR 46)"

KEEPING = frozenset(
    {
        "POST /v1/cb/{kind}/{token}",
        "POST /v1/webhooks/mpesa/{token}",
        "POST /v1/webhooks/mpesa/{subject}/{ending}/{token}",
    }
)
"""Calls that accept a body which violates its schema, because it is kept."""


STAYS = "Safaricom alone deletes a C2B registration: the address stays, and its state says so (contract)"

STAYING = frozenset({"GET /v1/merchant/shortcodes/{shortcode}/c2b"})
"""Calls that find their object after its DELETE, which only says what people have to do."""


def beyond(call: str, problem: Mapping[str, Any]) -> Beyond | None:
    """Return the entry for one of the ``errors`` of an answer to this call (``POST /v1/payments``), or None."""
    field = problem.get("field")
    place = field if field is None else _INDEX.sub("[0]", field)
    for each in BEYOND:
        if call in each.calls and each.code == problem["code"] and place in each.fields:
            return each
    return None
