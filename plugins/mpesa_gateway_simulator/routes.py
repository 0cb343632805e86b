"""Daraja's own paths under /simulator, and the control API that tests and demos turn the knobs with."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec
from litestar import Request, Response, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, RawBody

from mpesa_gateway.daraja.client import SIMULATED
from mpesa_gateway.daraja.wire import read_json
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.http.query import Moment, reads
from mpesa_gateway.http.rules import PHONE, one_of
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.services import Services
from mpesa_gateway_simulator.caller import CallbackCaller
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.diary import Diary
from mpesa_gateway_simulator.habits import (
    ACK_HABITS,
    CALLBACK_HABITS,
    OAUTH_HABITS,
    PULL_HABITS,
    QUERY_HABITS,
    REVERSAL_HABITS,
    STATUS_HABITS,
)
from mpesa_gateway_simulator.outcomes import BEHAVIOURS, PREFIX
from mpesa_gateway_simulator.own_hosts import FromAnotherSite, own_host_only
from mpesa_gateway_simulator.population import PayerShown, TimeShown
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.service import SimulatedDaraja
from mpesa_gateway_simulator.validation import FAULTS, Fault, Garbage
from mpesa_gateway_simulator.views import LedgerEntry, OutcomeView, PushView, push_view

_DARAJA: dict[str, Any] = {"public": True, "priority": True, "include_in_schema": False}


async def _fault(daraja: SimulatedDaraja, fault: Fault) -> Response[dict[str, str]]:
    return Response(await daraja.fault_body(fault), status_code=fault.status)


def _read(body: bytes) -> dict[str, Any]:
    try:
        content = read_json(body)
    except ValueError:
        content = None
    # NUL is text that no database of ours could keep.
    if not isinstance(content, dict) or b"\\u0000" in body:
        raise Fault(400, "400.002.05", "Invalid Request Payload")
    return cast("dict[str, Any]", content)


async def _answer(request: Request[Any, Any, Any], services: Services, operation: str, body: bytes) -> Response[Any]:
    answer = await _answered(request, services.get(SimulatedDaraja), operation, body)
    said = answer.content.decode("latin-1") if isinstance(answer.content, bytes) else answer.content
    services.get(Diary).received(operation, body, answer.status_code or 200, said)
    answer.headers[SIMULATED] = "1"
    return answer


async def _answered(
    request: Request[Any, Any, Any], daraja: SimulatedDaraja, operation: str, body: bytes
) -> Response[Any]:
    authorization = request.headers.get("authorization")
    try:
        if operation == "oauth":
            return Response(await daraja.issue_token(authorization, request.query_params.get("grant_type")))
        if operation == "stkpush":
            return Response(await daraja.push(authorization, _read(body)), status_code=200)
        if operation == "pullquery":
            status, content = await daraja.pull_query(authorization, _read(body))
            media = "text/html" if isinstance(content, str) else "application/json"
            return Response(content, status_code=status, media_type=media)
        answer = {
            "stkquery": daraja.query,
            "transactionstatus": daraja.transaction_status,
            "reversal": daraja.reversal,
            "pullregister": daraja.pull_register,
        }[operation]
        return Response(await answer(authorization, _read(body)), status_code=200)
    except Fault as fault:
        return await _fault(daraja, fault)
    except Garbage as garbage:
        return Response(
            garbage.body, status_code=garbage.status, media_type=garbage.media_type, headers=garbage.headers
        )


@get("/simulator/oauth/v1/generate", **_DARAJA)
async def oauth(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """Daraja's token."""
    return await _answer(request, services, "oauth", b"")


