"""Routes of callbacks, for Safaricom and for operators."""

from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from mpesa_gateway.client_ip import read_address
from mpesa_gateway.daraja.callbacks import CallbackKind, Reply, StandingAddress
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE
from mpesa_gateway.errors import Conflict, NotFound, RateLimited
from mpesa_gateway.http.auth import address_of
from mpesa_gateway.http.dependencies import RuntimeDependency
from mpesa_gateway.http.envelope import Page, Success
from mpesa_gateway.http.query import query_dependency
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Admin
from mpesa_gateway_callbacks.api import DifferentSubject
from mpesa_gateway_callbacks.callback_kinds import CallbackKinds
from mpesa_gateway_callbacks.errors import (
    CallbackRejected,
    DuplicateFieldRejected,
    ShapeRejected,
    SignatureRejected,
    SizeRejected,
    SourceRejected,
    TokenRejected,
)
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.incoming import KEPT_OF_LARGER, CallbackPost, TruncatedBody, VerifiedCallback
from mpesa_gateway_callbacks.metrics import CallbackMetrics
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_callbacks.schemas import (
    Accepted,
    CallbackQuery,
    CallbackView,
    RefusedQuery,
    RefusedView,
    ReplayedView,
)
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.verifier import CallbackVerifier

log = structlog.get_logger(__name__)

_MOST_OF_SANDBOX = 16_384
"""Bytes of a body at a standing address of the sandbox; real ones have less than 1,000."""

_ACCEPTED = b'{"ResultCode": 0, "ResultDesc": "Accepted"}'


def _takes(has_place: Callable[[CallbackKind], bool]) -> Callable[[Runtime], dict[str, Any]]:

    def compose(gateway: Runtime) -> dict[str, Any]:
        kinds = [kind for kind in gateway.callback_kinds.values() if has_place(kind)]
        schemas: list[Mapping[str, Any]] = []
        for kind in kinds:
            if kind.schema not in schemas:
                schemas.append(kind.schema)
        examples = {name: {"value": value} for kind in kinds for name, value in kind.examples.items()}
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas or [{"type": "object"}]}
        return {"schema": schema, "examples": examples}

    return compose


def _answers(has_place: Callable[[CallbackKind], bool]) -> Callable[[Runtime], list[Mapping[str, Any]]]:

    def compose(gateway: Runtime) -> list[Mapping[str, Any]]:
        kinds = [kind for kind in gateway.callback_kinds.values() if kind.answer is not None and has_place(kind)]
        return [kind.answer_schema or {"type": "object"} for kind in kinds]

    return compose


def _subjects(gateway: Runtime) -> dict[str, dict[str, Any]]:
    found = [kind.path.split("/") for kind in gateway.callback_kinds.values() if kind.path]
    return {
        "subject": {"enum": sorted({subject for subject, _ in found})},
        "ending": {"enum": sorted({ending for _, ending in found})},
    }


def _kinds(gateway: Runtime) -> dict[str, dict[str, Any]]:
    return {"kind": {"enum": sorted(gateway.callback_kinds)}}


_CALLBACK: dict[str, Any] = {
    "status_code": 200,
    "public": True,
    "priority": True,
    # The sender decides how much of the body is read.
    "request_max_body_size": None,
    "tags": ["Callbacks"],
    "answers": {200: Accepted},
    "takes": _takes(lambda kind: kind.path == ""),
    "or_answers": _answers(lambda kind: kind.path == ""),
    "refuses": (
        SizeRejected,
        SourceRejected,
        TokenRejected,
        SignatureRejected,
        ShapeRejected,
        DuplicateFieldRejected,
        DifferentSubject,
        NotFound,
        RateLimited,
    ),
}

_REPLAY_REFUSES = (Conflict, SourceRejected, SignatureRejected, ShapeRejected, DuplicateFieldRejected, DifferentSubject)

_RESULT: dict[str, Any] = _CALLBACK | {
    "takes": _takes(lambda kind: bool(kind.path)),
    "or_answers": _answers(lambda kind: bool(kind.path)),
}

_ANY: dict[str, Any] = _CALLBACK | {"takes": _takes(lambda _: True), "or_answers": _answers(lambda _: True)}


def _was_forwarded(request: Request[Any, Any, Any], source: str) -> bool:
    """Return True if the assumed sender may be an unconfigured proxy."""
    client = request.scope.get("client")
    hops = [hop.strip() for header in request.headers.getall("x-forwarded-for", []) for hop in header.split(",")]
    if client is not None and str(read_address(client[0])) == source:
        return any(hops)
    named = [str(read_address(hop)) for hop in hops]
    return source in named and named.index(source) > 0


