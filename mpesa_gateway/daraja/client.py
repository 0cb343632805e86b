"""Calls Daraja and says what is certain about each call: done, refused, never sent, or unknown."""

import asyncio
import base64
import re
import sys
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import wraps
from ipaddress import ip_address
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

import niquests
import structlog

from mpesa_gateway.clock import EAT, Clock, daraja_timestamp
from mpesa_gateway.concurrency import aside
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.daraja.codes import PULL_EMPTY, PULL_OK, Outcome, stk_query_outcome
from mpesa_gateway.daraja.faults import KNOWN_FAULTS, FaultMeaning, Retry, Sent, read_fault, read_response
from mpesa_gateway.daraja.numerals import canonical
from mpesa_gateway.daraja.provider_text import provider_text, without
from mpesa_gateway.daraja.token import NoAnswer, Token, Tokens
from mpesa_gateway.daraja.wire import (
    Ack,
    StatementPage,
    StkAck,
    read_answer,
    read_code,
    read_fault_body,
    read_said,
    read_statement,
    read_text,
    says_no_transactions,
)
from mpesa_gateway.dns import Lookup, Names, NamesResolver, read_literal
from mpesa_gateway.ids import Ids
from mpesa_gateway.logs import trace
from mpesa_gateway.measures import DARAJA_CALLS, DARAJA_SECONDS
from mpesa_gateway.meter import OTHER, Meter
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.places import Places
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway.tracing import NOTHING, UNTRACED, Attributes, Span, Tracer

log = structlog.get_logger(__name__)

_CONNECTIONS = 1000
"""To one host, and all merchants have the same one: more than calls can be open. Beyond them the library waits."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}\Z", re.ASCII)
"""What a header can carry: a token with a space or a control character is none."""
_LIFETIME = 3599
"""Seconds that a token lives when Daraja does not say, and at most."""
_SHORTEST_LIFETIME = 10
_REST = 10
"""Seconds to wait after Daraja took no request, when it does not say how long; it can say up to five minutes."""
_LONGEST_REST = 300
_ACCEPTED = frozenset({"0"})
_CODE = re.compile(r"(?![0-9]{10})[A-Za-z0-9_.]{1,64}\Z", re.ASCII)
"""A code as Daraja has been seen to write it; anything else in its place is masked as text is."""
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


SIMULATED = "X-Daraja-Simulated"
"""The header of every answer of a simulator. Live traffic that meets it is stopped at the token."""


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
    checkout_request_id: str | None = None
    merchant_request_id: str | None = None
    """The push that the answer names, by either of Daraja's ids of it."""


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


class _TokenUnanswered(NotSent, NoAnswer):
    """Nothing answered when a token was asked for."""


class Rejected(DarajaFault):
    """Daraja refused for good: nothing was done, and the same request will be refused again."""


class OutcomeUnknown(DarajaFault):
    """It may have been done. Never repeat it; ask."""


@dataclass(frozen=True)
class _Answer:
    status: int
    content: Any
    """The JSON object, None where the answer was none."""
    retry_after: int | None = None
    """Seconds, from the header, None without one."""


P = ParamSpec("P")
R = TypeVar("R")


_Operation = Callable[Concatenate["DarajaClient", "DarajaCredentials", P], Coroutine[Any, Any, R]]


