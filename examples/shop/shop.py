"""A shop in FastAPI with a mounted gateway: buyers see a payment as soon as it completes."""

import re
import secrets
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from mpesa_gateway.app import Gateway
from mpesa_gateway.errors import ApiError
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_payments.api import PaymentRequest, Payments
from mpesa_gateway_payments.events import PaymentCompleted, PaymentFailed

GOODS: Mapping[str, tuple[str, int]] = {
    "chai": ("Chai ya maziwa", 50),
    "chapati": ("Chapati, two", 60),
    "unga": ("Unga wa dola, 2 kg", 210),
}
"""The goods, with their price in KES."""

_TABLES = """
CREATE TABLE IF NOT EXISTS orders (
    order_id TEXT PRIMARY KEY,
    item TEXT NOT NULL,
    amount INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 1,
    state TEXT NOT NULL DEFAULT 'asked' CHECK (state IN ('asked', 'unsent', 'failed', 'paid')),
    receipt TEXT,
    reason TEXT
);
CREATE TABLE IF NOT EXISTS too_much (receipt TEXT PRIMARY KEY, order_id TEXT NOT NULL, amount TEXT NOT NULL);
"""

_NAME = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True)
class Order:
    """An order of a buyer. ``amount`` is in KES."""

    order_id: str
    item: str
    amount: int
    attempt: int
    state: str
    receipt: str | None
    reason: str | None

    @property
    def key(self) -> str:
        """The idempotency key of this payment attempt."""
        return f"{self.order_id}-{self.attempt}"


