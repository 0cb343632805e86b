"""Validates requests as strictly as Daraja, with Daraja's error texts."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mpesa_gateway.clock import EAT
from mpesa_gateway.phone import InvalidPhone, Msisdn

SANDBOX_SHORTCODE = "174379"
SANDBOX_PASSKEY = "bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919"
"""The shortcode and passkey that Safaricom publishes for its sandbox."""

_SHORTEST_CREDENTIAL = 64
"""Bytes: an RSA ciphertext is longer, a plain password shorter."""

_MOST_BITS = 128
"""The largest number, in bits: Python does not print integers of many thousand digits."""

MOST_PROMPT = 182
"""Characters of the longest prompt; longer ones end with result 1025."""

PHONE_PATTERN = re.compile(r"254[17][0-9]{8}\Z", re.ASCII)
SHORTCODE_PATTERN = re.compile(r"[0-9]{5,7}\Z", re.ASCII)
_MOMENT = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})[ T]([0-9]{1,2}):([0-9]{1,2})(?::([0-9]{1,3}))?\Z", re.ASCII)
_TYPES = frozenset({"CustomerPayBillOnline", "CustomerBuyGoodsOnline"})


class Fault(Exception):
    """An answer in Daraja's error format."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """A valid push. ``amount`` is in KES."""

    shortcode: str
    receiver: str
    amount: int
    phone: str
    callback_url: str
    reference: str
    description: str

    @property
    def prompt(self) -> str:
        question = f"Do you want to pay Ksh {self.amount:,}.00 to {self.receiver}, account no. {self.reference}?"
        return f"{question} {self.description}".rstrip()


