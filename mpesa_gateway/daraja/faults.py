"""Daraja's faults: meaning, whether the request was executed, and whether a retry is safe."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

FaultReason = Literal["duplicate_in_progress", "rejected_by_provider", "other"]


class Delivered(StrEnum):
    """Execution state of a request that received a fault."""

    NO = "no"
    UNKNOWN = "unknown"
    EARLIER = "earlier"
    """An earlier, equal request was executed."""


class Retry(StrEnum):
    """The reaction to a fault."""

    FIX = "fix"
    NEW_TOKEN = "new_token"  # noqa: S105 - a word, not a token
    BACK_OFF = "back_off"
    AFTER_A_MINUTE = "after_a_minute"
    PENDING = "pending"
    ASK = "ask"
    NEVER = "never"


@dataclass(frozen=True)
class FaultMeaning:
    """The meaning of a fault and the advice."""

    code: str
    meaning: str
    mitigation: str
    sent: Delivered
    retry: Retry
    failure_reason: FaultReason = "rejected_by_provider"


@dataclass(frozen=True)
class _Row:
    """Faults of one meaning; an empty condition matches every fault.

    ``families`` are lower-case prefixes of codes. One of ``words`` and all of ``all_words`` must be in the lower-case
    message.
    """

    meaning: str
    mitigation: str
    sent: Delivered
    retry: Retry
    codes: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    all_words: tuple[str, ...] = ()
    failure_reason: FaultReason = "rejected_by_provider"

    def matches(self, status: int, code: str, text: str) -> bool:
        return (
            (not self.codes or code in self.codes)
            and (not self.families or code.lower().startswith(self.families))
            and (not self.statuses or status in self.statuses)
            and (not self.words or any(word in text for word in self.words))
            and all(word in text for word in self.all_words)
        )

    def of(self, code: str) -> FaultMeaning:
        return FaultMeaning(code, self.meaning, self.mitigation, self.sent, self.retry, self.failure_reason)


_SPIKE = ("spike arrest", "spikearrest", "quota violation")
_RETRY_SLOWER = "try again in a few seconds, more slowly"
_PROXY = ("keymanagement.service.", "oauth.v2.", "steps.oauth.v2.")
"""Code prefixes of the API proxy for token faults."""

_PRODUCT = "add the product to the app on Safaricom's developer portal, or use the app that has it"
_QUERIED = "its result is queried"
_FIELDS = (
    *("amount", "phonenumber", "partya", "partyb", "shortcode", "accountreference", "transactiondesc"),
    *("transactiontype", "callbackurl", "resulturl", "queuetimeouturl", "timestamp", "password", "initiator"),
    *("securitycredential", "receiverparty", "transactionid", "identifiertype", "commandid", "remarks", "occasion"),
)
"""Daraja's request fields as in its messages, in lower case."""
_NAMED_FIELD = "correct the field that M-Pesa's message names"
_UNNAMED_FIELD = "M-Pesa's message names no field: check phone, amount and reference, and the shortcode's credentials"
_STK = "500.001.1001"
_MANY = "500.002.1001"
_BUSY = "500.003.02"

