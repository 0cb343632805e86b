"""The control API of payments without a prompt."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.db.engine import Found
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.http.field_rules import PHONE
from mpesa_gateway.http.query import query_dependency
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.services import Services
from mpesa_gateway_simulator.c2b import C2bPayments
from mpesa_gateway_simulator.c2b_bodies import C2bManner, C2bNames, C2bPayer
from mpesa_gateway_simulator.c2b_requests import C2bSimulation
from mpesa_gateway_simulator.own_hosts import CONTROL_ROUTE


class C2bPaymentView(msgspec.Struct, frozen=True, kw_only=True):
    """A payment without a prompt. ``amount`` is in KES; ``code`` says why it was refused."""

    receipt: str
    phone: str
    amount: int
    shortcode: str
    account_number: str
    kind: str
    state: str
    code: str | None
    created_at: datetime
    ended_at: datetime | None


class C2bOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payment at a till or paybill, and how Daraja reports it. ``amount`` is in KES.

    An ``unreachable`` validation leaves the decision to ``ResponseType``.
    """

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"phone": PHONE}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "phone": "254708374149",
        "amount": 500,
        "shortcode": "174379",
        "account_number": "HOUSE 7B",
    }

    phone: str
    amount: Annotated[int, msgspec.Meta(ge=1, le=250_000)]
    shortcode: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{5,7}$")]
    account_number: Annotated[str, msgspec.Meta(max_length=20)] = ""
    kind: Literal["pay_bill", "buy_goods"] = "pay_bill"
    validation: Literal["asked", "unreachable", "not_enabled"] = "asked"
    confirmation: Literal["sent", "late", "lost"] = "sent"
    payer_shown: C2bPayer = "by_version"
    names: C2bNames = "by_version"
    transaction_type: Annotated[str, msgspec.Meta(min_length=1, max_length=40)] | None = None


async def _pay(services: Services, data: C2bOrder) -> Success[C2bPaymentView]:
    row = await services.get(C2bPayments).pay(
        C2bSimulation(
            shortcode=data.shortcode,
            kind=data.kind,
            amount=data.amount,
            phone=str(Msisdn.parse(data.phone)),
            account_number=data.account_number if data.kind == "pay_bill" else "",
        ),
        C2bManner(
            validation=data.validation,
            confirmation=data.confirmation,
            payer_shown=data.payer_shown,
            names=data.names,
            transaction_type=data.transaction_type,
        ),
    )
    return Success(data=_view(row))


@post("/v1/simulator/c2b", status_code=200, **CONTROL_ROUTE)
async def pay_without_prompt(services: NamedDependency[Services], data: JSONBody[C2bOrder]) -> Success[C2bPaymentView]:
    """Pay a till or paybill; returns the payment, paid or refused."""
    return await _pay(services, data)


@post("/simulator/control/c2b", status_code=200, **CONTROL_ROUTE)
async def pay_by_control(services: NamedDependency[Services], data: JSONBody[C2bOrder]) -> Success[C2bPaymentView]:
    """The same, beside the other calls of the control API."""
    return await _pay(services, data)


class C2bFilters(msgspec.Struct, frozen=True, kw_only=True):
    """The filters of the list of payments."""

    phone: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50


@get("/simulator/control/c2b", dependencies={"filters": query_dependency(C2bFilters)}, **CONTROL_ROUTE)
async def list_unprompted_payments(
    services: NamedDependency[Services], filters: NamedDependency[C2bFilters]
) -> Success[list[C2bPaymentView]]:
    """List payments without a prompt, newest first."""
    rows = await services.get(C2bPayments).list_payments(filters.phone, filters.limit)
    return Success(data=[_view(row) for row in rows])


@post("/simulator/control/c2b/{receipt:str}/confirmation", status_code=200, **CONTROL_ROUTE)
async def repeat_confirmation(services: NamedDependency[Services], receipt: FromPath[str]) -> Success[dict[str, int]]:
    """Send the confirmation of a receipt, lost or sent before.

    Returns the HTTP status of the answer, 0 for none.
    """
    return Success(data={"status": await services.get(C2bPayments).confirm_again(receipt)})


def _view(row: Found) -> C2bPaymentView:
    return C2bPaymentView(**{name: row[name] for name in C2bPaymentView.__struct_fields__})


routes = (pay_without_prompt, pay_by_control, list_unprompted_payments, repeat_confirmation)
