"""Calls Daraja and says what is certain about each call: done, refused, never sent, or unknown."""

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import niquests
import structlog

from mpesa_gateway.clock import EAT, Clock, daraja_timestamp
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.daraja.codes import (
    KNOWN_FAULTS,
    PULL_EMPTY,
    PULL_OK,
    FaultMeaning,
    Outcome,
    Retry,
    Sent,
    read_fault,
    stk_outcome,
)
from mpesa_gateway.daraja.token import Token, Tokens
from mpesa_gateway.daraja.wire import (
    Ack,
    StatementPage,
    StkAck,
    read_fault_body,
    read_json,
    read_statement,
    read_text,
)
from mpesa_gateway.http.place import aside
from mpesa_gateway.ids import Ids
from mpesa_gateway.measures import DARAJA_CALLS, DARAJA_SECONDS
from mpesa_gateway.meter import OTHER, Meter
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn, mask_phones
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway.tracing import NOTHING, UNTRACED, Attributes, Span, Tracer

log = structlog.get_logger(__name__)

_CONNECTIONS = 200
_UNSENT = frozenset({"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"})
"""What urllib3 calls a connection that never came about."""

__all__ = [
    "Ack",
    "DarajaClient",
    "DarajaCredentials",
    "Initiator",
    "NotSent",
    "OutcomeUnknown",
    "Rejected",
    "StkAck",
    "StkQueryAnswer",
]


@dataclass(frozen=True)
class DarajaCredentials:
    """What Daraja wants to know about a merchant. With ``till_number``, Buy Goods, ``shortcode`` is the store."""

    env: Env
    consumer_key: Secret
    consumer_secret: Secret
    shortcode: str
    passkey: Secret
    till_number: str | None = None

    @property
    def receiver(self) -> str:
        """The shortcode that the money reaches: the till, or the paybill itself."""
        return self.till_number or self.shortcode


@dataclass(frozen=True)
class Initiator:
    """Who asks on the M-Pesa organisation portal: its name, and its password as encrypted for Safaricom."""

    name: str
    security_credential: Secret


@dataclass(frozen=True)
class StkQueryAnswer:
    """How Daraja says a push stands. It never gives the receipt."""

    outcome: Outcome
    result_desc: str


class DarajaFault(Exception):
    """A call to Daraja that brought no acknowledgement. Its text holds no secrets and no phone numbers."""

    def __init__(
        self,
        meaning: str,
        *,
        code: str | None = None,
        provider_message: str | None = None,
        mitigation: str = "",
        retry_after: int | None = None,
        retryable: bool = False,
        failure_reason: str = "other",
    ) -> None:
        super().__init__(f"{code}: {meaning}" if code else meaning)
        self.meaning = meaning
        self.code = code
        self.provider_message = provider_message
        self.mitigation = mitigation
        self.retry_after = retry_after
        self.retryable = retryable
        self.failure_reason = failure_reason

    @property
    def provider(self) -> dict[str, str] | None:
        """Daraja's own code and message, and what to do, for the answer to the merchant."""
        if self.code is None:
            return None
        return {"errorCode": self.code, "errorMessage": self.provider_message or "", "mitigation": self.mitigation}


class NotSent(DarajaFault):
    """Nothing was sent or done: the same request may be made again. ``retry_after`` is in seconds."""


class Rejected(DarajaFault):
    """Daraja refused for good: nothing was done, and the same request will be refused again."""


class OutcomeUnknown(DarajaFault):
    """It may have been done. Never repeat it; ask."""


@dataclass(frozen=True)
class _Answer:
    status: int
    content: Any
    """The JSON, None where the answer was none."""