class Orders:
    """The shop's own table, separate from the gateway's."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def place(self, order_id: str, item: str) -> Order:
        """Store an order; an existing one with the same name is returned."""
        amount = GOODS[item][1]
        self._db.execute(
            "INSERT INTO orders (order_id, item, amount) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (order_id, item, amount),
        )
        return self.find(order_id)

    def find(self, order_id: str) -> Order:
        """Raises HTTPException (404) for an unknown order."""
        columns = "order_id, item, amount, attempt, state, receipt, reason"
        row = self._db.execute(f"SELECT {columns} FROM orders WHERE order_id = ?", (order_id,)).fetchone()  # noqa: S608
        if row is None:
            raise HTTPException(404, "There is no such order.")
        return Order(*row)

    def again(self, order_id: str, attempt: int) -> Order:
        """Return a new attempt after a failed one, or the same after an unsent one; a second click adds none."""
        self._db.execute(
            "UPDATE orders SET state = 'asked', attempt = attempt + (state = 'failed'), reason = NULL"
            " WHERE order_id = ? AND attempt = ? AND state IN ('failed', 'unsent')",
            (order_id, attempt),
        )
        return self.find(order_id)

    def was_not_asked(self, order_id: str, attempt: int, reason: str) -> None:
        """Record that the gateway rejected or could not send the request."""
        self._db.execute(
            "UPDATE orders SET state = 'unsent', reason = ? WHERE order_id = ? AND attempt = ? AND state = 'asked'",
            (reason, order_id, attempt),
        )

    def is_paid(self, order_id: str, receipt: str, amount: str) -> None:
        """Record a receipt: it pays the order, or is more than the order needed."""
        self._db.execute(
            "UPDATE orders SET state = 'paid', receipt = ?, reason = NULL WHERE order_id = ? AND receipt IS NULL",
            (receipt, order_id),
        )
        self._db.execute(
            "INSERT INTO too_much (receipt, order_id, amount) SELECT ?1, order_id, ?3 FROM orders"
            " WHERE order_id = ?2 AND receipt <> ?1 ON CONFLICT DO NOTHING",
            (receipt, order_id, amount),
        )

    def has_failed(self, order_id: str, attempt: int, reason: str) -> None:
        """Record a failed attempt."""
        self._db.execute(
            "UPDATE orders SET state = 'failed', reason = ?"
            " WHERE order_id = ? AND attempt = ? AND state IN ('asked', 'unsent')",
            (reason.replace("_", " "), order_id, attempt),
        )

    def too_much(self) -> list[tuple[str, str, str]]:
        """Return the receipts to refund, with the order and the amount."""
        return list(self._db.execute("SELECT receipt, order_id, amount FROM too_much ORDER BY receipt"))


class Shop:
    """The shop's pages and event handlers."""

    def __init__(self, gateway: Gateway, orders: Orders) -> None:
        self._gateway = gateway
        self._orders = orders
        self.merchant_id = ""
        """The merchant that is paid."""
        loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
        self._pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)

    # -- events -------------------------------------------------------------------------------------------------------

    async def paid(self, event: PaymentCompleted) -> None:
        """A payment was completed."""
        if "order" in event.metadata and event.receipt is not None:
            self._orders.is_paid(event.metadata["order"], event.receipt, event.amount)

    async def failed(self, event: PaymentFailed) -> None:
        """A payment failed."""
        if "order" in event.metadata:
            reason = event.failure_reason or "other"
            self._orders.has_failed(event.metadata["order"], int(event.metadata["attempt"]), reason)

    # -- pages and actions --------------------------------------------------------------------------------------------

    async def shelf(self, request: Request) -> Response:
        """The product page. The form contains the order's name, so that sending it twice buys once."""
        return self._shelf(request, secrets.token_hex(16))

    async def buy(self, request: Request) -> Response:
        """Place the order, request its payment, and redirect to its page."""
        form = await _form(request)
        order_id, item = form.get("order_id", ""), form.get("item", "")
        if _NAME.match(order_id) is None or item not in GOODS:
            raise HTTPException(422, "Choose something from the shelf.")
        try:
            phone = Msisdn.parse(form.get("phone", ""))
        except ValueError as problem:
            return self._shelf(request, order_id, chosen=item, problem=str(problem), status=422)
        return await self._ask(request, self._orders.place(order_id, item), phone)

    async def again(self, request: Request, order_id: str) -> Response:
        """Request the payment of an order again, after a failed attempt."""
        form = await _form(request)
        try:
            phone, attempt = Msisdn.parse(form.get("phone", "")), int(form.get("attempt", ""))
        except ValueError as problem:
            return self._order(request, self._orders.find(order_id), problem=str(problem), status=422)
        return await self._ask(request, self._orders.again(order_id, attempt), phone)

    async def _ask(self, request: Request, order: Order, phone: Msisdn) -> Response:
        if order.state == "asked":
            body = PaymentRequest(
                amount=Kes(order.amount),
                phone=phone,
                description=GOODS[order.item][0][:13],
                metadata={"order": order.order_id, "attempt": str(order.attempt)},
            )
            try:
                created = await self._gateway.port(Payments).request(
                    self.merchant_id, "sandbox", body, idempotency_key=order.key
                )
            except ApiError as refused:
                # Nothing was sent, or M-Pesa rejected it: the buyer may retry, and gets one prompt.
                self._orders.was_not_asked(order.order_id, order.attempt, refused.message)
            else:
                if created.payment.failure_reason is not None:
                    self._orders.has_failed(order.order_id, order.attempt, created.payment.failure_reason)
        return RedirectResponse(f"{_root(request)}/orders/{order.order_id}", 303)

    async def order(self, request: Request, order_id: str) -> Response:
        """The page of an order."""
        return self._order(request, self._orders.find(order_id))

    async def state(self, order_id: str) -> Response:
        """The status for the page's script, which polls every second."""
        order = self._orders.find(order_id)
        return JSONResponse({"state": order.state, "attempt": order.attempt}, headers={"Cache-Control": "no-store"})

    def _shelf(
        self, request: Request, order_id: str, *, chosen: str = "chai", problem: str = "", status: int = 200
    ) -> Response:
        return self._show("shelf.html", request, status, goods=GOODS, order_id=order_id, chosen=chosen, problem=problem)

    def _order(self, request: Request, order: Order, *, problem: str = "", status: int = 200) -> Response:
        return self._show("order.html", request, status, order=order, item=GOODS[order.item][0], problem=problem)

    def _show(self, page: str, request: Request, status: int, **values: Any) -> HTMLResponse:
        shown = self._pages.get_template(page).render(root=_root(request), **values)
        return HTMLResponse(shown, status, headers={"Cache-Control": "no-store"})


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form."""
    sent = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in sent.items()}


def application(
    gateway: Gateway, orders: Orders, opens: Callable[[Gateway], Awaitable[str]], *, prefix: str = "/payments"
) -> FastAPI:
    """Return the shop with the gateway mounted below ``prefix``.

    ``opens`` returns the shop's merchant id, once the gateway runs. ``orders`` are closed with the shop.
    """
    shop = Shop(gateway, orders)
    gateway.on(PaymentCompleted)(shop.paid)
    gateway.on(PaymentFailed)(shop.failed)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        with closing(orders):
            async with gateway.running():
                shop.merchant_id = await opens(gateway)
                yield

    app = FastAPI(title="Duka", lifespan=lifespan, openapi_url=None)
    app.add_api_route("/", shop.shelf, response_class=HTMLResponse)
    app.add_api_route("/orders", shop.buy, methods=["POST"], response_class=HTMLResponse)
    app.add_api_route("/orders/{order_id}", shop.order, response_class=HTMLResponse)
    app.add_api_route("/orders/{order_id}/again", shop.again, methods=["POST"], response_class=HTMLResponse)
    app.add_api_route("/orders/{order_id}/state", shop.state)
    app.mount(prefix, gateway.asgi)
    return app
