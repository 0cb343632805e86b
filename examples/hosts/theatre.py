"""A theatre that sells seats: a table in its own Postgres, by its own Piccolo, and a gateway that it asks for money."""

import secrets
from typing import Any

from piccolo.columns import Integer, Text
from piccolo.engine.postgres import PostgresEngine
from piccolo.table import Table

from mpesa_gateway.app import Gateway
from mpesa_gateway.money import Kes
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_credentials.schemas import MpesaFields, SetProvider
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_ops.api import HostOperator, OperatorLogin
from mpesa_gateway_payments.api import PaymentRequest, Payments
from mpesa_gateway_payments.events import PaymentCompleted

PRICE = 500
"""What a seat costs, in KES."""


class Ticket(Table, tablename="ticket"):
    """A seat that somebody wants. The theatre's own table, in its own database, with nothing of the gateway's in it."""

    ticket_id = Text(primary_key=True)
    seat = Integer()
    receipt = Text(null=True, default=None)


class Theatre:
    """Sells seats. ``database_url`` is the theatre's own database; ``merchant_id`` is whose till the money goes to."""

    def __init__(self, gateway: Gateway, database_url: str) -> None:
        self.gateway = gateway
        self.merchant_id = ""
        self.staff_password = secrets.token_urlsafe()
        self._engine = PostgresEngine(config={"dsn": database_url})
        Ticket._meta.db = self._engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - or a piccolo_conf.py
        gateway.on(PaymentCompleted)(self.seat_is_paid)
        gateway.port(OperatorLogin).signed_in_by(self.is_staff)

    async def opens(self) -> None:
        """Called once the gateway runs: the theatre's table, and the theatre as the gateway knows it."""
        await Ticket.create_table(if_not_exists=True)
        known = (await self.gateway.merchants.page(1)).rows
        merchant = known[0] if known else await self.gateway.merchants.create("Theatre", actor="theatre")
        caller = Caller(merchant.merchant_id, "", frozenset(), "sandbox", by="theatre")
        await self.gateway.port(CredentialStore).store(caller, SetProvider(provider="mpesa", mpesa=SANDBOX))
        self.merchant_id = merchant.merchant_id

    async def sells(self, seat: int, phone: str) -> dict[str, Any]:
        """Write the ticket down, then ask for its money: no HTTP in between. Raises ValueError for no phone number."""
        wanted = Msisdn.parse(phone)
        ticket = Ticket(ticket_id=secrets.token_hex(8), seat=seat)
        await ticket.save()
        asked = await self.gateway.port(Payments).request(
            self.merchant_id,
            "sandbox",
            PaymentRequest(amount=Kes(PRICE), phone=wanted, metadata={"ticket": ticket.ticket_id}),
            idempotency_key=ticket.ticket_id,
        )
        return {"ticket": ticket.ticket_id, "payment": asked.payment.id}

    async def shows(self, ticket_id: str) -> dict[str, Any] | None:
        """A ticket, with its receipt once it is paid; None for one that there is not."""
        found: dict[str, Any] | None = await Ticket.select().where(Ticket.ticket_id == ticket_id).first()
        return found

    async def seat_is_paid(self, event: PaymentCompleted) -> None:
        """Heard at least once, after commit, in a worker: the second time changes nothing."""
        ticket_id = event.metadata.get("ticket", "")
        await Ticket.update({Ticket.receipt: event.receipt}).where(
            (Ticket.ticket_id == ticket_id) & Ticket.receipt.is_null()
        )

    async def is_staff(self, scope: Any) -> HostOperator | None:
        """Asked about every request to the operators' pages: who has the theatre's badge is its manager there."""
        badge = f"badge={self.staff_password}".encode()
        cookies = [value for name, value in scope["headers"] if name == b"cookie"]
        has_it = any(secrets.compare_digest(badge, each.strip()) for line in cookies for each in line.split(b";"))
        return HostOperator(name="manager", role=Role.ADMIN) if has_it else None


SANDBOX = MpesaFields(
    env="sandbox",
    consumer_key="a-consumer-key-of-nobody",
    consumer_secret="a-consumer-secret-of-nobody",  # noqa: S106 - the simulator takes any
    passkey="bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919",
    shortcode="174379",
)
"""The sandbox's published shortcode and passkey; the simulator takes any key and secret."""