async def _receive(gateway: Runtime, request: Request[Any, Any, Any], kind: str, token: str | None) -> Response[bytes]:
    verifier, settings = gateway.port(CallbackVerifier), gateway.settings(CallbacksSettings)
    source, most = address_of(request), gateway.config.http.max_body_bytes
    if kind not in gateway.callback_kinds and not verifier.is_trusted(kind, token, source):
        # Trusted senders' callbacks of an unknown kind are stored for a later replay.
        raise NotFound("there is nothing at this address")
    declared = gateway.callback_kinds.get(kind)
    if declared is not None and declared.reply is not None:
        return await _reply(gateway, request, declared, declared.reply, token)
    await verifier.look_up(kind, token, source)
    most_of_sandbox = await _limit_sandbox(gateway, kind, token)

    def most_here() -> int | None:
        if most_of_sandbox is not None or not verifier.is_trusted(kind, token, source):
            return None
        return max(most, settings.max_body_bytes)

    body, cut = await _read_body(request, most_of_sandbox or most, most_here)
    # Two signature headers are joined to one invalid signature, and stored.
    signatures = request.headers.getall(settings.signature_header, [])
    signature = ", ".join(signatures) if signatures else None
    incoming = CallbackPost(kind, token, body, source, signature, cut, _was_forwarded(request, source))
    arrival = await gateway.port(CallbackInbox).receive(incoming)
    return Response(await _answer_to(arrival, gateway), media_type="application/json")


async def _limit_sandbox(gateway: Runtime, kind: str, token: str | None) -> int | None:
    """Count a post to a standing address of the sandbox, and return its most bytes; None elsewhere.

    The sandbox checks no source, so that the holder of a token may be anyone. Raises RateLimited.
    """
    found = gateway.port(CallbackVerifier).open_token(kind, token)
    if found is None or found[0].merchant_id or found[0].env != "sandbox":
        return None
    most = gateway.settings(CallbacksSettings).sandbox_per_minute
    await gateway.limits.count_action(f"callback.{kind}", found[0].subject_id, most)
    return _MOST_OF_SANDBOX


async def _reply(
    gateway: Runtime, request: Request[Any, Any, Any], kind: CallbackKind, reply: Reply, token: str | None
) -> Response[bytes]:
    """Answer a question. Without Postgres, only addresses that this process knows are answered."""
    verifier, source = gateway.port(CallbackVerifier), address_of(request)
    counter = gateway.metrics.get(CallbackMetrics).callbacks
    try:
        await verifier.look_up(kind.name, token, source)
    except (*UNREACHABLE, *OVERLOADED) as problem:
        log.warning("callback_address_not_read", kind=kind.name, error=type(problem).__name__)
    most = await _limit_sandbox(gateway, kind.name, token) or gateway.config.http.max_body_bytes
    try:
        incoming = CallbackPost(kind.name, token, b"", source)
        subject, _ = verifier.check_token(incoming)
        if subject is None:
            raise TokenRejected("there is nothing at this address")
        verifier.check_source(incoming, subject)
        body, cut = await _read_body(request, most, lambda: None)
        if cut is not None:
            raise SizeRejected("the body is too large")
    except CallbackRejected as refusal:
        counter.labels(kind.name, "refused", refusal.reason).inc()
        raise
    counter.labels(kind.name, "accepted", "").inc()
    answer = await reply(gateway, StandingAddress(subject.env, subject.subject_id), body)
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _answer_to(arrival: VerifiedCallback, gateway: Runtime) -> bytes:
    kind, make = gateway.callback_kinds.get(arrival.incoming.kind), arrival.parsed.event
    if kind is None or kind.answer is None or make is None:
        return _ACCEPTED
    event = make(arrival.event_fields(gateway.clock.now()))
    return msgspec.json.encode(await kind.answer(gateway, event))


async def _receive_at(
    gateway: Runtime, request: Request[Any, Any, Any], path: str, token: str | None
) -> Response[bytes]:
    kinds = gateway.port(CallbackKinds)
    kind = kinds.at(path)
    if kind is None and gateway.port(CallbackVerifier).is_listed(address_of(request)):
        kind = kinds.in_place_of(path)
    return await _receive(gateway, request, path if kind is None else kind, token)