class DarajaClient:
    """One HTTP session to Daraja, for all merchants, with one shared token for each consumer key."""

    def __init__(
        self,
        config: DarajaConfig,
        *,
        clock: Clock,
        ids: Ids,
        valkey: Any,
        sealer: Sealer,
        prefix: str = "mpesa",
        meter: Meter | None = None,
        tracer: Tracer = UNTRACED,
        refuse_transaction: Callable[[str], None] | None = None,
    ) -> None:
        """``refuse_transaction`` raises where the caller has a transaction open: no call is made inside one."""
        self._refuse_transaction = refuse_transaction
        self._config = config
        self._tracer = tracer
        self._meter = meter or Meter()
        self._clock = clock
        self._tokens = Tokens(clock, valkey, sealer, prefix, ids.token)
        self._session: niquests.AsyncSession | None = None

    async def start(self) -> None:
        """Make the session; nothing is connected yet."""
        session = niquests.AsyncSession(
            retries=0,
            disable_http3=True,
            pool_connections=20,
            pool_maxsize=_CONNECTIONS,
            allow_incoming_cookies=False,
            revocation_configuration=None,
        )
        session.trust_env = False
        self._session = session

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # -- operations -----------------------------------------------------------------------------------------------

    async def prepare(self, credentials: DarajaCredentials) -> None:
        """Fetch the access token that the next call needs, where there is none. Raises NotSent or Rejected.

        Nothing has been sent for the caller when it returns or raises.
        """
        base, owner = self._base(credentials)
        await self._tokens.get(owner, lambda: self._fetch_token(base, credentials))

    async def stk_push(
        self,
        credentials: DarajaCredentials,
        *,
        amount: Kes,
        phone: Msisdn,
        callback_url: str,
        account_reference: str,
        description: str,
    ) -> StkAck:
        """Send one prompt to one phone. Raises NotSent, Rejected or OutcomeUnknown.

        Daraja's push is not idempotent and takes no id of ours: after OutcomeUnknown it must not be repeated.
        """
        timestamp = daraja_timestamp(self._clock.now())
        is_till = credentials.till_number is not None
        answer = await self._call(
            credentials,
            "stk_push",
            "/mpesa/stkpush/v1/processrequest",
            {
                "BusinessShortCode": credentials.shortcode,
                "Password": password(credentials, timestamp),
                "Timestamp": timestamp,
                "TransactionType": "CustomerBuyGoodsOnline" if is_till else "CustomerPayBillOnline",
                "Amount": int(amount),
                "PartyA": str(phone),
                "PartyB": credentials.receiver,
                "PhoneNumber": str(phone),
                "CallBackURL": callback_url,
                "AccountReference": account_reference,
                "TransactionDesc": description,
            },
        )
        code = read_text(answer, "ResponseCode")
        merchant_request_id = read_text(answer, "MerchantRequestID")
        checkout_request_id = read_text(answer, "CheckoutRequestID")
        if code is None or (code == "0" and (merchant_request_id is None or checkout_request_id is None)):
            raise OutcomeUnknown("M-Pesa's answer is no acknowledgement")
        if code != "0":
            raise _refused(code, read_text(answer, "ResponseDescription") or "")
        return StkAck(
            merchant_request_id=merchant_request_id or "",
            checkout_request_id=checkout_request_id or "",
            customer_message=read_text(answer, "CustomerMessage") or "",
        )

    async def stk_query(self, credentials: DarajaCredentials, checkout_request_id: str) -> StkQueryAnswer:
        """Ask how a push stands. Raises NotSent, Rejected or OutcomeUnknown when the question got no answer."""
        timestamp = daraja_timestamp(self._clock.now())
        try:
            answer = await self._call(
                credentials,
                "stk_query",
                "/mpesa/stkpushquery/v1/query",
                {
                    "BusinessShortCode": credentials.shortcode,
                    "Password": password(credentials, timestamp),
                    "Timestamp": timestamp,
                    "CheckoutRequestID": checkout_request_id,
                },
            )
        except _StillPending as pending:
            return StkQueryAnswer(Outcome(pending.code or "", pending.meaning, "other", "wait", is_pending=True), "")
        code = read_text(answer, "ResultCode")
        if code is None:
            raise OutcomeUnknown("M-Pesa's answer says no result")
        said = read_text(answer, "ResultDesc") or ""
        return StkQueryAnswer(stk_outcome(code, said), said)

    async def transaction_status(
        self,
        credentials: DarajaCredentials,
        initiator: Initiator,
        *,
        receipt: str | None,
        conversation_id: str | None,
        result_url: str,
        timeout_url: str,
        remarks: str,
    ) -> Ack:
        """Ask what became of a transaction, by its receipt or by the conversation that began it.

        The answer comes to ``result_url``. Raises NotSent, Rejected or OutcomeUnknown; asking again is always safe.
        """
        body = {
            "Initiator": initiator.name,
            "SecurityCredential": initiator.security_credential.reveal(),
            "CommandID": "TransactionStatusQuery",
            "PartyA": credentials.receiver,
            "IdentifierType": "4",
            "ResultURL": result_url,
            "QueueTimeOutURL": timeout_url,
            "Remarks": remarks,
            "Occasion": "",
        }
        if receipt is not None:
            body["TransactionID"] = receipt
        if conversation_id is not None:
            body["OriginalConversationID"] = conversation_id
        return _ack(await self._call(credentials, "transaction_status", "/mpesa/transactionstatus/v1/query", body))

    async def reverse(
        self,
        credentials: DarajaCredentials,
        initiator: Initiator,
        *,
        receipt: str,
        amount: Kes,
        result_url: str,
        timeout_url: str,
        remarks: str,
    ) -> Ack:
        """Send money back to the payer. The answer comes to ``result_url``. Raises NotSent, Rejected or OutcomeUnknown.

        It takes no id of ours: after OutcomeUnknown it must not be repeated.
        """
        body = {
            "Initiator": initiator.name,
            "SecurityCredential": initiator.security_credential.reveal(),
            "CommandID": "TransactionReversal",
            "TransactionID": receipt,
            "Amount": int(amount),
            "ReceiverParty": credentials.receiver,
            # Safaricom's own spelling.
            "RecieverIdentifierType": "11",
            "ResultURL": result_url,
            "QueueTimeOutURL": timeout_url,
            "Remarks": remarks,
            "Occasion": "",
        }
        return _ack(await self._call(credentials, "reversal", "/mpesa/reversal/v1/request", body))

    async def pull_register(
        self, credentials: DarajaCredentials, *, nominated_number: Msisdn, callback_url: str
    ) -> tuple[str, str]:
        """Enable Pull for the shortcode, once; gives the response code and text. Being registered already is fine.

        Raises NotSent, Rejected or OutcomeUnknown; repeating it is safe.
        """
        answer = await self._call(
            credentials,
            "pull_register",
            "/pulltransactions/v1/register",
            {
                "ShortCode": credentials.receiver,
                "RequestType": "Pull",
                "NominatedNumber": str(nominated_number),
                "CallBackURL": callback_url,
            },
        )
        code = read_text(answer, "ResponseStatus") or read_text(answer, "Response Status")
        said = read_text(answer, "ResponseDescription") or read_text(answer, "Response Description") or ""
        if code is None:
            raise OutcomeUnknown("M-Pesa's answer says no status")
        if code not in PULL_OK | PULL_EMPTY:
            raise _refused(code, said)
        return code, said

    async def pull_query(
        self, credentials: DarajaCredentials, *, start: datetime, end: datetime, offset: int
    ) -> StatementPage:
        """One page of what came in between two moments, from row ``offset`` on. No rows is a page without lines.

        Raises NotSent, Rejected or OutcomeUnknown; asking again is always safe.
        """
        answer = await self._call(
            credentials,
            "pull_query",
            "/pulltransactions/v1/query",
            {
                "ShortCode": credentials.receiver,
                "StartDate": f"{start.astimezone(EAT):%Y-%m-%d %H:%M:%S}",
                # Whole seconds: the last one counts to its end.
                "EndDate": f"{(end + timedelta(microseconds=999_999)).astimezone(EAT):%Y-%m-%d %H:%M:%S}",
                "OffSetValue": str(offset),
            },
            says_empty=_is_empty_statement,
        )
        code = read_text(answer, "ResponseCode")
        if _is_empty_statement(answer):
            return StatementPage(lines=(), malformed=0, rows=0)
        if code in PULL_OK:
            return read_statement(answer)
        if code is None:
            raise OutcomeUnknown("M-Pesa's answer is no statement")
        raise _refused(code, read_text(answer, "ResponseMessage") or "")

    async def verify(self, credentials: DarajaCredentials) -> None:
        """Fetch a token with these very credentials. Raises Rejected when they are wrong, NotSent without an answer.

        The new token makes the shared one invalid, so it takes its place.
        """
        base, owner = self._base(credentials)
        await self._tokens.put(owner, await self._fetch_token(base, credentials))

    async def server_time(self, env: Env) -> datetime | None:
        """What time it is there, in UTC, by the Date of an answer; None for an answer without. Raises NotSent.

        Nothing is asked for and nobody's credentials are used: whatever the answer is, Daraja can be reached.
        """
        if self._session is None:
            raise NotSent("the Daraja client has not been started")
        base = self._config.live_url if env == "live" else self._config.sandbox_url
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                response = await self._session.get(base.rstrip("/") + "/oauth/v1/generate", allow_redirects=False)
        except (niquests.exceptions.RequestException, OSError, TimeoutError) as problem:
            raise NotSent(f"no answer from {urlsplit(base).hostname} ({type(problem).__name__})") from None
        try:
            return parsedate_to_datetime(response.headers.get("date") or "").astimezone(UTC)
        except ValueError:
            return None

    async def token_until(self, credentials: DarajaCredentials) -> datetime | None:
        """Until when the shared token of these credentials is used, in UTC; None where there is none at present."""
        _, owner = self._base(credentials)
        return await self._tokens.until(owner)

    def tokens_held(self) -> tuple[int, timedelta]:
        """How many tokens this process holds and still uses, and how old the oldest of them is."""
        return self._tokens.held()

    # -- the way there --------------------------------------------------------------------------------------------

    def _base(self, credentials: DarajaCredentials) -> tuple[str, str]:
        base = (self._config.live_url if credentials.env == "live" else self._config.sandbox_url).rstrip("/")
        return base, Tokens.owner(base, credentials.consumer_key.reveal())

    async def _call(
        self,
        credentials: DarajaCredentials,
        operation: str,
        path: str,
        body: dict[str, Any],
        *,
        says_empty: Callable[[Any], bool] | None = None,
    ) -> Any:
        """POST with the shared token; an invalid token is replaced and the call repeated, once.

        An answer that ``says_empty`` recognises is one, whatever its HTTP status.
        """
        base, owner = self._base(credentials)
        for is_last in (False, True):
            token = await self._tokens.get(owner, lambda: self._fetch_token(base, credentials))
            answer = await self._exchange(
                "POST", base + path, operation, credentials.env, json=body, headers={"Authorization": f"Bearer {token}"}
            )
            if answer.content is None:
                raise OutcomeUnknown(f"M-Pesa answered HTTP {answer.status} without JSON")
            fault = read_fault_body(answer.content)
            if fault.code is None and 200 <= answer.status < 300:
                return answer.content
            if says_empty is not None and says_empty(answer.content):
                return answer.content
            meaning = read_fault(answer.status, fault.code, fault.message)
            if meaning.retry is Retry.NEW_TOKEN:
                await self._tokens.drop(owner, token)
                if not is_last:
                    continue
            raise _fault(meaning, fault.message)
        raise AssertionError("unreachable")

    async def _fetch_token(self, base: str, credentials: DarajaCredentials) -> Token:
        pair = f"{credentials.consumer_key.reveal()}:{credentials.consumer_secret.reveal()}"
        basic = base64.b64encode(pair.encode()).decode()
        try:
            answer = await self._exchange(
                "GET",
                base + "/oauth/v1/generate?grant_type=client_credentials",
                "token",
                credentials.env,
                headers={"Authorization": f"Basic {basic}"},
            )
        except OutcomeUnknown as problem:
            # A token that we did not get moved no money.
            raise NotSent(problem.meaning, code=problem.code, retry_after=5) from None
        text, lifetime = read_text(answer.content, "access_token"), read_text(answer.content, "expires_in")
        if 200 <= answer.status < 300 and text is not None:
            seconds = int(lifetime) if lifetime is not None and lifetime.isdigit() else 3599
            now = self._clock.now()
            return Token(text, now + self._tokens.early(timedelta(seconds=seconds)), now)
        fault = read_fault_body(answer.content)
        meaning = read_fault(answer.status, fault.code, fault.message)
        if meaning.sent is Sent.NO and meaning.retry is not Retry.BACK_OFF:
            raise _fault(meaning, fault.message)
        if answer.status in {400, 401, 403}:
            # Daraja has been seen to answer wrong credentials with an empty body.
            raise Rejected(
                "M-Pesa refused consumer_key and consumer_secret",
                code=meaning.code,
                provider_message=_safe(fault.message),
                mitigation="check consumer_key and consumer_secret, and that they belong to this env",
                failure_reason="rejected_by_provider",
            )
        raise NotSent(
            "M-Pesa gave no access token", code=meaning.code, provider_message=_safe(fault.message), retry_after=5
        )

    async def _exchange(self, method: str, url: str, operation: str, env: Env, **options: Any) -> _Answer:
        """One HTTP exchange. Raises NotSent when no connection came about, OutcomeUnknown when no answer came back."""
        parts = urlsplit(url)
        said: Attributes = {
            "http.request.method": method,
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            # Without its query, and without what somebody may have put before the host.
            "url.full": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
            "mpesa.env": env,
            "mpesa.daraja.operation": operation,
        }
        with self._tracer.call(f"daraja {operation}", said) as span:
            return await self._exchange_once(method, url, operation, env, span, **options)

    async def _exchange_once(
        self, method: str, url: str, operation: str, env: Env, span: Span, **options: Any
    ) -> _Answer:
        if self._session is None:
            raise NotSent("the Daraja client has not been started")
        if self._refuse_transaction is not None:
            self._refuse_transaction(f"the call {operation}")
        began = time.perf_counter()
        status, error = 0, ""
        outcome, code = "no_answer", ""
        try:
            # While M-Pesa thinks, others are worked on. The library's own read timeout starts anew with each byte.
            async with asyncio.timeout(self._config.timeout):
                with aside():
                    response = await self._session.request(
                        method,
                        url,
                        timeout=(self._config.connect_timeout, self._config.timeout),
                        allow_redirects=False,
                        **options,
                    )
                body = response.content
            status = response.status_code or 0
            try:
                content = read_json(body) if body else None
            except ValueError:
                content = None
            answer = _Answer(status, content if isinstance(content, dict) else None)
            outcome, code = counted_as(answer.status, answer.content)
        except (niquests.exceptions.RequestException, OSError, TimeoutError) as problem:
            error = type(problem).__name__
            if _never_connected(problem):
                outcome = "unreachable"
                raise NotSent("M-Pesa could not be reached", retry_after=5) from None
            raise OutcomeUnknown("M-Pesa did not answer") from None
        else:
            return answer
        finally:
            took = time.perf_counter() - began
            self._meter.count(DARAJA_CALLS, env, operation, outcome, code)
            self._meter.time(DARAJA_SECONDS, took, env, operation)
            if span is not NOTHING:
                _tell(span, status, outcome, code, error)
            log.info(
                "daraja_exchange", operation=operation, status=status, error=error or None, ms=round(took * 1000, 1)
            )