@post("/simulator/mpesa/stkpush/v1/processrequest", **_DARAJA)
async def stk_push(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's STK push."""
    return await _answer(request, services, "stkpush", body)


@post("/simulator/mpesa/stkpushquery/v1/query", **_DARAJA)
async def stk_query(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's STK query."""
    return await _answer(request, services, "stkquery", body)


@post("/simulator/mpesa/transactionstatus/v1/query", **_DARAJA)
async def transaction_status(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's transaction status query."""
    return await _answer(request, services, "transactionstatus", body)


@post("/simulator/mpesa/reversal/v1/request", **_DARAJA)
async def reversal(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's reversal."""
    return await _answer(request, services, "reversal", body)


@post("/simulator/pulltransactions/v1/register", **_DARAJA)
async def pull_register(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's Pull registration."""
    return await _answer(request, services, "pullregister", body)


@post("/simulator/pulltransactions/v1/query", **_DARAJA)
async def pull_query(
    request: Request[Any, Any, Any], services: NamedDependency[Services], body: RawBody
) -> Response[Any]:
    """Daraja's Pull query."""
    return await _answer(request, services, "pullquery", body)


@get("/simulator/outcomes", public=True, priority=True, tags=["Simulator"])
async def outcomes() -> Success[list[OutcomeView]]:
    """The documented numbers, and what each does."""
    return Success(
        data=[
            OutcomeView(phone=PREFIX + digits, name=behaviour.name, summary=behaviour.summary)
            for digits, behaviour in BEHAVIOURS.items()
        ]
    )


class PushQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The filters of the list of pushes."""

    phone: str | None = None
    reference: str | None = None
    state: Literal["open", "ended"] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50


@get(
    "/simulator/control/pushes",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    public=True,
    priority=True,
    dependencies={"filters": reads(PushQuery)},
    tags=["Simulator"],
)
async def pushes(services: NamedDependency[Services], filters: NamedDependency[PushQuery]) -> Success[list[PushView]]:
    """What the phones were asked, newest first."""
    rows = await services.get(Prompts).list_pushes(filters.phone, filters.reference, filters.state, filters.limit)
    return Success(data=[push_view(row) for row in rows])


@get(
    "/simulator/control/pushes/{checkout_request_id:str}",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    public=True,
    priority=True,
    tags=["Simulator"],
)
async def one_push(services: NamedDependency[Services], checkout_request_id: FromPath[str]) -> Success[PushView]:
    """One push."""
    try:
        return Success(data=push_view(await services.get(Prompts).find(checkout_request_id)))
    except LookupError as problem:
        raise NotFound(str(problem)) from None


class PromptAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an open prompt is answered."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"answer": "pay"}

    answer: Literal["pay", "cancel", "wrong_pin", "no_funds", "ignore"]


@post(
    "/simulator/control/pushes/{checkout_request_id:str}/answer",
    guards=[own_host_only],
    status_code=200,
    public=True,
    priority=True,
    tags=["Simulator"],
    refuses=(Conflict, FromAnotherSite),
)
async def answer_push(
    services: NamedDependency[Services], checkout_request_id: FromPath[str], data: JSONBody[PromptAnswer]
) -> Success[PushView]:
    """PromptAnswer an open prompt, as a finger on the phone would."""
    try:
        return Success(data=push_view(await services.get(Prompts).answer(checkout_request_id, data.answer)))
    except LookupError as problem:
        raise NotFound(str(problem)) from None
    except ValueError as problem:
        raise Conflict(str(problem)) from None


@post(
    "/simulator/control/pushes/{checkout_request_id:str}/callback",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    status_code=200,
    public=True,
    priority=True,
    tags=["Simulator"],
)
async def repeat_callback(
    services: NamedDependency[Services], checkout_request_id: FromPath[str]
) -> Success[dict[str, int]]:
    """Make a push's callback once more; says the HTTP status that it was answered with, 0 for none."""
    try:
        return Success(data={"status": await services.get(CallbackCaller).send_again(checkout_request_id)})
    except LookupError as problem:
        raise NotFound(str(problem)) from None


class Forgery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A callback that M-Pesa never sent; ``about`` is the push that it speaks of, its own without it."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"amount": 1}

    about: str | None = None
    amount: Annotated[int, msgspec.Meta(ge=1, le=250_000)] | None = None
    signature: Annotated[str, msgspec.Meta(max_length=1000, pattern=r"^[!-~]*$")] | None = None


@post(
    "/simulator/control/pushes/{checkout_request_id:str}/forge",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    status_code=200,
    public=True,
    priority=True,
    tags=["Simulator"],
)
async def forge_callback(
    services: NamedDependency[Services], checkout_request_id: FromPath[str], data: JSONBody[Forgery]
) -> Success[dict[str, int]]:
    """Post a success that nobody earned to a push's callback address, as somebody who learned it could.

    Says the HTTP status that it was answered with, 0 for none.
    """
    about = data.about or checkout_request_id
    try:
        status = await services.get(CallbackCaller).forge(checkout_request_id, about, data.amount, data.signature)
    except LookupError as problem:
        raise NotFound(str(problem)) from None
    return Success(data={"status": status})


class FaultOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault to play: for which operation, and how often."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"fault": one_of(FAULTS)}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"operation": "stkpush", "fault": "500.003.02", "times": 1}

    operation: Literal["oauth", "stkpush", "stkquery", "transactionstatus", "reversal", "pullregister", "pullquery"]
    fault: str
    times: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1


@post(
    "/simulator/control/faults",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    status_code=200,
    public=True,
    priority=True,
    tags=["Simulator"],
)
async def order_fault(services: NamedDependency[Services], data: JSONBody[FaultOrder]) -> Success[dict[str, int]]:
    """PromptAnswer the next requests of an operation with a fault."""
    await services.get(Controls).set_fault(data.operation, data.fault, data.times)
    return Success(data={"times": data.times})


Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Delays in seconds, the share of chaos, strangers for each push, the seed; those left out stay as they are."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"callback_delay": 0.3}

    callback_delay: Seconds | None = None
    late_delay: Seconds | None = None
    callback_jitter: Seconds | None = None
    slow_answer: Seconds | None = None
    prompt_timeout: Seconds | None = None
    chaos: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    strangers: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**52)] | None = None


@patch(
    "/simulator/control/knobs",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    public=True,
    priority=True,
    tags=["Simulator"],
)
async def turn_knobs(services: NamedDependency[Services], data: JSONBody[Knobs]) -> Success[Knobs]:
    """Change delays, chaos and chance, from the next request on."""
    turned = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not None}
    await services.get(Controls).set_knobs(turned)
    return Success(data=data)


class Habits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How each operation behaves; those left out stay as they are.

    ``stkpush`` names what an unlisted phone does, ``stkack`` how pushes are acknowledged, and ``callback`` how the
    bodies that Daraja posts are written.
    """

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "stkpush": one_of({"normal", *(behaviour.name for behaviour in BEHAVIOURS.values())}),
        "oauth": one_of(OAUTH_HABITS),
        "stkack": one_of(ACK_HABITS),
        "callback": one_of(CALLBACK_HABITS),
        "stkquery": one_of(QUERY_HABITS),
        "transactionstatus": one_of(STATUS_HABITS),
        "reversal": one_of(REVERSAL_HABITS),
        "pullquery": one_of(PULL_HABITS),
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"reversal": "late"}

    oauth: str | None = None
    stkpush: str | None = None
    stkack: str | None = None
    callback: str | None = None
    stkquery: str | None = None
    transactionstatus: str | None = None
    reversal: str | None = None
    pullquery: str | None = None


@patch(
    "/simulator/control/habits",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    public=True,
    priority=True,
    tags=["Simulator"],
)
async def set_habits(services: NamedDependency[Services], data: JSONBody[Habits]) -> Success[Habits]:
    """Change how phones, acknowledgements, callbacks, queries, reversals and Pull behave."""
    for operation, habit in msgspec.structs.asdict(data).items():
        if habit is not None:
            await services.get(Controls).set_habit(operation, habit)
    return Success(data=data)


class Money(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money that no push asked for. ``amount`` is in KES; ``skew`` is by how many seconds M-Pesa's clock is wrong.

    ``kind`` and ``payer_shown`` are what it is, and how the statement shows the payer.
    """

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"phone": PHONE}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"phone": "254708374149", "amount": 500, "shortcode": "174379"}

    phone: str
    amount: Annotated[int, msgspec.Meta(ge=1, le=250_000)]
    shortcode: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{5,7}$")]
    reference: Annotated[str, msgspec.Meta(max_length=20)] = ""
    at: Moment | None = None
    kind: Literal["pay_bill", "buy_goods", "payout", "shop_payment", "portal_reversal", "charge"] = "pay_bill"
    payer_shown: PayerShown = "national"
    time_shown: TimeShown = "offset"
    skew: Annotated[int, msgspec.Meta(ge=-3600, le=3600)] = 0


