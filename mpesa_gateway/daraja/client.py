"""The Daraja client; a call is acknowledged, rejected, not sent, or of unknown outcome."""

import asyncio
import base64
import re
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from itertools import product
from typing import Any, cast
from urllib.parse import urlsplit

import niquests
import structlog
from opentelemetry.trace import Span, Tracer
from prometheus_client import CollectorRegistry

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.call_slots import released_slot
from mpesa_gateway.clock import Clock
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.daraja.access_tokens import AccessToken, AccessTokens, TokenUnavailable
from mpesa_gateway.daraja.exceptions import DarajaFault, NotSent, OutcomeUnknown, Rejected, StillPending
from mpesa_gateway.daraja.faults import KNOWN_FAULTS, Delivered, FaultMeaning, Retry, read_fault, read_response
from mpesa_gateway.daraja.operations import (
    A,
    DarajaCredentials,
    Initiator,
    Operation,
    Q,
    response_code,
    response_text,
)
from mpesa_gateway.daraja.provider_text import mask_secrets, provider_text
from mpesa_gateway.daraja.wire import (
    Ack,
    read_answer,
    read_code,
    read_fault_body,
)
from mpesa_gateway.dns import ClientResolver, Lookup, NameResolver, read_literal
from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.ids import Ids
from mpesa_gateway.logs import trace
from mpesa_gateway.metrics.definitions import OTHER, KernelMetrics
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway.tracing import UNTRACED, Attributes, client_span, set_attributes, set_error

log = structlog.get_logger(__name__)

_CONNECTIONS = 1000
"""The library blocks at this limit, and all merchants share one host."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}\Z", re.ASCII)
_LIFETIME = 3599
"""Seconds: default and maximum lifetime of a token."""
_MIN_LIFETIME = 10
_DEFAULT_DELAY = 10
"""Seconds to wait after throttling without Retry-After."""
_LONGEST_DELAY = 300
_CODE = re.compile(r"(?![0-9]{10})[A-Za-z0-9_.]{1,64}\Z", re.ASCII)
"""Other codes are masked like text."""
_CONNECT_ERRORS = frozenset({"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"})
"""urllib3's errors before a connection exists."""

__all__ = [
    "Ack",
    "DarajaClient",
    "DarajaCredentials",
    "DarajaFault",
    "Initiator",
    "NotSent",
    "OutcomeUnknown",
    "Rejected",
]


SIMULATED = "X-Daraja-Simulated"
"""Header of simulator answers; a live call fails on it at the token request."""


class _TokenRequestFailed(NotSent, TokenUnavailable):
    pass


@dataclass(frozen=True)
class _Answer:
    status: int
    content: Any
    retry_after: int | None = None