def _asks(operation: _Operation[P, R]) -> _Operation[P, R]:
    """Wrap an operation so that an unexpected error is OutcomeUnknown: the request may have been sent before it.

    Raises NotSent while too many calls of the same account are open. Cancellation passes through.
    """

    @wraps(operation)
    async def ask(client: "DarajaClient", credentials: DarajaCredentials, /, *args: P.args, **kwargs: P.kwargs) -> R:
        client.refuse_transaction(f"the call {operation.__name__}")
        with client.open_calls.take(client.account(credentials)) as has_place:
            if not has_place:
                raise NotSent("too many calls of this account wait for M-Pesa's answer", retry_after=10)
            try:
                return await operation(client, credentials, *args, **kwargs)
            except DarajaFault:
                raise
            except Exception as problem:  # noqa: BLE001 - as the docstring says
                log.error("daraja_answer_unreadable", operation=operation.__name__, exception=trace(problem))
                raise OutcomeUnknown("M-Pesa's answer could not be read") from None

    return ask


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
        lookup: Lookup | None = None,
    ) -> None:
        """``refuse_transaction`` raises where the caller has a transaction open: no call is made inside one.

        ``lookup`` looks Daraja's names up; without it this has one of its own.
        """
        self.refuse_transaction: Callable[[str], None] = refuse_transaction or (lambda _: None)
        self._config = config
        self._tracer = tracer
        self._meter = meter or Meter()
        self._clock = clock
        self._tokens = Tokens(clock, valkey, sealer, prefix, ids.token)
        self.open_calls = Places(sys.maxsize, each=config.per_account)
        """Calls that wait for Daraja's answer, by account."""
        self._own_names = Names() if lookup is None else None
        self._lookup: Lookup = lookup or self._own_names or Names()
        self._live_host = urlsplit(config.live_url).hostname or ""
        self._session: niquests.AsyncSession | None = None

    async def start(self) -> None:
        """Make the session; nothing is connected yet."""
        session = niquests.AsyncSession(
            # Not the library's own, which takes a thread of the event loop for as long as DNS does not answer.
            resolver=cast("Any", NamesResolver(self._look_up)),
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
        if self._own_names is not None:
            await self._own_names.close()

    async def _look_up(self, host: str, port: int) -> list[str]:
        """The addresses of a host. Raises OSError, also where the name of the live API leads to this machine.

        A simulator answers here, and so might anything else: real money's keys are not sent to it.
        """
        found = await self._lookup(host, port)
        is_name = read_literal(host) is None and host.lower() != "localhost"
        if is_name and host.lower() == self._live_host and any(ip_address(each).is_loopback for each in found):
            raise ConnectionRefusedError("the name of Daraja's live API leads to this machine")
        return found

    # -- operations -----------------------------------------------------------------------------------------------

    async def prepare(self, credentials: DarajaCredentials) -> None:
        """Fetch the access token that the next call needs, where there is none. Raises NotSent or Rejected.

        Nothing has been sent for the caller when it returns or raises.
        """
        self.refuse_transaction("fetching an access token")
        base, owner = self._base(credentials)
        with self.open_calls.take(self.account(credentials)) as has_place:
            if not has_place:
                raise NotSent("too many calls of this account wait for M-Pesa's answer", retry_after=10)
            try:
                await self._tokens.get(owner, lambda: self._fetch_token(base, credentials))
            except DarajaFault:
                raise
            except Exception as problem:  # noqa: BLE001 - whatever the library raises: no token, and nothing was sent
                log.error("daraja_token_not_fetched", exception=trace(problem))
                raise NotSent("M-Pesa gave no access token", retry_after=5) from None

    @_asks
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
            recognises=_names_a_push,
        )
        checkout_request_id = read_text(answer, "CheckoutRequestID")
        if checkout_request_id is None:
            raise OutcomeUnknown("M-Pesa's answer is no acknowledgement")
        return StkAck(
            merchant_request_id=read_text(answer, "MerchantRequestID"),
            checkout_request_id=checkout_request_id,
            customer_message=read_said(answer, "CustomerMessage") or "",
        )

    @_asks
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
                accepts=None,
            )
        except _StillPending as pending:
            return StkQueryAnswer(Outcome(pending.code or "", pending.meaning, "other", "wait", is_pending=True), "")
        code = read_code(answer, "ResultCode")
        if code is None:
            raise OutcomeUnknown("M-Pesa's answer says no result")
        if (taken := _response_code(answer)) is not None and taken not in _ACCEPTED:
            raise OutcomeUnknown("M-Pesa's answer names a result and says that it did not take the question")
        said = read_said(answer, "ResultDesc") or ""
        outcome = stk_query_outcome(code, said)
        if outcome.is_paid and read_code(answer, "ResponseCode") not in {None, "0"}:
            raise OutcomeUnknown("M-Pesa's answer contradicts itself")
        ids = (read_text(answer, "CheckoutRequestID"), read_text(answer, "MerchantRequestID"))
        return StkQueryAnswer(outcome, said, *ids)

    @_asks
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
        return _ack(
            await self._call(
                credentials,
                "transaction_status",
                "/mpesa/transactionstatus/v1/query",
                body,
                recognises=_names_a_conversation,
            )
        )

    @_asks
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
        return _ack(
            await self._call(
                credentials, "reversal", "/mpesa/reversal/v1/request", body, recognises=_names_a_conversation
            )
        )

    @_asks
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
            accepts=PULL_OK | PULL_EMPTY,
        )
        code = _response_code(answer)
        if code is None:
            raise OutcomeUnknown("M-Pesa's answer says no status")
        return code, _response_text(answer)

    @_asks
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
            accepts=PULL_OK | PULL_EMPTY,
            recognises=_is_empty_statement,
        )
        page = read_statement(answer)
        if page.rows == 0 and _response_code(answer) not in PULL_OK and not _is_empty_statement(answer):
            raise OutcomeUnknown("M-Pesa's answer is no statement")
        return page

    async def verify(self, credentials: DarajaCredentials) -> None:
        """Fetch a token with these very credentials. Raises Rejected when they are wrong, NotSent without an answer.

        The new token makes the shared one invalid, so it takes its place.
        """
        self.refuse_transaction("verifying credentials")
        base, owner = self._base(credentials)
        try:
            await self._tokens.put(owner, await self._fetch_token(base, credentials))
        except DarajaFault:
            raise
        except Exception as problem:  # noqa: BLE001 - without a token nothing was sent
            raise _no_token(problem) from None

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
        except Exception as problem:  # noqa: BLE001 - the library raises many kinds
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

    def account(self, credentials: DarajaCredentials) -> str:
        """Whose calls these are, as a name that tells nothing: an address and a consumer key."""
        return self._base(credentials)[1]

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
        accepts: frozenset[str] | None = _ACCEPTED,
        recognises: Callable[[Any], bool] | None = None,
    ) -> Any:
        """POST with the shared token and return the answer's JSON object, without the secrets of this call.

        An invalid token is dropped if it is still the shared one, renewed, and the call repeated, once. ``accepts`` are
        the response codes that are no refusal, None for any. An answer that ``recognises`` accepts is returned
        whatever its HTTP status. Raises NotSent, Rejected or OutcomeUnknown.
        """
        base, owner = self._base(credentials)
        secrets = (
            credentials.consumer_key.reveal(),
            credentials.consumer_secret.reveal(),
            credentials.passkey.reveal(),
            str(body.get("Password", "")),
            str(body.get("SecurityCredential", "")),
        )
        for is_last in (False, True):
            try:
                token = await self._tokens.get(owner, lambda: self._fetch_token(base, credentials))
            except DarajaFault:
                raise
            except Exception as problem:  # noqa: BLE001 - without a token nothing was sent
                raise _no_token(problem) from None
            answer = await self._exchange(
                "POST",
                base + path,
                operation,
                credentials.env,
                (token, *secrets),
                json=body,
                headers={"Authorization": f"Bearer {token}"},
            )
            if answer.status == _UNAUTHORISED and (recognises is None or not recognises(answer.content)):
                await self._tokens.drop(owner, token)
            judged = _judge(answer, accepts, recognises)
            if judged is None:
                return answer.content
            meaning, message = judged
            if meaning.retry is Retry.NEW_TOKEN:
                await self._tokens.drop(owner, token)
                if not is_last:
                    continue
            raise _fault(meaning, message, answer.retry_after)
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
                (credentials.consumer_secret.reveal(), basic),
                headers={"Authorization": f"Basic {basic}"},
            )
        except (OutcomeUnknown, NotSent) as problem:
            # A token that we did not get moved no money.
            raise _TokenUnanswered(problem.meaning, code=problem.code, retry_after=problem.retry_after or 5) from None
        token = self._read_token(answer)
        if token is not None:
            return token
        raise _no_token_in(answer)

    def _read_token(self, answer: _Answer) -> Token | None:
        """The token in an answer, None where there is none that a header can carry."""
        content = answer.content
        text = content.get("access_token") if content is not None else None
        if not 200 <= answer.status < 300 or not isinstance(text, str) or not _TOKEN.match(text):
            return None
        lifetime = read_code(content, "expires_in") or ""
        seconds = int(lifetime) if lifetime.isascii() and lifetime.isdigit() else _LIFETIME
        now = self._clock.now()
        kept = self._tokens.early(timedelta(seconds=min(max(seconds, _SHORTEST_LIFETIME), _LIFETIME)))
        return Token(text, now + kept, now)

    async def _exchange(
        self, method: str, url: str, operation: str, env: Env, secrets: tuple[str, ...], **options: Any
    ) -> _Answer:
        """One HTTP exchange; ``secrets`` are removed from the answer before it is read.

        Raises NotSent when no connection came about, OutcomeUnknown when no answer came back.
        """
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
            return await self._exchange_once(method, url, operation, env, secrets, span, **options)

    async def _exchange_once(
        self, method: str, url: str, operation: str, env: Env, secrets: tuple[str, ...], span: Span, **options: Any
    ) -> _Answer:
        if self._session is None:
            raise NotSent("the Daraja client has not been started")
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
                content = read_answer(without(body, secrets)) if body else None
            except ValueError:
                content = None
            is_simulated = env == "live" and SIMULATED in response.headers
            rest = _read_rest(response.headers.get("retry-after"))
            answer = _Answer(status, content if isinstance(content, dict) else None, rest)
            outcome, code = counted_as(answer.status, answer.content)
        except Exception as problem:  # noqa: BLE001 - the library also raises ValueError, TypeError and others
            error = type(problem).__name__
            if _never_connected(problem):
                outcome = "unreachable"
                raise NotSent("M-Pesa could not be reached", retry_after=5) from None
            raise OutcomeUnknown("M-Pesa did not answer") from None
        else:
            if is_simulated:
                outcome = "unreachable"
                raise NotSent(f"daraja.live_url leads to a simulator ({urlsplit(url).hostname}): leave it out")
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


