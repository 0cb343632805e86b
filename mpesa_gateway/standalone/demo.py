"""The demo: a whole payment played against a running gateway over real HTTP, each step checked against its claim."""

import asyncio
import hashlib
import hmac
import socket
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import niquests
import uvicorn
from litestar.types import Receive, Scope, Send
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from standardwebhooks import Webhook, WebhookVerificationError

from mpesa_gateway.app import Gateway
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import MERCHANT_SCOPES
from mpesa_gateway.standalone.sandbox import ASKING_PHONE, CREDENTIALS, SANDBOX_SHORTCODE

ACTOR = "cli:demo"
"""How the audit log names the demo."""

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
        raise AssertionError("waiting() raises before it ends")

    def about(self, payment_id: str) -> int:
        """How many webhooks have told of this payment."""
        return sum(delivery.event.get("data", {}).get("payment_id") == payment_id for delivery in self.deliveries)


@asynccontextmanager
async def receiving() -> AsyncGenerator[Receiver]:
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
    def capture_signals(self) -> Generator[None]:
        yield


async def waiting(what: str, patience: float = _PATIENCE) -> AsyncGenerator[None]:
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
    def live(self) -> Generator[None]:
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
    def step(self, title: str) -> Generator[Callable[[str], None]]:
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
        """The prompt that a push put on a phone. Raises NotSo."""
        return cast("dict[str, Any]", await self._api.data("GET", f"/control/pushes/{checkout_request_id}"))

    async def answer(self, checkout_request_id: str, answer: str) -> None:
        """Pay, or cancel, as a finger on the phone would."""
        await self._api.data("POST", f"/control/pushes/{checkout_request_id}/answer", {"answer": answer})

    async def call_back_again(self, checkout_request_id: str) -> int:
        """Let Daraja repeat its callback; gives the status that the gateway answered with."""
        answer = await self._api.data("POST", f"/control/pushes/{checkout_request_id}/callback")
        return cast(int, answer["status"])


@dataclass(frozen=True)
class Cast:
    """Who takes part: the merchant's program, its server, and the payers."""

    story: Telling
    api: Api
    phones: Phones
    receiver: Receiver


async def play(gateway: Gateway, console: Console) -> None:
    """Tell the whole story against the gateway that runs with this configuration. Raises NotSo.

    ``gateway`` is a started one on the same database: it makes the demo's merchant and key, and at the end, when
    all of it was so, deactivates them.
    """
    async with niquests.AsyncSession(disable_http3=True) as http, receiving() as receiver:
        http.trust_env = False
        merchant = await gateway.merchants.create("Demo story", actor=ACTOR)
        _, key = await gateway.api_keys.create(
            merchant.merchant_id, name="demo", scopes=MERCHANT_SCOPES, env="sandbox", actor=ACTOR
        )
        story = Telling(console)
        players = Cast(
            story,
            Api(http, gateway.config.public_url, key),
            Phones(Api(http, gateway.config.daraja.sandbox_url)),
            receiver,
        )
        with story.live():
            await _tell(players)
        await gateway.merchants.deactivate(merchant.merchant_id, actor=ACTOR)


async def _tell(players: Cast) -> None:
    await _store_credentials(players)
    secret = await _set_webhook(players)
    payment = await _request(players)
    payment = await _pay(players, payment)
    await _verify_webhook(players, payment, secret)
    cancelled = await _cancel(players)
    await _repeat_callback(players, payment)
    await _list(players, payment, cancelled)


async def _store_credentials(players: Cast) -> None:
    with players.story.step("Credentials stored, and shown masked") as say:
        given = CREDENTIALS["mpesa"]
        masked = {name: f"****{given[name][-4:]}" for name in ("consumer_key", "consumer_secret", "passkey")}
        summary = {"env": "sandbox", "shortcode": SANDBOX_SHORTCODE, **masked}
        stored = await players.api.data("PUT", "/v1/merchant/providers", CREDENTIALS)
        expect("what is answered to storing", {"provider": "mpesa", "config_summary": summary}, stored)
        shown = await players.api.data("GET", "/v1/merchant/providers")
        expect("what is shown afterwards", [{"provider": "mpesa", "config_summary": summary}], shown)
        verified = await players.api.data("POST", "/v1/merchant/providers/mpesa/verify")
        expect("what verifying finds wrong", [], [check for check in verified["checks"] if not check["ok"]])
        say(f"consumer_secret {masked['consumer_secret']}, passkey {masked['passkey']}; a token was fetched with them")


async def _set_webhook(players: Cast) -> Secret:
    with players.story.step("Webhook set, its secret shown once") as say:
        endpoint = await players.api.data("PUT", "/v1/merchant/webhook", {"webhook_url": players.receiver.url})
        expect("the webhook's address", players.receiver.url, endpoint["webhook_url"])
        secret = Secret(endpoint["webhook_secret"])
        expect("how the secret starts", "whsec_", secret.reveal()[:6])
        say(f"{endpoint['webhook_url']}, secret {secret.masked}")
        return secret


async def _create(players: Cast, amount: int) -> dict[str, Any]:
    body = {"amount": amount, "currency": "KES", "provider": "mpesa", "phone": ASKING_PHONE}
    key = {"Idempotency_Key": f"demo-{amount}"}
    payment = await players.api.data("POST", "/v1/payments", body, status=201, **key)
    expect("the new payment's status", "pending", payment["status"])
    expect("the start of Daraja's handle", "ws_CO_", str(payment["provider_ref"])[:6])
    again = await players.api.data("POST", "/v1/payments", body, status=200, **key)
    expect("the payment for the same Idempotency-Key", payment["id"], again["id"])
    return cast("dict[str, Any]", payment)


