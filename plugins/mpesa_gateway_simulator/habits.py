"""How pushes, status queries, reversals and Pull misbehave when they are told to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Habit = Literal[
    "normal",
    "never",
    "twice",
    "before_ack",
    "late",
    "timeout",
    "single_parameter",
    "text_code",
    "ack_lost",
    "internal_error",
    "intermediate_first",
    "intermediate_last",
    "refuses_part",
    "several_lists",
    "no_response_field",
    "http_500_when_empty",
    "text",
    "malformed_row",
    "partial_msisdn",
    "no_zone",
    "z_meaning_eat",
    "html_200",
    "cents",
    "amount_number",
]
"""The habits of all operations but pushes, whose are the phones' (outcomes.py); from ``several_lists`` on they are
Pull's, those before are for results."""

PULL_HABITS: frozenset[str] = frozenset(
    {"normal", "internal_error", *get_args(Habit)[get_args(Habit).index("several_lists") :]}
)


def _once(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [result]


def _single_parameter(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Only the parameter that decides, as an object where a list is usual."""
    named = {entry["Key"]: entry for entry in result["ResultParameters"]["ResultParameter"]}
    kept = named.get("TransactionStatus") or named.get("OriginalTransactionID")
    return [result | {"ResultParameters": {"ResultParameter": kept}}]


def _intermediate_first(result: dict[str, Any]) -> list[dict[str, Any]]:
    early = dict(result, ResultType=1, ResultParameters={})
    return [early, result]


def _intermediate_last(result: dict[str, Any]) -> list[dict[str, Any]]:
    return _intermediate_first(result)[::-1]


@dataclass(frozen=True)
class Plan:
    """What becomes of a result: its bodies, and when and where they are sent."""

    bodies: Callable[[dict[str, Any]], list[dict[str, Any]]] = _once
    is_before_ack: bool = False
    is_late: bool = False
    is_timeout: bool = False
    is_ack_lost: bool = False


RESULT_HABITS: dict[str, Plan] = {
    "normal": Plan(),
    "never": Plan(bodies=lambda _: []),
    "twice": Plan(bodies=lambda result: [result, result]),
    "before_ack": Plan(is_before_ack=True),
    "late": Plan(is_late=True),
    "timeout": Plan(is_timeout=True, bodies=lambda result: [result | {"ResultParameters": {}}]),
    "single_parameter": Plan(bodies=_single_parameter),
    "text_code": Plan(bodies=lambda result: [result | {"ResultCode": str(result["ResultCode"])}]),
    "ack_lost": Plan(is_ack_lost=True),
    "intermediate_first": Plan(bodies=_intermediate_first),
    "intermediate_last": Plan(bodies=_intermediate_last),
}
"""The habits of status queries and reversals; ``internal_error`` refuses the request itself."""

STATUS_HABITS: frozenset[str] = frozenset({*RESULT_HABITS, "internal_error"})
REVERSAL_HABITS: frozenset[str] = STATUS_HABITS | {"refuses_part"}
"""Those of reversals: Safaricom may refuse to send back a part."""