@post(
    "/simulator/control/ledger",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    status_code=200,
    public=True,
    priority=True,
    tags=["Simulator"],
)
async def add_money(services: NamedDependency[Services], data: JSONBody[Money]) -> Success[dict[str, str]]:
    """Write money that no push asked for to the ledger: only statements and status answers show it."""
    more = {name: getattr(data, name) for name in ("kind", "payer_shown", "time_shown", "skew")}
    receipt = await services.get(Prompts).add_money(
        str(Msisdn.parse(data.phone)), data.amount, data.shortcode, data.reference, data.at, **more
    )
    return Success(data={"receipt": receipt})


class LedgerQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The filters of the ledger."""

    phone: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000


@get(
    "/simulator/control/ledger",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    public=True,
    priority=True,
    dependencies={"filters": reads(LedgerQuery)},
    tags=["Simulator"],
)
async def ledger(
    services: NamedDependency[Services], filters: NamedDependency[LedgerQuery]
) -> Success[list[LedgerEntry]]:
    """The money that really moved, newest first."""
    rows = await services.get(Prompts).ledger(filters.phone, filters.limit)
    return Success(data=[LedgerEntry(**dict(row)) for row in rows])


@post(
    "/simulator/control/reset",
    guards=[own_host_only],
    refuses=(FromAnotherSite,),
    status_code=200,
    public=True,
    priority=True,
    tags=["Simulator"],
)
async def reset(services: NamedDependency[Services]) -> Success[dict[str, bool]]:
    """Forget everything."""
    await services.get(Controls).reset()
    return Success(data={"reset": True})


routes = (
    oauth,
    stk_push,
    stk_query,
    transaction_status,
    reversal,
    pull_register,
    pull_query,
    outcomes,
    pushes,
    one_push,
    answer_push,
    repeat_callback,
    forge_callback,
    order_fault,
    turn_knobs,
    set_habits,
    add_money,
    ledger,
    reset,
)