async def _read_body(
    request: Request[Any, Any, Any], most: int, most_here: Callable[[], int | None]
) -> tuple[bytes, TruncatedBody | None]:
    """Return a whole body, or the beginning of an oversized one with its description.

    ``most_here`` returns the limit for this sender, None if untrusted; it is called only above ``most`` bytes. Nothing
    is read if an untrusted sender announces more.
    """
    announced, has_asked = request.content_length or 0, False
    if announced > most:
        larger, has_asked = most_here(), True
        if larger is None:
            return b"", TruncatedBody.of(b"", announced)
        most = larger
    body = bytearray()
    async with aclosing(request.stream()) as parts:
        async for part in parts:
            body += part
            if len(body) > most and not has_asked:
                most, has_asked = most_here() or most, True
            if len(body) > most:
                return bytes(body[:KEPT_OF_LARGER]), TruncatedBody.of(bytes(body), max(announced, len(body)))
    return bytes(body), None


@post("/v1/webhooks/mpesa", **_CALLBACK)
async def stk_callback(gateway: RuntimeDependency, request: Request[Any, Any, Any]) -> Response[bytes]:
    """An STK callback at the specification's address, identified by its CheckoutRequestID."""
    return await _receive_at(gateway, request, "", None)


@post("/v1/webhooks/mpesa/{token:str}", **_CALLBACK)
async def stk_callback_with_token(
    gateway: RuntimeDependency, request: Request[Any, Any, Any], token: FromPath[str]
) -> Response[bytes]:
    """An STK callback at the specification's address, with the token of its push."""
    return await _receive_at(gateway, request, "", token)


@post("/v1/webhooks/mpesa/{subject:str}/{ending:str}", described=_subjects, **_RESULT)
async def result_callback(
    gateway: RuntimeDependency,
    request: Request[Any, Any, Any],
    subject: FromPath[str],
    ending: FromPath[str],
) -> Response[bytes]:
    """A result or timeout of ``transactionstatus`` or ``reversal``, identified by its OriginatorConversationID."""
    return await _receive_at(gateway, request, f"{subject}/{ending}", None)


@post("/v1/webhooks/mpesa/{subject:str}/{ending:str}/{token:str}", described=_subjects, **_RESULT)
async def result_callback_with_token(
    gateway: RuntimeDependency,
    request: Request[Any, Any, Any],
    subject: FromPath[str],
    ending: FromPath[str],
    token: FromPath[str],
) -> Response[bytes]:
    """A result or timeout of ``transactionstatus`` or ``reversal``, with the token of its request."""
    return await _receive_at(gateway, request, f"{subject}/{ending}", token)


@post("/v1/cb/{kind:str}/{token:str}", described=_kinds, **_ANY)
async def neutral_callback(
    gateway: RuntimeDependency,
    request: Request[Any, Any, Any],
    kind: FromPath[str],
    token: FromPath[str],
) -> Response[bytes]:
    """A callback of any kind, at the address that the gateway's requests to Daraja contain."""
    return await _receive(gateway, request, kind, token)


@get("/v1/admin/callbacks", dependencies={"filters": query_dependency(CallbackQuery)}, tags=["Administration"])
async def list_callbacks(
    filters: NamedDependency[CallbackQuery], caller: Admin, gateway: RuntimeDependency
) -> Page[CallbackView]:
    """Accepted callbacks of the key's env, and those without an env, newest first, each with its verdict."""
    return await gateway.port(CallbackOperatorService).accepted(caller.env, filters)


@get("/v1/admin/callbacks/refused", dependencies={"filters": query_dependency(RefusedQuery)}, tags=["Administration"])
async def list_refused(
    filters: NamedDependency[RefusedQuery], caller: Admin, gateway: RuntimeDependency
) -> Page[RefusedView]:
    """Refused callbacks of the key's env, and those without an env, newest first, each with its reason."""
    return await gateway.port(CallbackOperatorService).refused(caller.env, filters)


@post("/v1/admin/callbacks/{callback_id:str}/replay", status_code=200, tags=["Administration"], refuses=_REPLAY_REFUSES)
async def replay_callback(
    callback_id: FromPath[str], caller: Admin, gateway: RuntimeDependency
) -> Success[ReplayedView]:
    """Process a stored callback again, accepted or refused.

    An applied callback does not change. A sandbox key replays callbacks of the sandbox only.
    """
    operators = gateway.port(CallbackOperatorService)
    done = await operators.replay(callback_id, actor=caller.actor, env=caller.env)
    return Success(data=ReplayedView(**vars(done)))


routes = (
    stk_callback,
    stk_callback_with_token,
    result_callback,
    result_callback_with_token,
    neutral_callback,
    list_callbacks,
    list_refused,
    replay_callback,
)