def _no_token(problem: Exception) -> NotSent:
    log.error("daraja_token_unreadable", exception=trace(problem))
    return NotSent("M-Pesa gave no access token", retry_after=5)


def _tell(span: Span, status: int, outcome: str, code: str, error: str) -> None:
    span.note({"mpesa.daraja.outcome": outcome})
    if status:
        span.note({"http.response.status_code": status})
    if code:
        span.note({"mpesa.daraja.code": code})
    if outcome != "ok":
        span.fail(code or error or outcome)


def _judge(
    answer: _Answer, accepts: frozenset[str] | None, recognises: Callable[[Any], bool] | None
) -> tuple[FaultMeaning, str | None] | None:
    """What is wrong with an answer, with the provider's words; None for one that can be used. Raises OutcomeUnknown."""
    if answer.content is None:
        if answer.status == _TOO_MANY:
            return read_fault(answer.status, None, None), None
        raise OutcomeUnknown(f"M-Pesa answered HTTP {answer.status} without JSON")
    if recognises is not None and recognises(answer.content):
        return None
    fault = read_fault_body(answer.content)
    code = _response_code(answer.content)
    is_fault = fault.code is not None or (fault.message is not None and code is None)
    if is_fault or not 200 <= answer.status < 300:
        return read_fault(answer.status, fault.code, fault.message), fault.message
    if accepts is None or code is None or code in accepts:
        return None
    said = _response_text(answer.content)
    return read_response(code, said), said


