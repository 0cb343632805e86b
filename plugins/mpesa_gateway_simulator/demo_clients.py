"""The demo's webhook receiver, its phones and its progress display."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import msgspec
import uvicorn
from litestar.types import Receive, Scope, Send
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from mpesa_gateway.standalone.sample_credentials import CREDENTIALS
from mpesa_gateway.standalone.stage import Api, UnexpectedAnswer

_PATIENCE = 10.0
"""Seconds until an expected change counts as missing."""


def credentials_of(shortcode: str) -> dict[str, Any]:
    """Return the body that stores the sample credentials with this shortcode."""
    return CREDENTIALS | {"mpesa": CREDENTIALS["mpesa"] | {"shortcode": shortcode}}


def expect(what: str, expected: Any, seen: Any) -> None:
    """Raise UnexpectedAnswer unless both are equal."""
    if expected != seen:
        raise UnexpectedAnswer(f"{what}: expected {expected!r}, saw {seen!r}")


@dataclass(frozen=True)
class Delivery:
    """One webhook as received."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return cast("dict[str, Any]", msgspec.json.decode(self.body))

    def is_event_of(self, kind: str, payment_id: str) -> bool:
        return self.event.get("type") == kind and self.event.get("data", {}).get("payment_id") == payment_id


@dataclass
class Receiver:
    """The merchant's server: an HTTP receiver on a free local port."""

    url: str
    deliveries: list[Delivery] = field(default_factory=list[Delivery])

    async def wait_for_webhook(self, kind: str, payment_id: str) -> Delivery:
        async for _ in poll(f"a {kind} webhook"):
            for delivery in self.deliveries:
                if delivery.is_event_of(kind, payment_id):
                    return delivery
        raise AssertionError("poll() raises before it ends")

    async def wait_for_event(self, kind: str, **data: Any) -> Delivery:
        """Wait for a webhook with these values. Raises UnexpectedAnswer."""
        async for _ in poll(f"a {kind} webhook"):
            for delivery in self.deliveries:
                if delivery.event.get("type") == kind and data.items() <= delivery.event.get("data", {}).items():
                    return delivery
        raise AssertionError("poll() raises before it ends")

    def count_webhooks(self, payment_id: str) -> int:
        return sum(delivery.event.get("data", {}).get("payment_id") == payment_id for delivery in self.deliveries)