_TABLE: tuple[_Row, ...] = (
    # Rejected by the API proxy.
    _Row("too many requests", _RETRY_SLOWER, Delivered.NO, Retry.BACK_OFF, statuses=(429,)),
    _Row("spike arrest or quota", _RETRY_SLOWER, Delivered.NO, Retry.BACK_OFF, families=("policies.ratelimit.",)),
    _Row("too many requests", _RETRY_SLOWER, Delivered.NO, Retry.BACK_OFF, codes=("429.001.01",)),
    _Row("spike arrest: too many requests", _RETRY_SLOWER, Delivered.NO, Retry.BACK_OFF, words=_SPIKE),
    # A missing product looks like an invalid token, and older tokens stay invalid for an hour.
    _Row(
        "the app lacks the product for this call",
        _PRODUCT,
        Delivered.NO,
        Retry.NEW_TOKEN,
        words=("apiproduct match", "api product match"),
    ),
    _Row(
        "the access token is not valid",
        "a new token is fetched and the call repeated",
        Delivered.NO,
        Retry.NEW_TOKEN,
        words=("invalid access token", "invalid_access_token", "access token expired", "expired access token"),
    ),
    _Row(
        "the access token is not valid",
        "a new token is fetched and the call repeated",
        Delivered.NO,
        Retry.NEW_TOKEN,
        codes=("400.003.01", "401.001", "401.002.01", "401.003.01", "404.001.03"),
    ),
    _Row(
        "the access token is not valid",
        "a new token is fetched and the call repeated",
        Delivered.NO,
        Retry.NEW_TOKEN,
        families=_PROXY,
    ),
    # Rejected by Daraja.
    _Row(
        "wrong authentication type",
        "the gateway must use HTTP Basic: report this as a bug",
        Delivered.NO,
        Retry.FIX,
        codes=("400.008.01",),
    ),
    _Row(
        "wrong grant type",
        "the gateway must ask for client_credentials: report this as a bug",
        Delivered.NO,
        Retry.FIX,
        codes=("400.008.02",),
    ),
    _Row("a field is not valid", _NAMED_FIELD, Delivered.NO, Retry.FIX, codes=("400.002.02",), words=_FIELDS),
    _Row("a field is not valid", _UNNAMED_FIELD, Delivered.NO, Retry.FIX, codes=("400.002.02",)),
    _Row(
        "the request's payload is not valid",
        "check the fields against M-Pesa's message",
        Delivered.NO,
        Retry.FIX,
        codes=("400.002.05",),
    ),
    _Row(
        "bad request",
        "use your own shortcode with its own passkey and consumer key",
        Delivered.NO,
        Retry.FIX,
        codes=("400.003.02",),
    ),
    _Row(
        "the authorisation header is not valid",
        "check consumer_key and consumer_secret",
        Delivered.NO,
        Retry.FIX,
        codes=("404.001.04",),
    ),
    _Row(
        "there is no such resource",
        "check that the app on Safaricom's portal has this API",
        Delivered.NO,
        Retry.FIX,
        codes=("404.001.01", "404.002.01", "404.003.01"),
    ),
    _Row(
        "this call is not allowed",
        "check that the app has the product in this version, and that Safaricom allows calls from this gateway's "
        "outgoing address",
        Delivered.NO,
        Retry.FIX,
        codes=("403.002.1001",),
    ),
    _Row(
        "the method is not allowed",
        "check the base URL in the configuration",
        Delivered.NO,
        Retry.FIX,
        codes=("405.001",),
    ),
    # Codes with several meanings: the message decides.
    _Row(
        "the payer's line is busy with another prompt",
        "try again after a minute",
        Delivered.NO,
        Retry.AFTER_A_MINUTE,
        codes=(_STK,),
        words=("lock subscriber",),
        failure_reason="duplicate_in_progress",
    ),
    _Row(
        "the number is not a live Safaricom line",
        "ask the payer for another number",
        Delivered.NO,
        Retry.FIX,
        codes=(_STK,),
        words=("no iccid",),
    ),
    _Row(
        "still pending",
        "query again",
        Delivered.UNKNOWN,
        Retry.PENDING,
        codes=(_STK,),
        words=("being processed", "under processing"),
        failure_reason="other",
    ),
    _Row(
        "shortcode, passkey and timestamp do not fit together",
        "check shortcode and passkey",
        Delivered.NO,
        Retry.FIX,
        codes=(_STK,),
        words=("wrong credential", "invalid credential", "incorrect credential"),
    ),
    _Row(
        "the shortcode is not known",
        "check shortcode; ask Safaricom to enable STK push for it",
        Delivered.NO,
        Retry.FIX,
        codes=(_STK,),
        words=("not exist", "not found", "unknown", "invalid"),
        all_words=("merchant",),
    ),
    # Seen for live pushes about 20 seconds old, so it proves nothing.
    _Row(
        "M-Pesa does not know the request (yet)",
        "query again",
        Delivered.UNKNOWN,
        Retry.PENDING,
        codes=(_STK,),
        words=("not exist",),
        failure_reason="other",
    ),
    _Row(
        "M-Pesa's answer does not state the outcome of the request",
        _QUERIED,
        Delivered.UNKNOWN,
        Retry.ASK,
        codes=(_STK,),
        failure_reason="other",
    ),
    _Row(
        "the same OriginatorConversationID was used before",
        "the earlier request counts: query its status",
        Delivered.EARLIER,
        Retry.NEVER,
        codes=(_MANY,),
        words=("duplicate",),
    ),
    _Row(
        "M-Pesa is under maintenance",
        "try again in a few minutes",
        Delivered.NO,
        Retry.BACK_OFF,
        codes=(_MANY, "00.002.1001"),
        words=("maintenance", "maintainance", "maintanance"),
    ),
    _Row(
        "M-Pesa is under maintenance",
        "try again in a few minutes",
        Delivered.NO,
        Retry.BACK_OFF,
        codes=("00.002.1001",),
    ),
    _Row("internal error at M-Pesa", _QUERIED, Delivered.UNKNOWN, Retry.ASK, codes=(_MANY,), failure_reason="other"),
    _Row(
        "too many requests",
        _RETRY_SLOWER,
        Delivered.NO,
        Retry.BACK_OFF,
        codes=(_BUSY,),
        words=("too many", "rate limit", "throttl"),
    ),
    _Row("M-Pesa is busy", _QUERIED, Delivered.UNKNOWN, Retry.ASK, codes=(_BUSY,), failure_reason="other"),
    _Row(
        "the quota is used up",
        "ask Safaricom for a higher quota; try again later",
        Delivered.NO,
        Retry.BACK_OFF,
        codes=("500.003.03",),
    ),
    _Row(
        "internal error at M-Pesa",
        "the outcome is unknown: its result is queried",
        Delivered.UNKNOWN,
        Retry.ASK,
        codes=("500.003.1001",),
        failure_reason="other",
    ),
)
"""From the specification, Safaricom's portal and integrations. The first match applies."""

