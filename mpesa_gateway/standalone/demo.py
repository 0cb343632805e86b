"""The demo: a whole payment played against a running gateway over real HTTP, each step checked against its claim."""

import asyncio
import hashlib
import hmac
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import niquests
import uvicorn
from litestar.types import Receive, Scope, Send
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from standardwebhooks import Webhook

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import MERCHANT_SCOPES

ACTOR = "cli:demo"
"""How the audit log names the demo."""

SANDBOX_PASSKEY = "bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919"
"""Daraja's public passkey for its sandbox shortcode, which everybody's first payment uses."""

SANDBOX_SHORTCODE = "174379"

CREDENTIALS: dict[str, Any] = {
    "provider": "mpesa",
    "mpesa": {
        "env": "sandbox",
        "consumer_key": "demo-consumer-key-1f2e",
        "consumer_secret": "demo-consumer-secret-3c4d",
        "passkey": SANDBOX_PASSKEY,
        "shortcode": SANDBOX_SHORTCODE,
    },
}
"""What `demo` and the printed curl lines store: the sandbox's public ones and, for the simulator, any key pair."""

_PATIENCE = 10.0
"""Seconds until something that should have happened counts as not happening."""

_SILENCE = 1.5
"""Seconds in which a second webhook would have come."""

_STEPS = 9


class NotSo(Exception):
    """A step of the demo is not as it claims. The text says what was expected, and what was seen."""


def expect(what: str, expected: Any, seen: Any) -> None:
    """Raise NotSo unless both are the same."""
    if expected != seen:
        raise NotSo(f"{what}: expected {expected!r}, saw {seen!r}")


@dataclass(frozen=True)
class Delivery:
    """One webhook as the receiver got it."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The body, read."""
        return cast("dict[str, Any]", msgspec.json.decode(self.body))

    def tells(self, kind: str, payment_id: str) -> bool:
        """Whether it is this event of this payment."""
        return self.event.get("type") == kind and self.event.get("data", {}).get("payment_id") == payment_id


@dataclass
class Receiver:
    """The merchant's own server: a real HTTP receiver on a free port of this machine."""

    url: str
    deliveries: list[Delivery] = field(default_factory=list[Delivery])

    async def first(self, kind: str, payment_id: str) -> Delivery:
        """The webhook that tells of this, waited for. Raises NotSo."""
        async for _ in waiting(f"a {kind} webhook"):
            for delivery in self.deliveries:
                if delivery.tells(kind, payment_id):
                    return delivery
        raise AssertionError

    def about(self, payment_id: str) -> int:
        """How many webhooks have told of this payment."""
        return sum(delivery.event.get("data", {}).get("payment_id") == payment_id for delivery in self.deliveries)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver for the length of the block."""
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
    """uvicorn's server without its signal handlers: Ctrl-C belongs to the demo."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def waiting(what: str, patience: float = _PATIENCE) -> AsyncIterator[None]:
    """Go round until the caller has what it waits for. Raises NotSo when it takes too long."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        yield
        await asyncio.sleep(0.05)
    raise NotSo(f"{what} was expected within {patience:g} seconds and did not come")


class Api:
    """The gateway as the merchant's program calls it."""

    def __init__(self, http: niquests.AsyncSession, base: str, key: Secret | None = None) -> None:
        self._http = http
        self._base = base.rstrip("/")
        self._key = key

    async def call(
        self, method: str, path: str, body: Any = None, *, status: int = 200, **headers: str
    ) -> dict[str, Any]:
        """Call and read the answer. Raises NotSo for another status than the one expected."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self._key is not None:
            sent["X-API-Key"] = self._key.reveal()
        content = None
        if body is not None:
            content, sent["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            answer = await self._http.request(method, self._base + path, data=content, headers=sent, timeout=_PATIENCE)
        except (niquests.RequestException, OSError) as problem:
            raise NotSo(f"{method} {path} was expected to answer, and did not: {type(problem).__name__}") from None
        content = answer.content or b""
        if answer.status_code != status:
            shown = content[:500].decode(errors="replace")
            raise NotSo(f"{method} {path}: expected status {status}, saw {answer.status_code}: {shown}")
        return cast("dict[str, Any]", msgspec.json.decode(content)) if content else {}

    async def data(self, method: str, path: str, body: Any = None, *, status: int = 200, **headers: str) -> Any:
        """The ``data`` of a successful answer."""
        return (await self.call(method, path, body, status=status, **headers))["data"]


class Telling:
    """Shows how far the story is: a bar for people, one line a step for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)

    @contextmanager
    def live(self) -> Iterator[None]:
        """The bar, for the length of the block, where there is a terminal to draw it on."""
        if not self._console.is_terminal:
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._progress, self._task = progress, progress.add_task("", total=_STEPS)
            yield
            self._progress = None

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """One step; what it is called with is shown as its outcome."""
        self._number += 1
        said: list[str] = []
        if self._progress is not None:
            self._progress.update(self._task, description=title)
        began = time.monotonic()
        try:
            yield said.append
        except NotSo:
            self._console.print(f"[red]✗[/] {self._number}/{_STEPS} {title}", highlight=False)
            raise
        milliseconds = round((time.monotonic() - began) * 1000)
        self._console.print(
            f"[green]✓[/] {self._number}/{_STEPS} [bold]{title}[/] [dim]({milliseconds} ms)[/]", highlight=False
        )
        for line in said:
            self._console.print(f"      {line}", highlight=False, markup=False, soft_wrap=True)
        if self._progress is not None:
            self._progress.advance(self._task)


class Phones:
    """The payers' phones, as the simulator's control API shows and answers them."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def prompt(self, checkout_request_id: str) -> dict[str, Any]:
        """The prompt that this push put on a phone, waited for. Raises NotSo."""
        async for _ in waiting("a prompt on the simulated phone"):
            pass
        raise AssertionError


async def play(gateway: Gateway, console: Console) -> None:
    """Tell the whole story against the gateway that runs with this configuration. Raises NotSo.

    ``gateway`` is a started one on the same database: it makes the demo's merchant and key.
    """
    story = Telling(console)
    with story.live():
        async with niquests.AsyncSession(disable_http3=True) as http, receiving() as receiver:
            http.trust_env = False
            merchant = await gateway.merchants.create("Demo story", actor=ACTOR)
            _, key = await gateway.api_keys.create(
                merchant.merchant_id, name="demo", scopes=MERCHANT_SCOPES, env="sandbox", actor=ACTOR
            )
            api = Api(http, gateway.config.public_url, key)
            phones = Phones(Api(http, gateway.config.daraja.sandbox_url))
            await _tell(story, api, phones, receiver)
            await gateway.merchants.deactivate(merchant.merchant_id, actor=ACTOR)
