"""The control API for tests and demos."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from litestar import get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.errors import Conflict
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.http.field_rules import PHONE, one_of
from mpesa_gateway.http.query import Moment, query_dependency
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.services import Services
from mpesa_gateway_simulator.bystanders import PayerShown, TimeShown
from mpesa_gateway_simulator.caller import CallbackCaller
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.misbehaviour import (
    ACK_HABITS,
    C2B_REGISTER_HABITS,
    C2B_SIMULATE_HABITS,
    CALLBACK_HABITS,
    OAUTH_HABITS,
    PULL_HABITS,
    QR_HABITS,
    QUERY_HABITS,
    REVERSAL_HABITS,
    STATUS_HABITS,
)
from mpesa_gateway_simulator.outcomes import BEHAVIOURS, PREFIX
from mpesa_gateway_simulator.own_hosts import CONTROL_ROUTE, FromAnotherSite
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.validation import FAULTS
from mpesa_gateway_simulator.views import LedgerEntry, OutcomeView, PushView, push_view


@get("/simulator/outcomes", public=True, priority=True, tags=["Simulator"])
async def outcomes() -> Success[list[OutcomeView]]:
    """List the documented numbers and their behaviours."""
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
    dependencies={"filters": query_dependency(PushQuery)},
    **CONTROL_ROUTE,
)
async def pushes(services: NamedDependency[Services], filters: NamedDependency[PushQuery]) -> Success[list[PushView]]:
    """List pushes, newest first."""
    rows = await services.get(Prompts).list_pushes(filters.phone, filters.reference, filters.state, filters.limit)
    return Success(data=[push_view(row) for row in rows])


@get(
    "/simulator/control/pushes/{checkout_request_id:str}",
    **CONTROL_ROUTE,
)
async def one_push(services: NamedDependency[Services], checkout_request_id: FromPath[str]) -> Success[PushView]:
    """Return one push."""
    return Success(data=push_view(await services.get(Prompts).find(checkout_request_id)))


_ANSWER_ROUTE: dict[str, Any] = CONTROL_ROUTE | {"refuses": (Conflict, FromAnotherSite)}


class PromptAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to an open prompt."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"answer": "pay"}

    answer: Literal["pay", "cancel", "wrong_pin", "no_funds", "ignore"]


@post(
    "/simulator/control/pushes/{checkout_request_id:str}/answer",
    status_code=200,
    **_ANSWER_ROUTE,
)
async def answer_push(
    services: NamedDependency[Services], checkout_request_id: FromPath[str], data: JSONBody[PromptAnswer]
) -> Success[PushView]:
    """Answer an open prompt as the payer."""
    return Success(data=push_view(await services.get(Prompts).answer(checkout_request_id, data.answer)))


@post(
    "/simulator/control/pushes/{checkout_request_id:str}/callback",
    status_code=200,
    **CONTROL_ROUTE,
)
async def repeat_callback(
    services: NamedDependency[Services], checkout_request_id: FromPath[str]
) -> Success[dict[str, int]]:
    """Repeat a push's callback; returns the HTTP status of the answer, 0 for none."""
    return Success(data={"status": await services.get(CallbackCaller).send_again(checkout_request_id)})


class Forgery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A forged callback; ``about`` is the push in its body, by default the push itself."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"amount": 1}

    about: str | None = None
    amount: Annotated[int, msgspec.Meta(ge=1, le=250_000)] | None = None
    signature: Annotated[str, msgspec.Meta(max_length=1000, pattern=r"^[!-~]*$")] | None = None


@post(
    "/simulator/control/pushes/{checkout_request_id:str}/forge",
    status_code=200,
    **CONTROL_ROUTE,
)
async def forge_callback(
    services: NamedDependency[Services], checkout_request_id: FromPath[str], data: JSONBody[Forgery]
) -> Success[dict[str, int]]:
    """Post a forged success to a push's callback address.

    Returns the HTTP status of the answer, 0 for none.
    """
    about = data.about or checkout_request_id
    status = await services.get(CallbackCaller).forge(checkout_request_id, about, data.amount, data.signature)
    return Success(data={"status": status})


class FaultOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault, its operation and its number of requests."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"fault": one_of(FAULTS)}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"operation": "stkpush", "fault": "500.003.02", "times": 1}

    operation: Literal[
        "oauth",
        "stkpush",
        "stkquery",
        "transactionstatus",
        "reversal",
        "pullregister",
        "pullquery",
        "c2bregister",
        "c2bsimulate",
        "qrcode",
    ]
    fault: str
    times: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1


@post(
    "/simulator/control/faults",
    status_code=200,
    **CONTROL_ROUTE,
)
async def order_fault(services: NamedDependency[Services], data: JSONBody[FaultOrder]) -> Success[dict[str, int]]:
    """Answer the next requests of an operation with a fault."""
    await services.get(Controls).set_fault(data.operation, data.fault, data.times)
    return Success(data={"times": data.times})


Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Delays in seconds, the share of chaos, strangers for each push, the seed; omitted values stay."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"callback_delay": 0.3}

    callback_delay: Seconds | None = None
    late_delay: Seconds | None = None
    callback_jitter: Seconds | None = None
    slow_answer: Seconds | None = None
    prompt_timeout: Seconds | None = None
    validation_timeout: Seconds | None = None
    chaos: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    strangers: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**52)] | None = None


@patch(
    "/simulator/control/knobs",
    **CONTROL_ROUTE,
)
async def turn_knobs(services: NamedDependency[Services], data: JSONBody[Knobs]) -> Success[Knobs]:
    """Change delays, chaos and seed, from the next request on."""
    turned = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not None}
    await services.get(Controls).set_knobs(turned)
    return Success(data=data)


class Habits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Habits by operation; omitted ones stay.

    ``stkpush`` is the behaviour of unlisted phones, ``stkack`` the form of acknowledgements, ``callback`` that of
    posted bodies.
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
        "c2bregister": one_of(C2B_REGISTER_HABITS),
        "c2bsimulate": one_of(C2B_SIMULATE_HABITS),
        "qrcode": one_of(QR_HABITS),
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
    c2bregister: str | None = None
    c2bsimulate: str | None = None
    qrcode: str | None = None


@patch(
    "/simulator/control/habits",
    **CONTROL_ROUTE,
)
async def set_habits(services: NamedDependency[Services], data: JSONBody[Habits]) -> Success[Habits]:
    """Change the habits of phones, acknowledgements, callbacks, queries, reversals and Pull."""
    for operation, habit in msgspec.structs.asdict(data).items():
        if habit is not None:
            await services.get(Controls).set_habit(operation, habit)
    return Success(data=data)


class MoneyWithoutPush(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money without a push. ``amount`` is in KES; ``skew`` is the error of M-Pesa's clock in seconds.

    ``payer_shown`` is the form of the payer's number on the statement.
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
    status_code=200,
    **CONTROL_ROUTE,
)
async def add_money(services: NamedDependency[Services], data: JSONBody[MoneyWithoutPush]) -> Success[dict[str, str]]:
    """Write money without a push to the ledger: only statements and status answers show it."""
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
    dependencies={"filters": query_dependency(LedgerQuery)},
    **CONTROL_ROUTE,
)
async def ledger(
    services: NamedDependency[Services], filters: NamedDependency[LedgerQuery]
) -> Success[list[LedgerEntry]]:
    """List the money that moved, newest first."""
    rows = await services.get(Prompts).ledger(filters.phone, filters.limit)
    return Success(data=[LedgerEntry(**dict(row)) for row in rows])


@post(
    "/simulator/control/reset",
    status_code=200,
    **CONTROL_ROUTE,
)
async def reset(services: NamedDependency[Services]) -> Success[dict[str, bool]]:
    """Delete all data and settings of the simulator."""
    await services.get(Controls).reset()
    return Success(data={"reset": True})


routes = (
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