KNOWN_FAULTS = frozenset(code for row in _TABLE for code in row.codes)

_REFUSED = re.compile(r"4(?!08|09|25|29)[0-9]{2}(?:\.[0-9]+)*\Z", re.ASCII)
"""Rejections before execution; conflicts and timeouts are excluded."""

_TOKEN_CODE = re.compile(r"401(?:\.[0-9]+)*\Z", re.ASCII)


def read_fault(http_status: int, code: str | None, message: str | None) -> FaultMeaning:
    """Return the meaning of a fault from the table, or from its class.

    Outside the table, only a 4xx status with an error code of the same class proves that nothing was executed.
    """
    known, text = (code or "").strip(), (message or "").lower()
    for row in _TABLE:
        if row.matches(http_status, known, text):
            return row.of(known or f"http_{http_status}")
    if 400 <= http_status < 500 and _TOKEN_CODE.match(known):
        return FaultMeaning(
            known,
            "the access token is not valid",
            "a new token is fetched and the call repeated",
            Delivered.NO,
            Retry.NEW_TOKEN,
        )
    if 400 <= http_status < 500 and _REFUSED.match(known):
        return FaultMeaning(known, "M-Pesa refused the request", "see the provider's message", Delivered.NO, Retry.FIX)
    return FaultMeaning(
        known or f"http_{http_status}",
        "M-Pesa's answer does not state the outcome of the request",
        _QUERIED,
        Delivered.UNKNOWN,
        Retry.ASK,
        "other",
    )


def known_faults() -> Iterator[tuple[FaultMeaning, str]]:
    """Yield each row with the required message text, for the documentation."""
    for row in _TABLE:
        words = " or ".join(f"“{word}”" for word in (*row.words, *row.all_words))
        for name in row.codes or row.families or ("any",):
            yield row.of(f"{name}*" if name in row.families else name), words


_RESPONSES: dict[str, tuple[Delivered, Retry, str]] = {
    "15": (Delivered.EARLIER, Retry.NEVER, "M-Pesa received this request before"),
    "26": (Delivered.UNKNOWN, Retry.ASK, "M-Pesa is busy"),
    "100000000": (Delivered.UNKNOWN, Retry.ASK, "M-Pesa queued the request and may still execute it"),
    "100000001": (Delivered.UNKNOWN, Retry.ASK, "M-Pesa is overloaded"),
    "100000002": (Delivered.NO, Retry.BACK_OFF, "M-Pesa throttles requests"),
    "100000011": (Delivered.NO, Retry.BACK_OFF, "M-Pesa throttles requests"),
}
"""Response codes of M-Pesa's older layer that are not final rejections."""

_REFUSAL = (Delivered.NO, Retry.FIX, "M-Pesa did not accept the request")
_UNKNOWN_RESPONSE = (Delivered.UNKNOWN, Retry.ASK, "M-Pesa had an internal error")


_SYSTEM = re.compile(r"1000[0-9]{5}\Z", re.ASCII)
"""M-Pesa's internal errors: an unknown one proves nothing."""

_DOTTED = re.compile(r"[0-9]{2,3}\.[0-9]", re.ASCII)


def read_response(code: str, message: str) -> FaultMeaning:
    """Return the meaning of a non-zero ResponseCode: a rejection, unless code or text differ."""
    if _DOTTED.match(code):
        # Daraja may send an error code as ResponseCode.
        return read_fault(int(code.partition(".")[0]), code, message)
    text = message.lower()
    for row in _TABLE:
        if not row.codes and not row.families and not row.statuses and row.matches(200, code, text):
            return row.of(code)
    if "waiting for resending" in text:
        sent, retry, meaning = _RESPONSES["100000000"]
    else:
        sent, retry, meaning = _RESPONSES.get(code, _UNKNOWN_RESPONSE if _SYSTEM.match(code) else _REFUSAL)
    advice = {Retry.FIX: "see the provider's message", Retry.BACK_OFF: _RETRY_SLOWER}.get(retry, _QUERIED)
    return FaultMeaning(code, meaning, advice, sent, retry)
