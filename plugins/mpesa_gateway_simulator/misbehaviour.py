"""The habits of each operation. Habits of phones are in outcomes.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RESULT_DELIVERIES: tuple[str, ...] = (
    *("never", "twice", "before_ack", "late", "timeout", "empty_timeout", "single_parameter", "parameters_list"),
    *("text_code", "float_code", "ack_lost", "ack_code_zeros", "internal_error", "intermediate_first"),
    "intermediate_last",
)
STATUS_HABITS: frozenset[str] = frozenset({"normal", *RESULT_DELIVERIES, "no_parties", "hidden_payer"})
"""Habits of status queries; ``internal_error`` refuses the request itself."""

REVERSAL_HABITS: frozenset[str] = frozenset({"normal", *RESULT_DELIVERIES, "refuses_part", "code_15", "code_100000100"})
"""Habits of reversals: Safaricom may refuse a partial one, or return an unknown code for a successful one."""

PULL_HABITS: frozenset[str] = frozenset(
    {
        *("normal", "internal_error", "several_lists", "malformed_row", "partial_msisdn", "no_zone", "z_meaning_eat"),
        *(
            "html_200",
            "cents",
            "amount_number",
            "amount_float",
            "amount_exponent",
            "code_zero",
            "latin1_row",
            "endless",
        ),
        *("no_type", "no_response_field", "http_500_when_empty", "words_500_when_empty", "404_when_empty", "text"),
    }
)

C2B_REGISTER_HABITS: frozenset[str] = frozenset(
    {
        *("normal", "only_v1", "only_v2", "code_zeros", "already_registered", "already_without_code"),
        *("held_by_broker", "ack_lost", "internal_error"),
    }
)
"""``already_…`` refuses a second registration, as Daraja does for live shortcodes."""

C2B_SIMULATE_HABITS: frozenset[str] = frozenset({"normal", "forgets_registration"})

QR_HABITS: frozenset[str] = frozenset(
    {"normal", "code_00", "no_image", "not_base64", "not_png", "cut_off", "flipped_bit", "other_size", "internal_error"}
)
"""``code_00`` is the form of Safaricom's sandbox."""

OAUTH_HABITS: frozenset[str] = frozenset(
    {"normal", "expires_huge", "expires_number", "expires_float", "expires_absent", "expires_text", "token_line_break"}
)

ACK_HABITS: frozenset[str] = frozenset(
    {"normal", "no_merchant_request_id", "code_float", "code_zeros", "code_number", "extra_fields"}
)

QUERY_HABITS: frozenset[str] = frozenset(
    {"normal", "unknown_code", "code_9999", "other_handle", "processing_200", "does_not_exist", "code_number"}
)
"""Habits of STK queries: undocumented codes, and an answer about another push."""

CALLBACK_HABITS: frozenset[str] = frozenset(
    {"normal", "latin1", "raw_tab", "lone_surrogate", "bom", "float_code", "float_numbers", "exponent_amount"}
)
"""Habits of posted bodies, STK callbacks and results alike."""

EXPIRES: dict[str, Any] = {
    "expires_huge": "99999999999999999999",
    "expires_number": 3599,
    "expires_float": 3599.0,
    "expires_text": "soon",
}
"""``expires_in`` by habit."""


def _once(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [result]


def _single_parameter(result: dict[str, Any]) -> list[dict[str, Any]]:
    if "ResultParameters" not in result:
        return [result]
    named = {entry["Key"]: entry for entry in result["ResultParameters"]["ResultParameter"]}
    kept = named.get("TransactionStatus") or named.get("OriginalTransactionID")
    return [result | {"ResultParameters": {"ResultParameter": kept}}]


def _parameters_list(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [result | {"ResultParameters": result.get("ResultParameters", {}).get("ResultParameter", [])}]


def _intermediate_first(result: dict[str, Any]) -> list[dict[str, Any]]:
    early = dict(result, ResultType=1, ResultParameters={})
    return [early, result]


def _intermediate_last(result: dict[str, Any]) -> list[dict[str, Any]]:
    return _intermediate_first(result)[::-1]


def _with_code(code: Any) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    return lambda result: [result | {"ResultCode": code, "ResultDesc": "Failed", "ResultParameters": {}}]


@dataclass(frozen=True)
class ResultPlan:
    """The bodies of a result, their time and their address."""

    bodies: Callable[[dict[str, Any]], list[dict[str, Any]]] = _once
    is_before_ack: bool = False
    is_late: bool = False
    is_timeout: bool = False
    is_empty: bool = False
    is_ack_lost: bool = False
    ack_code: str = "0"


RESULT_PLANS: dict[str, ResultPlan] = {
    "never": ResultPlan(bodies=lambda _: []),
    "twice": ResultPlan(bodies=lambda result: [result, result]),
    "before_ack": ResultPlan(is_before_ack=True),
    "late": ResultPlan(is_late=True),
    "timeout": ResultPlan(is_timeout=True, bodies=lambda result: [result | {"ResultParameters": {}}]),
    "empty_timeout": ResultPlan(is_timeout=True, is_empty=True),
    "single_parameter": ResultPlan(bodies=_single_parameter),
    "parameters_list": ResultPlan(bodies=_parameters_list),
    "text_code": ResultPlan(bodies=lambda result: [result | {"ResultCode": str(result["ResultCode"])}]),
    "float_code": ResultPlan(
        bodies=lambda result: [
            result | {"ResultCode": float(code) if isinstance(code := result["ResultCode"], int) else code}
        ]
    ),
    "ack_lost": ResultPlan(is_ack_lost=True),
    "ack_code_zeros": ResultPlan(ack_code="00000000"),
    "intermediate_first": ResultPlan(bodies=_intermediate_first),
    "intermediate_last": ResultPlan(bodies=_intermediate_last),
    "code_15": ResultPlan(bodies=_with_code(15)),
    "code_100000100": ResultPlan(bodies=_with_code(100000100)),
}
"""Plans by habit of status queries and reversals; other habits send the result once."""


def written(text: str, habit: str) -> tuple[str, str]:
    words = '"ResultDesc":"'
    if habit == "latin1":
        return text.replace(words, words + "Ma\u00dfnahme ", 1), "latin-1"
    if habit == "raw_tab":
        return text.replace(words, words + "a\tb ", 1), "utf-8"
    if habit == "lone_surrogate":
        return text.replace(words, words + "\\ud83d ", 1), "utf-8"
    return text, "utf-8-sig" if habit == "bom" else "utf-8"