def _tell(span: Span, status: int, outcome: str, code: str, error: str) -> None:
    span.note({"mpesa.daraja.outcome": outcome})
    if status:
        span.note({"http.response.status_code": status})
    if code:
        span.note({"mpesa.daraja.code": code})
    if outcome != "ok":
        span.fail(code or error or outcome)


def counted_as(status: int, content: Any) -> tuple[str, str]:
    """How an answer is counted, with the code of a fault: one that the table has, or ``other``."""
    if content is None:
        return "no_json", ""
    code = read_fault_body(content).code
    if code is None and 200 <= status < 300:
        return "ok", ""
    return "fault", code if code in KNOWN_FAULTS else OTHER


def _ack(answer: Any) -> Ack:
    """The acknowledgement in an answer. Raises Rejected for another ResponseCode than 0, OutcomeUnknown for none."""
    code = read_text(answer, "ResponseCode")
    originator = read_text(answer, "OriginatorConversationID")
    conversation = read_text(answer, "ConversationID")
    if code is None or (code == "0" and originator is None and conversation is None):
        raise OutcomeUnknown("M-Pesa's answer is no acknowledgement")
    said = read_text(answer, "ResponseDescription") or ""
    if code != "0":
        raise _refused(code, said)
    return Ack(
        originator_conversation_id=originator or "",
        conversation_id=conversation or "",
        response_code=code,
        response_description=said,
    )


