"""The product's declaration: a scope, an operation, a callback kind with its answer, a table and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar

import msgspec
from litestar import post
from litestar.params import JSONBody
from piccolo.columns import Integer, Text
from piccolo.table import Table

from mpesa_gateway.daraja.callbacks import CallbackContent, CallbackEvent, CallbackKind
from mpesa_gateway.daraja.exceptions import OutcomeUnknown
from mpesa_gateway.daraja.operations import DarajaCredentials, Operation, response_code
from mpesa_gateway.daraja.wire import InvalidCallback, read_json_leniently, read_text
from mpesa_gateway.http.dependencies import RuntimeDependency
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.ops_contract import Menu, Page, PageRequest, Pages, Permission, Rendered
from mpesa_gateway.plugin import Plugin, Tables, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import INJECTED, Caller, Scope
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials

TICKETS_WRITE = Scope("tickets:write", "sell tickets")
TicketsWrite = Annotated[Caller, INJECTED, TICKETS_WRITE]


class Ticket(Table, tablename="ticket"):
    """A sold ticket; the migration has its constraints."""

    ticket_id = Text(primary_key=True)
    merchant_id = Text()
    env = Text()
    number = Text()
    asked = Integer()


class TicketAsked(CallbackEvent, frozen=True, kw_only=True):
    """Safaricom's validation request for this account number."""

    kind: ClassVar[str] = "ticket.asked"

    number: str


def _read(body: bytes) -> CallbackContent:
    try:
        content = read_json_leniently(body)
    except ValueError:
        raise InvalidCallback("not JSON") from None
    receipt, number = read_text(content, "TransID"), read_text(content, "BillRefNumber")
    if receipt is None or number is None:
        raise InvalidCallback("TransID or BillRefNumber is missing")
    return CallbackContent(receipt, "0", (number,), {"result_desc": "", "number": number})


async def _answer(gateway: Runtime, asked: TicketAsked) -> Mapping[str, Any]:
    is_sold = await gateway.db.fetchval(
        "SELECT true FROM ticket WHERE merchant_id = $1 AND env = $2 AND number = $3",
        asked.merchant_id,
        asked.env,
        asked.number,
    )
    return {"ResultCode": "0" if is_sold else "C2B00012", "ResultDesc": "Accepted" if is_sold else "Rejected"}


async def count(questions: Sequence[TicketAsked], gateway: Runtime) -> None:
    """Count each validation request once, in the transaction that stores the callback."""
    for asked in questions:
        await gateway.db.execute(
            "UPDATE ticket SET asked = asked + 1 WHERE merchant_id = $1 AND env = $2 AND number = $3",
            asked.merchant_id,
            asked.env,
            asked.number,
        )
        await gateway.port(Callbacks).mark_applied(asked.callback_id)


@dataclass(frozen=True)
class Registration:
    """Registration of our validation address."""

    validation_url: str

    def body(self, credentials: DarajaCredentials, _: datetime) -> dict[str, Any]:
        return {"ShortCode": credentials.receiver, "ResponseType": "Cancelled", "ValidationURL": self.validation_url}


def _read_registration(answer: Any) -> str:
    code = response_code(answer)
    if code is None:
        raise OutcomeUnknown("M-Pesa's answer is no acknowledgement")
    return code


REGISTER = Operation(
    name="ticket_register", path="/mpesa/c2b/v2/registerurl", request=Registration, read=_read_registration
)


class TicketCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ticket to sell."""

    number: str


class TicketView(msgspec.Struct, frozen=True):
    """A ticket in the API."""

    id: str
    number: str


@post("/v1/tickets")
async def sell_ticket(
    data: JSONBody[TicketCreate], caller: TicketsWrite, gateway: RuntimeDependency
) -> Success[TicketView]:
    credentials = await gateway.port(Credentials).get(caller.merchant_id, caller.env)
    url = gateway.port(Callbacks).url_for(
        "ticket", env=caller.env, merchant_id=caller.merchant_id, subject_id=caller.merchant_id
    )
    await gateway.daraja.call(REGISTER, credentials.daraja, Registration(url))
    row = Ticket(
        ticket_id=gateway.ids.new("tkt"),
        merchant_id=caller.merchant_id,
        env=caller.env,
        number=data.number,
        asked=0,
    )
    await gateway.db.run(Ticket.insert(row))
    return Success(data=TicketView(row.ticket_id, data.number))


async def show_tickets(visit: PageRequest) -> Rendered:
    """The page at /ops/tickets."""
    rows = await visit.gateway.db.fetch("SELECT * FROM ticket WHERE env = $1 ORDER BY ticket_id DESC", visit.env)
    return Rendered("tickets.html", {"rows": rows})


plugin = Plugin(
    name="tickets",
    summary="Sells tickets, and answers Safaricom which account numbers are one.",
    requires=("credentials", "callbacks"),
    scopes=(TICKETS_WRITE,),
    id_prefixes=(IdPrefix("tkt", "ticket"),),
    routes=(sell_ticket,),
    operations=(REGISTER,),
    callbacks=(
        CallbackKind(
            name="ticket",
            path="ticket/question",
            read=_read,
            event=TicketAsked,
            schema={"type": "object", "description": "Accept or reject money for an account number."},
            answer=_answer,
            answer_schema={"type": "object", "required": ["ResultCode", "ResultDesc"]},
        ),
    ),
    publishes=(TicketAsked,),
    subscribers=(on_event_in_transaction(TicketAsked, count),),
    tables=Tables(models=(Ticket,), migrations="tests.journeys.tickets.migrations"),
    pages=Pages(
        templates="tests.journeys.tickets",
        pages=(
            Page("tickets", "Tickets", show_tickets, Permission.GATEWAY, menu=Menu("Tickets", 90)),
            Page("tickets/{ticket_id}", "Ticket", show_tickets, Permission.GATEWAY, names="tkt"),
        ),
    ),
)