async def _request(players: Cast) -> dict[str, Any]:
    with players.story.step("Payment of KES 500 asked for: pending") as say:
        payment = await _create(players, 500)
        say(f"{payment['id']}, and the same again for the same Idempotency-Key")
    with players.story.step("Prompt on the simulated phone") as say:
        prompt = await players.phones.prompt(payment["provider_ref"])
        seen = {name: prompt[name] for name in ("amount", "phone", "receiver", "reference", "state")}
        expect(
            "the prompt",
            {
                "amount": 500,
                "phone": ASKING_PHONE,
                "receiver": SANDBOX_SHORTCODE,
                "reference": payment["reference"],
                "state": "open",
            },
            seen,
        )
        say(f"Pay KES 500 to {SANDBOX_SHORTCODE}, account {payment['reference']}? Enter PIN")
    return payment


async def _ended(players: Cast, payment_id: str) -> dict[str, Any]:
    """The payment once it is not pending any more. Raises NotSo."""
    async for _ in waiting("the end of the payment"):
        payment = await players.api.data("GET", f"/v1/payments/{payment_id}")
        if payment["status"] != "pending":
            return cast("dict[str, Any]", payment)
    raise AssertionError("waiting() raises before it ends")


async def _pay(players: Cast, payment: dict[str, Any]) -> dict[str, Any]:
    with players.story.step("Paid: the callback completes it, with its receipt") as say:
        await players.phones.answer(payment["provider_ref"], "pay")
        ended = await _ended(players, payment["id"])
        expect("the status", "completed", ended["status"])
        prompt = await players.phones.prompt(payment["provider_ref"])
        expect("the receipt, as M-Pesa has it", prompt["receipt"], ended["receipt"])
        expect("the amount", "500.00", ended["amount"])
        say(f"receipt {ended['receipt']}; timeline: {', '.join(step['kind'] for step in ended['timeline'])}")
        return ended


async def _verify_webhook(players: Cast, payment: dict[str, Any], secret: Secret) -> None:
    with players.story.step("Webhook received, both its signatures verified") as say:
        delivery = await players.receiver.first("payment.completed", payment["id"])
        headers = dict(delivery.headers)
        try:
            Webhook(secret.reveal()).verify(delivery.body, headers)
        except WebhookVerificationError as problem:
            raise NotSo(
                f"the standardwebhooks library was expected to accept the webhook, and says: {problem}"
            ) from None
        signed = f"{headers['x-payments-timestamp']}.".encode() + delivery.body
        by_hand = "sha256=" + hmac.new(secret.reveal().encode(), signed, hashlib.sha256).hexdigest()
        expect("X-Payments-Signature", by_hand, headers.get("x-payments-signature"))
        expect("X-Event-Type", "payment.completed", headers.get("x-event-type"))
        data = delivery.event["data"]
        expect("the receipt in the webhook", payment["receipt"], data["receipt"])
        expect("the amount in the webhook", "500.00", data["amount"])
        say(f"{headers['webhook-id']}: standardwebhooks and X-Payments-Signature agree")


async def _cancel(players: Cast) -> dict[str, Any]:
    with players.story.step("A payer who cancels: failed, and the merchant hears of it") as say:
        payment = await _create(players, 250)
        await players.phones.answer(payment["provider_ref"], "cancel")
        ended = await _ended(players, payment["id"])
        expect("the status", "failed", ended["status"])
        expect("the reason", "cancelled_by_user", ended["failure_reason"])
        expect("the receipt", None, ended["receipt"])
        delivery = await players.receiver.first("payment.failed", payment["id"])
        expect("the reason in the webhook", "cancelled_by_user", delivery.event["data"]["failure_reason"])
        say(f"{payment['id']}: {ended['failure_reason']} ({ended['result_desc']})")
        return ended


async def _repeat_callback(players: Cast, payment: dict[str, Any]) -> None:
    with players.story.step("The same callback again changes nothing") as say:
        status = await players.phones.call_back_again(payment["provider_ref"])
        expect("the answer to the repeated callback", 200, status)
        await asyncio.sleep(_SILENCE)
        now = await players.api.data("GET", f"/v1/payments/{payment['id']}")
        for name in ("status", "receipt", "completed_at", "updated_at", "timeline"):
            expect(f"`{name}` after the repetition", payment[name], now[name])
        expect("webhooks about this payment", 1, players.receiver.about(payment["id"]))
        deliveries = await players.api.data("GET", f"/v1/webhooks/logs?payment_id={payment['id']}")
        expect("deliveries in the log", ["delivered"], [delivery["status"] for delivery in deliveries])
        say("answered 200; status, receipt, updated_at and timeline as before; still one webhook")


async def _list(players: Cast, payment: dict[str, Any], cancelled: dict[str, Any]) -> None:
    with players.story.step("Listed and searched") as say:
        page = await players.api.call("GET", "/v1/payments?count=true")
        expect("the list, newest first", [cancelled["id"], payment["id"]], [each["id"] for each in page["data"]])
        expect("the count", 2, page["meta"]["total"])
        for query, found in (
            ("status=completed", payment),
            ("status=failed", cancelled),
            (f"search={payment['receipt']}", payment),
            (f"reference={cancelled['reference']}", cancelled),
            ("min_amount=300", payment),
        ):
            listed = await players.api.data("GET", f"/v1/payments?{query}")
            expect(f"what ?{query} finds", [found["id"]], [each["id"] for each in listed])
        listed = await players.api.data("GET", f"/v1/payments?phone={ASKING_PHONE}")
        expect("how many the payer's number finds", 2, len(listed))
        say("by status, receipt, reference, amount and phone")