_TOO_MANY = 429
_UNAUTHORISED = 401
"""What is wrong with a token is not always said in JSON. Dropping a good one costs one call."""


def _names_a_push(answer: Any) -> bool:
    """Whether an answer names a push, with no word that it was refused: by its name M-Pesa can be asked about it."""
    return read_text(answer, "CheckoutRequestID") is not None and _is_unrefused(answer, {None, *_ACCEPTED})


def _names_a_conversation(answer: Any) -> bool:
    """Whether an answer accepts a request and names its conversation, whatever its HTTP status."""
    names = ("OriginatorConversationID", "ConversationID")
    return any(read_text(answer, name) is not None for name in names) and _is_unrefused(answer, _ACCEPTED)


def _is_unrefused(answer: Any, accepts: Collection[str | None]) -> bool:
    fault = read_fault_body(answer)
    return _response_code(answer) in accepts and read_fault(200, fault.code, fault.message).sent is not Sent.NO


def _response_code(answer: Any) -> str | None:
    """The code of an acknowledgement in its one form; Pull's registration has names of its own for it."""
    names = ("ResponseCode", "ResponseStatus", "Response Status")
    return next((code for name in names if (code := read_code(answer, name)) is not None), None)


def _response_text(answer: Any) -> str:
    names = ("ResponseDescription", "Response Description", "ResponseMessage")
    return next((said for name in names if (said := read_said(answer, name)) is not None), "")