class NotJson(Exception):
    """An answer in another format, for example of a proxy in front of Daraja."""

    def __init__(
        self, status: int, body: str, media_type: str = "text/html", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body
        self.media_type = media_type
        self.headers = dict(headers or {})


_BAD_TEXT = "Error Occurred - Invalid Access Token - abc"
_FIREWALL = "<html><head><title>Request unsuccessful</title></head><body>Incident 123-456</body></html>"


def _proxy(status: int, text: str, code: str) -> NotJson:
    """A refusal by the API proxy in front of Daraja."""
    body = json.dumps({"fault": {"faultstring": text, "detail": {"errorcode": code}}})
    return NotJson(status, body, "application/json")


FAULTS: dict[str, Fault | NotJson] = {
    "400.002.02": Fault(400, "400.002.02", "Bad Request - Invalid PhoneNumber"),
    "400.002.05": Fault(400, "400.002.05", "Invalid Request Payload"),
    "400.003.01": Fault(400, "400.003.01", "Invalid Access Token"),
    "400.003.02": Fault(400, "400.003.02", "Bad Request"),
    "400.003.02_shortcode": Fault(400, "400.003.02", "Kindly use your own ShortCode"),
    "400.008.01": Fault(400, "400.008.01", "Invalid Authentication passed"),
    "400.008.02": Fault(400, "400.008.02", "Invalid grant type passed"),
    "401.001": Fault(401, "401.001", "Invalid Access Token"),
    "401.002.01": Fault(401, "401.002.01", "Error Occurred - Invalid Access Token"),
    "401.002.01_token": Fault(401, "401.002.01", _BAD_TEXT),
    "401.003.01": Fault(401, "401.003.01", "Error Occurred: Invalid API call as no apiproduct match found"),
    "403.002.1001": Fault(403, "403.002.1001", "You are not authorized to initiate this transaction"),
    "404.001.01": Fault(404, "404.001.01", "Resource not found"),
    "404.001.03": Fault(404, "404.001.03", "Invalid Access Token"),
    "404.001.04": Fault(404, "404.001.04", "Invalid Authentication Header"),
    "404.002.01": Fault(404, "404.002.01", "No data for this shortcode"),
    "404.003.01": Fault(404, "404.003.01", "Resource not found"),
    "405.001": Fault(405, "405.001", "Method Not Allowed"),
    "429.001.01": Fault(429, "429.001.01", "Too many requests"),
    "500.001.1001": Fault(
        500,
        "500.001.1001",
        "Unable to lock subscriber, a transaction is already in process for the current subscriber",
    ),
    "500.001.1001_credentials": Fault(500, "500.001.1001", "Wrong credentials"),
    "500.001.1001_merchant": Fault(500, "500.001.1001", "Merchant does not exist"),
    "500.001.1001_no_iccid": Fault(500, "500.001.1001", "[CBS - ] No ICCID found"),
    "500.001.1001_processing": Fault(500, "500.001.1001", "The transaction is being processed"),
    "500.002.1001": Fault(500, "500.002.1001", "Duplicate OriginatorConversationID"),
    "500.002.1001_maintenance": Fault(500, "500.002.1001", "The service is under maintenance just now"),
    "500.002.1001_internal": Fault(500, "500.002.1001", "System internal error."),
    "500.003.02": Fault(500, "500.003.02", "Error Occurred: Spike Arrest Violation"),
    "500.003.02_busy": Fault(500, "500.003.02", "System is busy. Please try again in few minutes."),
    "500.003.03": Fault(500, "500.003.03", "Error Occurred: Quota Violation"),
    "500.003.1001": Fault(500, "500.003.1001", "Internal Server Error"),
    "proxy_spike_arrest_429": _proxy(429, "spike arrest, rate 5ps", "policies.ratelimit.SpikeArrestViolation"),
    "proxy_spike_arrest_500": _proxy(500, "spike arrest, rate 5ps", "policies.ratelimit.SpikeArrestViolation"),
    "proxy_quota_429": _proxy(429, "quota exceeded", "policies.ratelimit.QuotaViolation"),
    "proxy_token_401": _proxy(401, "the token is not valid", "keymanagement.service.invalid_access_token"),
    "proxy_token_expired_401": _proxy(401, "Access Token expired", "keymanagement.service.access_token_expired"),
    "html_429": NotJson(429, "<html>Too Many Requests</html>"),
    "firewall_403": NotJson(403, _FIREWALL),
    "firewall_200": NotJson(200, _FIREWALL),
    "html_200": NotJson(200, "<html>We are improving our services. Please try again later.</html>"),
    "html_502": NotJson(502, "<html>Bad Gateway</html>"),
    "empty_200": NotJson(200, ""),
    "empty_503": NotJson(503, ""),
    "empty_504": NotJson(504, ""),
    "bad_redirect": NotJson(302, "", headers={"Location": "http://[bad"}),
    "switching_101": NotJson(101, "", headers={"Upgrade": "h2c"}),
    "not_gzip": NotJson(200, "{}", "application/json", {"Content-Encoding": "gzip"}),
}
"""The faults that an operation can return, by name: Daraja's code, with a suffix where only the text differs."""


def named_fault(code: str) -> Fault | NotJson:
    """Return a fault by name. Raises KeyError for an unknown one."""
    return FAULTS[code]


def bad_field(field: str) -> Fault:
    return Fault(400, "400.002.02", f"Bad Request - Invalid {field}")


def read_push(body: dict[str, Any], *, https_callbacks: bool, strict: bool) -> Push:
    """Return the push in a request body. Raises Fault for the first invalid field.

    ``strict`` refuses what the documentation forbids and Daraja acknowledges.
    """
    shortcode = read_signed(body)
    kind = body.get("TransactionType")
    if isinstance(kind, str) and not strict:
        kind = kind.strip()
    if not isinstance(kind, str) or kind not in _TYPES:
        raise bad_field("TransactionType")
    amount, phone = read_amount(body), read_text(body, "PhoneNumber")
    if not PHONE_PATTERN.match(phone):
        raise bad_field("PhoneNumber")
    # PartyA may differ from the prompted phone.
    party = read_text(body, "PartyA")
    if not PHONE_PATTERN.match(party) and not SHORTCODE_PATTERN.match(party):
        raise bad_field("PartyA")
    receiver = read_text(body, "PartyB")
    if not SHORTCODE_PATTERN.match(receiver) or (kind == "CustomerPayBillOnline" and receiver != shortcode):
        raise bad_field("PartyB")
    callback_url = read_url(body, "CallBackURL", https_callbacks=https_callbacks)
    reference = read_text(body, "AccountReference")
    # The one optional field.
    description = read_text(body, "TransactionDesc") if "TransactionDesc" in body else ""
    if not reference or (strict and len(reference) > 12):
        raise bad_field("AccountReference")
    if strict and len(description) > 13:
        raise bad_field("TransactionDesc")
    return Push(
        shortcode=shortcode,
        receiver=receiver,
        amount=amount,
        phone=phone,
        callback_url=callback_url,
        reference=reference,
        description=description,
    )


def read_signed(body: dict[str, Any]) -> str:
    """Return the shortcode of a request with a valid password and timestamp. Raises Fault."""
    shortcode, timestamp = read_text(body, "BusinessShortCode"), read_text(body, "Timestamp")
    if not SHORTCODE_PATTERN.match(shortcode):
        raise bad_field("BusinessShortCode")
    if not re.match(r"[0-9]{14}\Z", timestamp, re.ASCII):
        raise bad_field("Timestamp")
    try:
        datetime.strptime(timestamp, "%Y%m%d%H%M%S")  # noqa: DTZ007 - only whether it is a time at all
    except ValueError:
        raise bad_field("Timestamp") from None
    try:
        password = base64.b64decode(read_text(body, "Password"), validate=True).decode()
    except (binascii.Error, ValueError):
        raise bad_field("Password") from None
    passkey = password.removeprefix(shortcode).removesuffix(timestamp)
    is_consistent = password.startswith(shortcode) and password.endswith(timestamp) and passkey
    if not is_consistent or (shortcode == SANDBOX_SHORTCODE and passkey != SANDBOX_PASSKEY):
        raise Fault(500, "500.001.1001", "Wrong credentials")
    return shortcode


def read_text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise bad_field(name)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise bad_field(name)
    return str(value)


class StatusRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A valid status query."""

    shortcode: str
    receipt: str | None
    conversation_id: str | None
    result_url: str
    timeout_url: str


class ReversalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A valid reversal. ``amount`` is in KES."""

    initiator: str
    shortcode: str
    receipt: str
    amount: int
    result_url: str
    timeout_url: str


class PullQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A valid Pull query; times are in UTC."""

    shortcode: str
    start: datetime
    end: datetime
    offset: int


def read_status(body: dict[str, Any], *, https_callbacks: bool) -> StatusRequest:
    """Raises Fault for the first invalid field."""
    # The documentation's sample spells the field with a space.
    _read_initiator({"CommandID": body.get("Command ID")} | body, "TransactionStatusQuery")
    receipt = body.get("TransactionID") or None
    conversation_id = body.get("OriginalConversationID") or body.get("OriginatorConversationID") or None
    if receipt is None and conversation_id is None:
        raise bad_field("TransactionID")
    for name, value in (("TransactionID", receipt), ("OriginalConversationID", conversation_id)):
        if value is not None and not isinstance(value, str):
            raise bad_field(name)
    shortcode = read_shortcode(body, "PartyA")
    if read_text(body, "IdentifierType") not in {"1", "2", "4"}:
        raise bad_field("IdentifierType")
    result_url, timeout_url = _read_ending(body, https_callbacks=https_callbacks)
    return StatusRequest(
        shortcode=shortcode,
        receipt=receipt,
        conversation_id=conversation_id,
        result_url=result_url,
        timeout_url=timeout_url,
    )


def read_reversal(body: dict[str, Any], *, https_callbacks: bool) -> ReversalRequest:
    """Raises Fault for the first invalid field."""
    initiator = _read_initiator(body, "TransactionReversal")
    receipt = read_text(body, "TransactionID")
    if not re.match(r"[A-Z0-9]{6,20}\Z", receipt):
        raise bad_field("TransactionID")
    amount = read_amount(body)
    shortcode = read_shortcode(body, "ReceiverParty")
    # The documentation's table says 11, its older sample 4.
    if read_text(body, "RecieverIdentifierType") not in {"4", "11"}:
        raise bad_field("RecieverIdentifierType")
    result_url, timeout_url = _read_ending(body, https_callbacks=https_callbacks)
    return ReversalRequest(
        initiator=initiator,
        shortcode=shortcode,
        receipt=receipt,
        amount=amount,
        result_url=result_url,
        timeout_url=timeout_url,
    )


def read_registration(body: dict[str, Any], *, https_callbacks: bool) -> str:
    """Return the shortcode of a Pull registration. Raises Fault for the first invalid field."""
    shortcode = read_shortcode(body, "ShortCode")
    if body.get("RequestType") != "Pull":
        raise bad_field("RequestType")
    try:
        Msisdn.parse(read_text(body, "NominatedNumber"))
    except InvalidPhone:
        raise bad_field("NominatedNumber") from None
    read_url(body, "CallBackURL", https_callbacks=https_callbacks)
    return shortcode


def read_pull_query(body: dict[str, Any], now: datetime) -> PullQuery:
    """Raises Fault for the first invalid field."""
    shortcode = read_shortcode(body, "ShortCode")
    start, end = _moment(body, "StartDate"), _moment(body, "EndDate")
    if start < now - timedelta(hours=48, minutes=1):
        raise bad_field("StartDate")
    if end <= start:
        raise bad_field("EndDate")
    offset = read_text(body, "OffSetValue")
    if not offset.isascii() or not offset.isdigit() or len(offset) > 9:
        raise bad_field("OffSetValue")
    return PullQuery(shortcode=shortcode, start=start, end=end, offset=int(offset))


def _read_initiator(body: dict[str, Any], command: str) -> str:
    initiator = read_text(body, "Initiator")
    if not initiator:
        raise bad_field("Initiator")
    try:
        secret = base64.b64decode(read_text(body, "SecurityCredential"), validate=True)
    except (binascii.Error, ValueError):
        raise bad_field("SecurityCredential") from None
    if len(secret) < _SHORTEST_CREDENTIAL:
        raise bad_field("SecurityCredential")
    if body.get("CommandID") != command:
        raise bad_field("CommandID")
    return initiator


def _read_ending(body: dict[str, Any], *, https_callbacks: bool) -> tuple[str, str]:
    result_url = read_url(body, "ResultURL", https_callbacks=https_callbacks)
    timeout_url = read_url(body, "QueueTimeOutURL", https_callbacks=https_callbacks)
    if not 1 <= len(read_text(body, "Remarks")) <= 100:
        raise bad_field("Remarks")
    if len(str(body.get("Occasion") or "")) > 100:
        raise bad_field("Occasion")
    return result_url, timeout_url


def read_amount(body: dict[str, Any]) -> int:
    """Whole KES, also as text, as in the documentation's samples."""
    amount = body.get("Amount")
    if isinstance(amount, str) and amount.isascii() and amount.isdigit() and len(amount) <= 6:
        amount = int(amount)
    if isinstance(amount, bool) or not isinstance(amount, int) or not 1 <= amount <= 250_000:
        raise bad_field("Amount")
    return amount


def read_shortcode(body: dict[str, Any], name: str) -> str:
    shortcode = read_text(body, name)
    if not SHORTCODE_PATTERN.match(shortcode):
        raise bad_field(name)
    return shortcode


def read_url(body: dict[str, Any], name: str, *, https_callbacks: bool) -> str:
    url = read_text(body, name)
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError:
        raise bad_field(name) from None
    if scheme not in ({"https"} if https_callbacks else {"http", "https"}) or not host:
        raise bad_field(name)
    return url


def _moment(body: dict[str, Any], name: str) -> datetime:
    """A time in East Africa, with or without seconds; the documentation has ``8:36:00`` and ``10:10:000``."""
    found = _MOMENT.match(read_text(body, name))
    if found is None:
        raise bad_field(name)
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=EAT).astimezone(UTC)
    except ValueError:
        raise bad_field(name) from None
