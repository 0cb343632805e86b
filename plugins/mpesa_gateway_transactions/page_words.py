"""Words of the operators' pages for kinds and sources of money; the API's words are the keys."""

from collections.abc import Mapping

KINDS: Mapping[str, str] = {
    "stk": "prompt",
    "c2b": "paid unprompted",
    "reversal": "reversal",
    "b2c": "paid to a phone",
    "b2b": "paid to a till or paybill",
    "fee": "fee",
    "other": "other",
}

SOURCES: Mapping[str, str] = {
    "stk": "callback of the prompt",
    "c2b": "C2B confirmation",
    "pull": "M-Pesa's statement",
    "status": "answer to a status query",
    "reversal": "result of the reversal",
}
"""Reports of M-Pesa."""