def _read_rest(header: str | bytes | None) -> int | None:
    """The seconds in a Retry-After header, within bounds; None for a date and for anything else."""
    text = header.decode("latin-1") if isinstance(header, bytes) else header or ""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        return None
    return min(max(int(text), 1), _LONGEST_REST)


def _no_token_in(answer: _Answer) -> DarajaFault:
    """The fault of an answer without a token: only Daraja's JSON and codes blame the credentials."""
    fault = read_fault_body(answer.content)
    meaning = read_fault(answer.status, fault.code, fault.message)
    message = None if fault.message is None else provider_text(fault.message)
    if fault.code is not None and "." in fault.code and meaning.sent is Sent.NO:
        if meaning.retry is Retry.NEW_TOKEN:
            return Rejected(
                "M-Pesa refused consumer_key and consumer_secret",
                code=meaning.code,
                provider_message=message,
                mitigation="check consumer_key and consumer_secret, and that they belong to this env",
                failure_reason="rejected_by_provider",
            )
        if meaning.retry is not Retry.BACK_OFF:
            return _fault(meaning, fault.message)
    hint = "; check consumer_key and consumer_secret if this persists" if answer.status in {400, 401} else ""
    return NotSent(
        f"M-Pesa gave no access token{hint}",
        code=meaning.code,
        provider_message=message,
        mitigation=_AGAIN,
        retry_after=answer.retry_after or (_REST if meaning.retry is Retry.BACK_OFF else 5),
        retryable=True,
    )


_AGAIN = "try again in a few seconds"


def counted_as(status: int, content: Any) -> tuple[str, str]:
    """How an answer is counted, with the code of a fault: one that the table has, or ``other``."""
    if content is None:
        return "no_json", ""
    code = read_fault_body(content).code
    if code is None and 200 <= status < 300:
        return "ok", ""
    return "fault", code if code in KNOWN_FAULTS else OTHER


def _ack(answer: Any) -> Ack:
    """The acknowledgement in an answer that was not refused. Raises OutcomeUnknown for none."""
    code = read_code(answer, "ResponseCode")
    originator = read_text(answer, "OriginatorConversationID")
    conversation = read_text(answer, "ConversationID")
    if code is None or (originator is None and conversation is None):
        raise OutcomeUnknown("M-Pesa's answer is no acknowledgement")
    return Ack(
        originator_conversation_id=originator or "",
        conversation_id=conversation or "",
        response_code=code,
        response_description=read_said(answer, "ResponseDescription") or "",
    )


_NOTHING_HERE = "404.002.01"
"""The error code with which Pull has been seen to say that it has no rows."""


def _is_empty_statement(answer: Any) -> bool:
    """Whether Pull says that there is nothing: by a code, or in words under any HTTP status."""
    if read_statement(answer).rows:
        return False
    code, fault = _response_code(answer), read_fault_body(answer)
    if code in PULL_EMPTY or canonical(fault.code or "") == _NOTHING_HERE:
        return True
    said = f"{_response_text(answer)}. {fault.message or ''}. {read_text(answer, 'Response') or ''}"
    return code not in PULL_OK and says_no_transactions(said)


class _StillPending(OutcomeUnknown):
    """The push that was asked about has not ended."""


def password(credentials: DarajaCredentials, timestamp: str) -> str:
    """STK push's password: base64 of shortcode, passkey and timestamp."""
    text = credentials.shortcode + credentials.passkey.reveal() + timestamp
    return base64.b64encode(text.encode()).decode()


def _fault(meaning: FaultMeaning, message: str | None, retry_after: int | None = None) -> DarajaFault:
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
        code=meaning.code if _CODE.match(meaning.code) else provider_text(meaning.code, 64),
        provider_message=None if message is None else provider_text(message),
        mitigation=meaning.mitigation,
        retry_after=(retry_after or _REST) if meaning.retry is Retry.BACK_OFF else None,
        retryable=meaning.retry in {Retry.BACK_OFF, Retry.AFTER_A_MINUTE, Retry.NEW_TOKEN},
        failure_reason=meaning.failure_reason,
    )


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