class DarajaClient:
    """One HTTP session for all merchants, with one shared token per consumer key."""

    def __init__(
        self,
        config: DarajaConfig,
        *,
        clock: Clock,
        ids: Ids,
        valkey: Any,
        sealer: Sealer,
        prefix: str = "mpesa",
        metrics: KernelMetrics | None = None,
        tracer: Tracer = UNTRACED,
        refuse_transaction: Callable[[str], None] | None = None,
        lookup: Lookup | None = None,
        operations: Collection[str] = (),
    ) -> None:
        """``refuse_transaction`` raises if the caller has an open transaction."""
        self.refuse_transaction: Callable[[str], None] = refuse_transaction or (lambda _: None)
        self._config = config
        self._tracer = tracer
        self._metrics = metrics or KernelMetrics(CollectorRegistry())
        for env, operation in product(ENVS, ("token", *operations)):
            self._metrics.daraja_calls.labels(env, operation, "ok", "")
        self._clock = clock
        self._tokens = AccessTokens(clock, valkey, sealer, prefix, ids.token)
        self.open_calls = Bulkhead(sys.maxsize, each=config.max_concurrent_per_key)
        """By account."""
        self._own_names = NameResolver() if lookup is None else None
        self._lookup: Lookup = lookup or self._own_names or NameResolver()
        self._live_host = urlsplit(config.live_url).hostname or ""
        self._session: niquests.AsyncSession | None = None

    async def start(self) -> None:
        session = niquests.AsyncSession(
            # The library's resolver occupies a thread of the event loop's pool during DNS timeouts.
            resolver=cast("Any", ClientResolver(self._look_up)),
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
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()
        if self._own_names is not None:
            await self._own_names.close()

    async def _look_up(self, host: str, port: int) -> list[str]:
        """Live credentials must not reach a local process: loopback raises OSError."""
        found = await self._lookup(host, port)
        is_name = read_literal(host) is None and host.lower() != "localhost"
        if is_name and host.lower() == self._live_host and any(ip_address(each).is_loopback for each in found):
            raise ConnectionRefusedError("the name of Daraja's live API resolves to this machine")
        return found

    async def prepare(self, credentials: DarajaCredentials) -> None:
        """Fetch the access token if none is stored. Raises NotSent or Rejected."""
        self.refuse_transaction("fetching an access token")
        base, owner = self._base(credentials)
        with self.open_calls.acquire(self.account(credentials)) as has_slot:
            if not has_slot:
                raise NotSent("too many calls of this account wait for M-Pesa's answer", retry_after=10)
            try:
                await self._tokens.get(owner, lambda: self._fetch_token(base, credentials))
            except DarajaFault:
                raise
            except Exception as problem:  # noqa: BLE001 - any library error means no token and no request
                log.error("daraja_token_not_fetched", exception=trace(problem))
                raise NotSent("M-Pesa returned no access token", retry_after=5) from None

    async def call(self, operation: Operation[Q, A], credentials: DarajaCredentials, request: Q) -> A:
        """Make one call and return its acknowledgement.

        Raises Rejected, NotSent (also above the account's limit) or OutcomeUnknown (also for unexpected errors: the
        request may have been sent).
        """
        self.refuse_transaction(f"the call {operation.name}")
        with self.open_calls.acquire(self.account(credentials)) as has_slot:
            if not has_slot:
                raise NotSent("too many calls of this account wait for M-Pesa's answer", retry_after=10)
            try:
                return operation.read(await self._call(operation, credentials, request))
            except StillPending as pending:
                if operation.pending is None:
                    raise
                return operation.pending(pending)
            except DarajaFault:
                raise
            except Exception as problem:  # noqa: BLE001 - OutcomeUnknown, as the docstring says
                log.error("daraja_answer_unreadable", operation=operation.name, exception=trace(problem))
                raise OutcomeUnknown("M-Pesa's answer could not be read") from None

    async def verify(self, credentials: DarajaCredentials) -> None:
        """Fetch a token with these credentials and store it. Raises Rejected or NotSent.

        The shared token becomes invalid when Daraja issues a new one.
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
        """Return Daraja's Date header in UTC, or None. Raises NotSent.

        Sends no credentials; any answer proves reachability.
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

    async def token_expiry(self, credentials: DarajaCredentials) -> datetime | None:
        _, owner = self._base(credentials)
        return await self._tokens.expiry(owner)

    def count_tokens(self) -> tuple[int, timedelta]:
        return self._tokens.count_tokens()

    def account(self, credentials: DarajaCredentials) -> str:
        return self._base(credentials)[1]

    def _base(self, credentials: DarajaCredentials) -> tuple[str, str]:
        base = (self._config.live_url if credentials.env == "live" else self._config.sandbox_url).rstrip("/")
        pair = credentials.consumer_key.reveal(), credentials.consumer_secret.reveal()
        return base, AccessTokens.owner(base, *pair)

    async def _call(self, operation: Operation[Q, A], credentials: DarajaCredentials, request: Q) -> Any:
        """POST with the shared token, renewed once if invalid.

        Raises NotSent, Rejected or OutcomeUnknown.
        """
        body, recognises = request.body(credentials, self._clock.now()), operation.recognises
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
                base + operation.path,
                operation.name,
                credentials.env,
                (token, *secrets),
                json=body,
                headers={"Authorization": f"Bearer {token}"},
            )
            if answer.status == _UNAUTHORISED and (recognises is None or not recognises(answer.content)):
                await self._tokens.drop(owner, token)
            classified = _classify(answer, operation.accepts, recognises)
            if classified is None:
                return answer.content
            meaning, message = classified
            if meaning.retry is Retry.NEW_TOKEN:
                await self._tokens.drop(owner, token)
                if not is_last:
                    continue
            raise _fault(meaning, message, answer.retry_after)
        raise AssertionError("unreachable")

    async def _fetch_token(self, base: str, credentials: DarajaCredentials) -> AccessToken:
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
            # A failed token request moved no money.
            raise _TokenRequestFailed(
                problem.meaning, code=problem.code, retry_after=problem.retry_after or 5
            ) from None
        token = self._read_token(answer)
        if token is not None:
            return token
        raise _no_token_in(answer)

    def _read_token(self, answer: _Answer) -> AccessToken | None:
        content = answer.content
        text = content.get("access_token") if content is not None else None
        if not 200 <= answer.status < 300 or not isinstance(text, str) or not _TOKEN.match(text):
            return None
        lifetime = read_code(content, "expires_in") or ""
        seconds = int(lifetime) if lifetime.isascii() and lifetime.isdigit() else _LIFETIME
        now = self._clock.now()
        kept = self._tokens.usable_lifetime(timedelta(seconds=min(max(seconds, _MIN_LIFETIME), _LIFETIME)))
        return AccessToken(text, now + kept, now)

    async def _exchange(
        self, method: str, url: str, operation: str, env: Env, secrets: tuple[str, ...], **options: Any
    ) -> _Answer:
        """Send one request. Raises NotSent without a connection, OutcomeUnknown without an answer."""
        parts = urlsplit(url)
        attributes: Attributes = {
            "http.request.method": method,
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            # Without query and user information.
            "url.full": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
            "mpesa.env": env,
            "mpesa.daraja.operation": operation,
        }
        with client_span(self._tracer, f"daraja {operation}", attributes) as span:
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
            # The library restarts its read timeout with each byte.
            async with asyncio.timeout(self._config.timeout):
                with released_slot():
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
                content = read_answer(mask_secrets(body, secrets)) if body else None
            except ValueError:
                content = None
            is_simulated = env == "live" and SIMULATED in response.headers
            delay = _read_retry_after(response.headers.get("retry-after"))
            answer = _Answer(status, content if isinstance(content, dict) else None, delay)
            outcome, code = metric_labels(answer.status, answer.content)
        except Exception as problem:  # noqa: BLE001 - the library also raises ValueError, TypeError and others
            error = type(problem).__name__
            if _never_connected(problem):
                outcome = "unreachable"
                raise NotSent("M-Pesa could not be reached", retry_after=5) from None
            raise OutcomeUnknown("M-Pesa did not answer") from None
        else:
            if is_simulated:
                outcome = "unreachable"
                raise NotSent(f"daraja.live_url is a simulator ({urlsplit(url).hostname}): remove the setting")
            return answer
        finally:
            took = time.perf_counter() - began
            self._metrics.daraja_calls.labels(env, operation, outcome, code).inc()
            self._metrics.daraja_seconds.labels(env, operation).observe(took)
            if span.is_recording():
                _describe(span, status, outcome, code, error)
            log.info(
                "daraja_exchange", operation=operation, status=status, error=error or None, ms=round(took * 1000, 1)
            )