def _refused(code: str, said: str) -> Rejected:
    return Rejected(
        "M-Pesa did not accept the request",
        code=code,
        provider_message=_safe(said),
        mitigation="see the provider's message",
        failure_reason="rejected_by_provider",
    )


def _is_empty_statement(answer: Any) -> bool:
    """Nothing found has been seen with a code of its own, with words only, and under HTTP 500."""
    code = read_text(answer, "ResponseCode")
    said = f"{read_text(answer, 'ResponseMessage') or ''} {read_text(answer, 'errorMessage') or ''}".lower()
    return code in PULL_EMPTY or (code not in PULL_OK and "no transaction" in said)


class _StillPending(OutcomeUnknown):
    """The push that was asked about has not ended."""


def password(credentials: DarajaCredentials, timestamp: str) -> str:
    """STK push's password: base64 of shortcode, passkey and timestamp."""
    text = credentials.shortcode + credentials.passkey.reveal() + timestamp
    return base64.b64encode(text.encode()).decode()


def _fault(meaning: FaultMeaning, message: str | None) -> DarajaFault:
    """The exception for a fault: by whether anything was done, and whether asking again is safe."""
    kind: type[DarajaFault]
    if meaning.retry is Retry.PENDING:
        kind = _StillPending
    elif meaning.sent is not Sent.NO:
        kind = OutcomeUnknown
    elif meaning.retry in {Retry.BACK_OFF, Retry.NEW_TOKEN}:
        kind = NotSent
    else:
        kind = Rejected
    return kind(
        meaning.meaning,
        code=meaning.code,
        provider_message=_safe(message),
        mitigation=meaning.mitigation,
        retry_after=10 if meaning.retry is Retry.BACK_OFF else None,
        retryable=meaning.retry in {Retry.BACK_OFF, Retry.AFTER_A_MINUTE, Retry.NEW_TOKEN},
        failure_reason=meaning.failure_reason,
    )


def _safe(message: str | None) -> str | None:
    return None if message is None else mask_phones(message)[:300]


def _never_connected(problem: BaseException) -> bool:
    """Whether the failure proves that not a byte of the request was sent."""
    if isinstance(problem, niquests.exceptions.ConnectTimeout):
        return True
    if isinstance(problem, niquests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(problem):
        return True
    seen: BaseException | None = problem
    for _ in range(5):
        if seen is None:
            return False
        reason = getattr(seen, "reason", None)
        for candidate in (seen, reason):
            if candidate is not None and _UNSENT & {kind.__name__ for kind in type(candidate).__mro__}:
                return True
        arguments = getattr(seen, "args", ())
        seen = arguments[0] if arguments and isinstance(arguments[0], BaseException) else None
    return False
