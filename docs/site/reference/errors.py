"""Errors: each code with its statuses and what to do, then M-Pesa's own codes as this gateway reads them."""

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
"""What no class of ours refuses: the router does."""


def page() -> str:
    """The whole page."""
    return document(
        "# Errors",
        NOTE,
        "A refused call is answered with one entry of `errors` for each thing that is wrong: its `code`, a `message` "
        "that says what to do, the `field` where there is one, and `retryable` where the same call may succeed later. "
        "The codes are a closed list; a program decides by them and never by the message.",
        table(["code", "HTTP", "what to do"], _rows()),
        "## Each of them",
        *(_code(each) for each in Code),
        "## What M-Pesa said",
        "A payment's `result_code` is M-Pesa's own. These are known; a callback with any other fails the payment for "
        "reason `other`, with M-Pesa's text in `result_desc`. *Final* says whether a failure is M-Pesa's last word: "
        "after one that is not, money can still arrive.",
        "### Payments",
        table(
            ["result_code", "means", "`failure_reason`", "what to do", "final"],
            (
                (code(each), row.meaning, code(row.failure_reason), row.advice, "yes" if row.is_final else "no")
                for each, row in STK_RESULTS.items()
            ),
        ),
        "### Refunds",
        "A refund with any other code stays pending until a person has looked at it: an unknown code does not prove "
        "that no money went back.",
        table(
            ["result_code", "means", "`outcome`", "what to do"],
            (
                (code(each), row.meaning, code(row.word), row.advice or "nothing")
                for each, row in REVERSAL_RESULTS.items()
            ),
        ),
        "### Faults",
        "What Daraja answers instead of taking a request, as `provider` shows it. *Sent* says whether the request was "
        "carried out all the same; where that is unknown it is never repeated by itself.",
        table(["errorCode", "message", "means", "sent", "what to do"], _faults()),
    )


def _classes(kind: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _classes(each)


def _said(each: Code) -> list[tuple[int, str]]:
    """The statuses that a code comes with, and when."""
    found = [
        (kind.status, prose(kind.__doc__).partition("\n\n")[0])
        for kind in _classes()
        if kind.code is each and kind not in {ClientDisconnected, CallbackRejected}
        # What only an operator's browser meets is said on the page that it shows.
        if not kind.__module__.startswith("mpesa_gateway_ops")
    ]
    return sorted(set(found)) + _ELSEWHERE.get(each, [])


def _rows() -> Iterator[tuple[str, str, str]]:
    for each in Code:
        statuses = ", ".join(dict.fromkeys(str(status) for status, _ in _said(each)))
        yield f"[`{each.value}`](#{each.value.lower()})", statuses, NEXT_STEPS[each]


def _code(each: Code) -> str:
    lines = "\n".join(f"- {status}: {text}" for status, text in _said(each))
    return document(f"### {each.value}", sentence(NEXT_STEPS[each]), lines)


def _faults() -> Iterator[tuple[str, str, str, str, str]]:
    for fault, message in known_faults():
        yield code(fault.code), message, fault.meaning, fault.sent.value, fault.mitigation