@asynccontextmanager
async def run_receiver() -> AsyncGenerator[Receiver]:
    listener = socket.create_server(("127.0.0.1", 0))
    receiver = Receiver(f"http://127.0.0.1:{listener.getsockname()[1]}/webhooks")

    async def take(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = cast("dict[str, Any]", await receive())
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        receiver.deliveries.append(Delivery(headers, body))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    config = uvicorn.Config(cast(Any, take), lifespan="off", access_log=False, log_config=None, ws="none")
    server = _QuietServer(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield receiver
    finally:
        server.should_exit = True
        await serving


class _QuietServer(uvicorn.Server):
    """uvicorn's server without its signal handlers: the demo handles Ctrl-C."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def poll(what: str, patience: float = _PATIENCE) -> AsyncGenerator[None]:
    """Yield until the caller breaks. Raises UnexpectedAnswer on timeout."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        yield
        await asyncio.sleep(0.05)
    raise UnexpectedAnswer(f"{what} was expected within {patience:g} seconds and did not come")


class ProgressDisplay:
    """Shows progress: a bar in a terminal, one line for each step in a log."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._number = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)

    @contextmanager
    def live(self) -> Generator[None]:
        if not self._console.is_terminal:
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._progress, self._task = progress, progress.add_task("", total=self._steps)
            yield
            self._progress = None

    @contextmanager
    def step(self, title: str) -> Generator[Callable[[str], None]]:
        """Run one step; yields a function that adds a line to its outcome."""
        self._number += 1
        outcomes: list[str] = []
        if self._progress is not None:
            self._progress.update(self._task, description=title)
        began = time.monotonic()
        try:
            yield outcomes.append
        except UnexpectedAnswer:
            self._console.print(f"[red]✗[/] {self._number}/{self._steps} {title}", highlight=False)
            raise
        milliseconds = round((time.monotonic() - began) * 1000)
        self._console.print(
            f"[green]✓[/] {self._number}/{self._steps} [bold]{title}[/] [dim]({milliseconds} ms)[/]", highlight=False
        )
        for line in outcomes:
            self._console.print(f"      {line}", highlight=False, markup=False, soft_wrap=True)
        if self._progress is not None:
            self._progress.advance(self._task)


class Phones:
    """The payers' phones, through the simulator's control API."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def prompt(self, checkout_request_id: str) -> dict[str, Any]:
        """Raises UnexpectedAnswer."""
        return cast("dict[str, Any]", await self._api.data("GET", f"/control/pushes/{checkout_request_id}"))

    async def answer(self, checkout_request_id: str, answer: str) -> None:
        await self._api.data("POST", f"/control/pushes/{checkout_request_id}/answer", {"answer": answer})

    async def ended(self, checkout_request_id: str) -> dict[str, Any]:
        async for _ in poll("the end of the prompt"):
            push = await self.prompt(checkout_request_id)
            if push["state"] == "ended":
                return push
        raise AssertionError("poll() raises before it ends")

    async def money(self, phone: str, since: datetime) -> list[dict[str, Any]]:
        """Return the ledger entries of a phone, newest first."""
        entries = await self._api.data("GET", f"/control/ledger?phone={phone}")
        return [entry for entry in entries if datetime.fromisoformat(entry["at"]) >= since]

    async def forge(self, checkout_request_id: str, **forged: Any) -> int:
        answer = await self._api.data("POST", f"/control/pushes/{checkout_request_id}/forge", forged)
        return cast(int, answer["status"])

    async def pay(self, phone: str, shortcode: str, account_number: str, amount: int, **more: Any) -> dict[str, Any]:
        body = {"phone": phone, "shortcode": shortcode, "account_number": account_number, "amount": amount}
        return cast("dict[str, Any]", await self._api.data("POST", "/control/c2b", body | more))

    async def confirm_again(self, receipt: str) -> int:
        answer = await self._api.data("POST", f"/control/c2b/{receipt}/confirmation")
        return cast(int, answer["status"])

    async def call_back_again(self, checkout_request_id: str) -> int:
        answer = await self._api.data("POST", f"/control/pushes/{checkout_request_id}/callback")
        return cast(int, answer["status"])


@dataclass(frozen=True)
class Cashiers:
    """Two tills of the merchant, each with its own API key, by key id."""

    tills: Mapping[str, Api]

    async def claim(self, transaction_id: str) -> tuple[str, str]:
        """Claim money at both tills at once; returns the winner's key id and the other's refusal.

        Raises UnexpectedAnswer unless exactly one wins.
        """
        path = f"/v1/transactions/{transaction_id}/allocate"
        answers = await asyncio.gather(
            *(api.data("POST", path, {"note": f"claimed with {key_id}"}) for key_id, api in self.tills.items()),
            return_exceptions=True,
        )
        winners = [
            key_id for key_id, one in zip(self.tills, answers, strict=True) if not isinstance(one, BaseException)
        ]
        refusals = [str(one) for one in answers if isinstance(one, UnexpectedAnswer)]
        expect("winners and refusals", (1, 1), (len(winners), len(refusals)))
        return winners[0], refusals[0]


@dataclass(frozen=True)
class DemoClients:
    """The clients of all roles in the demo, and the progress display."""

    story: ProgressDisplay
    api: Api
    operator: Api
    cashiers: Cashiers
    phones: Phones
    receiver: Receiver
    shortcode: str
    neighbour: Api
    """A second merchant."""

    async def settled(self, payment_id: str, status: str) -> dict[str, Any]:
        async for _ in poll(f"a payment that is {status}"):
            payment = await self.api.data("GET", f"/v1/payments/{payment_id}")
            if payment["status"] == status:
                return cast("dict[str, Any]", payment)
        raise AssertionError("poll() raises before it ends")
