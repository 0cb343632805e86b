"""A shop in FastAPI whose buyers pay through a mounted gateway, and see it as soon as the money has moved."""

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
"""What is sold, and for how many KES."""

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
    """Something that somebody wants to buy. ``amount`` is in KES."""

    order_id: str
    item: str
    amount: int
    attempt: int
    state: str
    receipt: str | None
    reason: str | None

    @property
    def key(self) -> str:
        """What makes asking for this attempt's money twice the same as once."""
        return f"{self.order_id}-{self.attempt}"


class Orders:
    """The shop's own book, apart from the gateway's."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the book."""
        self._db.close()

    def place(self, order_id: str, item: str) -> Order:
        """Write an order down; the same one again is the one that there is."""
        amount = GOODS[item][1]
        self._db.execute(
            "INSERT INTO orders (order_id, item, amount) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (order_id, item, amount),
        )
        return self.find(order_id)

    def find(self, order_id: str) -> Order:
        """Raises HTTPException (404) for one that nobody placed."""
        columns = "order_id, item, amount, attempt, state, receipt, reason"
        row = self._db.execute(f"SELECT {columns} FROM orders WHERE order_id = ?", (order_id,)).fetchone()  # noqa: S608
        if row is None:
            raise HTTPException(404, "There is no such order.")
        return Order(*row)

    def again(self, order_id: str, attempt: int) -> Order:
        """Another attempt where the last one failed, the same one where nothing was sent; pressing twice makes one."""
        self._db.execute(
            "UPDATE orders SET state = 'asked', attempt = attempt + (state = 'failed'), reason = NULL"
            " WHERE order_id = ? AND attempt = ? AND state IN ('failed', 'unsent')",
            (order_id, attempt),
        )
        return self.find(order_id)

    def was_not_asked(self, order_id: str, attempt: int, reason: str) -> None:
        """The gateway would not, or could not, ask for the money."""
        self._db.execute(
            "UPDATE orders SET state = 'unsent', reason = ? WHERE order_id = ? AND attempt = ? AND state = 'asked'",
            (reason, order_id, attempt),
        )

    def is_paid(self, order_id: str, receipt: str, amount: str) -> None:
        """Money came: it pays the order, or it is more than the order needed."""
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
        """This attempt came to nothing."""
        self._db.execute(
            "UPDATE orders SET state = 'failed', reason = ?"
            " WHERE order_id = ? AND attempt = ? AND state IN ('asked', 'unsent')",
            (reason.replace("_", " "), order_id, attempt),
        )

    def too_much(self) -> list[tuple[str, str, str]]:
        """Receipts of money to give back, with the order and the amount."""
        return list(self._db.execute("SELECT receipt, order_id, amount FROM too_much ORDER BY receipt"))


class Shop:
    """The shop's pages, and what it hears from its gateway."""

    def __init__(self, gateway: Gateway, orders: Orders) -> None:
        self._gateway = gateway
        self._orders = orders
        self.merchant_id = ""
        """Whose credentials the money is asked for with."""
        loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
        self._pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)

    # -- what is heard --------------------------------------------------------------------------------------------

    async def paid(self, event: PaymentCompleted) -> None:
        """Money has moved."""
        if "order" in event.metadata and event.receipt is not None:
            self._orders.is_paid(event.metadata["order"], event.receipt, event.amount)

    async def failed(self, event: PaymentFailed) -> None:
        """An attempt came to nothing."""
        if "order" in event.metadata:
            reason = event.failure_reason or "other"
            self._orders.has_failed(event.metadata["order"], int(event.metadata["attempt"]), reason)

    # -- what is shown and done -----------------------------------------------------------------------------------

    async def shelf(self, request: Request) -> Response:
        """What there is to buy. The form has the name of an order, so that sending it twice buys once."""
        return self._shelf(request, secrets.token_hex(16))

    async def buy(self, request: Request) -> Response:
        """Place the order, ask for its money, and go on to its page."""
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
        """Ask for the money of an order once more, after an attempt that came to nothing."""
        form = await _form(request)
        try:
            phone, attempt = Msisdn.parse(form.get("phone", "")), int(form.get("attempt", ""))
        except ValueError as problem:
            return self._order(request, self._orders.find(order_id), problem=str(problem), status=422)
        return await self._ask(request, self._orders.again(order_id, attempt), phone)

    async def _ask(self, request: Request, order: Order, phone: Msisdn) -> Response:
        if order.state == "asked":
            wanted = PaymentRequest(
                amount=Kes(order.amount),
                phone=phone,
                description=GOODS[order.item][0][:13],
                metadata={"order": order.order_id, "attempt": str(order.attempt)},
            )
            try:
                asked = await self._gateway.port(Payments).request(
                    self.merchant_id, "sandbox", wanted, idempotency_key=order.key
                )
            except ApiError as refused:
                # Nothing was sent, or M-Pesa said no: the buyer may try again, and is asked for the money once.
                self._orders.was_not_asked(order.order_id, order.attempt, refused.message)
            else:
                if asked.payment.failure_reason is not None:
                    self._orders.has_failed(order.order_id, order.attempt, asked.payment.failure_reason)
        return RedirectResponse(f"{_root(request)}/orders/{order.order_id}", 303)

    async def order(self, request: Request, order_id: str) -> Response:
        """How an order stands."""
        return self._order(request, self._orders.find(order_id))

    async def state(self, order_id: str) -> Response:
        """The same for the page's script, which looks every second."""
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
    """The fields of a form."""
    sent = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in sent.items()}


def application(
    gateway: Gateway, orders: Orders, opens: Callable[[Gateway], Awaitable[str]], *, prefix: str = "/payments"
) -> FastAPI:
    """The shop with the gateway mounted below ``prefix``.

    ``opens`` gives the merchant whose shop it is, once the gateway runs. ``orders`` are closed with the shop.
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