def _no_token(problem: Exception) -> NotSent:
    log.error("daraja_token_unreadable", exception=trace(problem))
    return NotSent("M-Pesa returned no access token", retry_after=5)


def _describe(span: Span, status: int, outcome: str, code: str, error: str) -> None:
    set_attributes(span, {"mpesa.daraja.outcome": outcome})
    if status:
        set_attributes(span, {"http.response.status_code": status})
    if code:
        set_attributes(span, {"mpesa.daraja.code": code})
    if outcome != "ok":
        set_error(span, code or error or outcome)


def _classify(
    answer: _Answer, accepts: frozenset[str] | None, recognises: Callable[[Any], bool] | None
) -> tuple[FaultMeaning, str | None] | None:
    """Return None for a usable answer, else the fault with the provider's text.

    Raises OutcomeUnknown for an answer without JSON, except 429.
    """
    if answer.content is None:
        if answer.status == _TOO_MANY:
            return read_fault(answer.status, None, None), None
        raise OutcomeUnknown(f"M-Pesa answered HTTP {answer.status} without JSON")
    if recognises is not None and recognises(answer.content):
        return None
    fault = read_fault_body(answer.content)
    code = response_code(answer.content)
    is_fault = fault.code is not None or (fault.message is not None and code is None)
    if is_fault or not 200 <= answer.status < 300:
        return read_fault(answer.status, fault.code, fault.message), fault.message
    if accepts is None or code is None or code in accepts:
        return None
    text = response_text(answer.content)
    return read_response(code, text), text


_TOO_MANY = 429
_UNAUTHORISED = 401
"""Such an answer may lack JSON. Dropping a valid token costs one request."""


def _read_retry_after(header: str | bytes | None) -> int | None:
    text = header.decode("latin-1") if isinstance(header, bytes) else header or ""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        return None
    return min(max(int(text), 1), _LONGEST_DELAY)


def _no_token_in(answer: _Answer) -> DarajaFault:
    """Only JSON with Daraja's codes is evidence against the credentials."""
    fault = read_fault_body(answer.content)
    meaning = read_fault(answer.status, fault.code, fault.message)
    message = None if fault.message is None else provider_text(fault.message)
    if fault.code is not None and "." in fault.code and meaning.sent is Delivered.NO:
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
        f"M-Pesa returned no access token{hint}",
        code=meaning.code,
        provider_message=message,
        mitigation=_RETRY_ADVICE,
        retry_after=answer.retry_after or (_DEFAULT_DELAY if meaning.retry is Retry.BACK_OFF else 5),
        retryable=True,
    )


_RETRY_ADVICE = "try again in a few seconds"


def metric_labels(status: int, content: Any) -> tuple[str, str]:
    """Return outcome and fault code."""
    if content is None:
        return "no_json", ""
    code = read_fault_body(content).code
    if code is None and 200 <= status < 300:
        return "ok", ""
    return "fault", code if code in KNOWN_FAULTS else OTHER


def _fault(meaning: FaultMeaning, message: str | None, retry_after: int | None = None) -> DarajaFault:
    kind: type[DarajaFault]
    if meaning.retry is Retry.PENDING:
        kind = StillPending
    elif meaning.sent is not Delivered.NO:
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
        retry_after=(retry_after or _DEFAULT_DELAY) if meaning.retry is Retry.BACK_OFF else None,
        retryable=meaning.retry in {Retry.BACK_OFF, Retry.AFTER_A_MINUTE, Retry.NEW_TOKEN},
        failure_reason=meaning.failure_reason,
    )


def _never_connected(problem: BaseException) -> bool:
    """Return True if the error proves that no byte was sent."""
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
            if candidate is not None and _CONNECT_ERRORS & {kind.__name__ for kind in type(candidate).__mro__}:
                return True
        arguments = getattr(seen, "args", ())
        seen = arguments[0] if arguments and isinstance(arguments[0], BaseException) else None
    return False
