"""Errors: each code with its statuses and next step, then M-Pesa's own codes as this gateway classifies them."""

from collections.abc import Iterator

from docs.site.reference.words import NOTE, code, document, prose, sentence, table
from mpesa_gateway.daraja.faults import known_faults
from mpesa_gateway.errors import NEXT_STEPS, ApiError, ClientDisconnected, Code
from mpesa_gateway_callbacks.errors import CallbackRejected
from mpesa_gateway_payments.result_codes import STK_RESULTS
from mpesa_gateway_refunds.result_codes import REVERSAL_RESULTS

_ELSEWHERE = {
    Code.METHOD_NOT_ALLOWED: [(405, "This address does not take this method.")],
}
"""Errors that the router raises, without a class of ours."""


def page() -> str:
    """Return the page."""
    return document(
        "# Errors",
        NOTE,
        "The answer to a rejected call has one entry in `errors` for each error: its `code`, a `message` with the next "
        "step, the `field` if the error is about one, and `retryable` if the same call may succeed later. "
        "The codes are a closed list; programs use the code, never the message.",
        table(["code", "HTTP", "next step"], _rows()),
        "## Codes",
        *(_code(each) for each in Code),
        "## Results of M-Pesa",
        "A payment's `result_code` is M-Pesa's own. A callback with a code that is not listed fails the payment with "
        "reason `other` and M-Pesa's text in `result_desc`. After a failure that is not *final*, money can still "
        "arrive.",
        "### Payments",
        table(
            ["result_code", "meaning", "`failure_reason`", "next step", "final"],
            (
                (code(each), row.meaning, code(row.failure_reason), row.advice, "yes" if row.is_final else "no")
                for each, row in STK_RESULTS.items()
            ),
        ),
        "### Refunds",
        "A refund with any other code stays pending until an operator decides it: an unknown code does not prove "
        "that no money was reversed.",
        table(
            ["result_code", "meaning", "`outcome`", "next step"],
            (
                (code(each), row.meaning, code(row.word), row.advice or "nothing")
                for each, row in REVERSAL_RESULTS.items()
            ),
        ),
        "### Faults",
        "Daraja's answers to a rejected request, as in `provider`. The column *sent* shows whether the request had an "
        "effect; if that is unknown, the gateway never repeats it.",
        table(["errorCode", "message", "meaning", "sent", "next step"], _faults()),
    )


def _classes(kind: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _classes(each)


def _statuses(each: Code) -> list[tuple[int, str]]:
    """Return the statuses of a code, with their occasions."""
    found = [
        (kind.status, prose(kind.__doc__).partition("\n\n")[0])
        for kind in _classes()
        if kind.code is each and kind not in {ClientDisconnected, CallbackRejected}
        # Errors in an operator's browser are explained on the page itself.
        if not kind.__module__.startswith("mpesa_gateway_ops")
    ]
    return sorted(set(found)) + _ELSEWHERE.get(each, [])


def _rows() -> Iterator[tuple[str, str, str]]:
    for each in Code:
        statuses = ", ".join(dict.fromkeys(str(status) for status, _ in _statuses(each)))
        yield f"[`{each.value}`](#{each.value.lower()})", statuses, NEXT_STEPS[each]


def _code(each: Code) -> str:
    lines = "\n".join(f"- {status}: {text}" for status, text in _statuses(each))
    return document(f"### {each.value}", sentence(NEXT_STEPS[each]), lines)


def _faults() -> Iterator[tuple[str, str, str, str, str]]:
    for fault, message in known_faults():
        yield code(fault.code), message, fault.meaning, fault.sent.value, fault.mitigation
