"""Daraja's addresses: its 404 and 405 answers, and its paths at the root of a process.

SDKs join a path to the host of their base URL or to the whole URL. A process with the simulator alone serves both.
"""

import msgspec

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.daraja.client import SIMULATED
from mpesa_gateway_simulator.service import SimulatedDaraja
from mpesa_gateway_simulator.validation import Fault

ROOT = "/simulator"

DARAJA: frozenset[str] = frozenset(
    {
        "/oauth/v1/generate",
        "/mpesa/stkpush/v1/processrequest",
        "/mpesa/stkpushquery/v1/query",
        "/mpesa/transactionstatus/v1/query",
        "/mpesa/reversal/v1/request",
        "/pulltransactions/v1/register",
        "/pulltransactions/v1/query",
        "/mpesa/qrcode/v1/generate",
        "/mpesa/c2b/v1/registerurl",
        "/mpesa/c2b/v2/registerurl",
        "/mpesa/c2b/v1/simulate",
        "/mpesa/c2b/v2/simulate",
    }
)
"""Daraja's paths that the simulator serves."""

OWN = frozenset({"", "control", "outcomes", "web", "part", "changes", "touch", "pay", "hold", "let-go", "turn"})
"""The first path segments of the simulator's pages and control API."""

_REFUSALS = {404: Fault(404, "404.001.01", "Resource not found"), 405: Fault(405, "405.001", "Method Not Allowed")}
_KEPT = frozenset({b"allow", b"connection"})
_SIMULATED = SIMULATED.lower().encode()


class RootRoutes:
    """ASGI middleware that answers unknown addresses and wrong methods as Daraja does."""

    def __init__(self, app: ASGIApp, daraja: SimulatedDaraja, *, is_alone: bool) -> None:
        """``is_alone``: Daraja's addresses are served at the root as well."""
        self._app = app
        self._daraja = daraja
        self._is_alone = is_alone

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = str(scope["path"])
        if scope["type"] != "http" or not (self._is_alone or path.startswith(ROOT + "/")):
            await self._app(scope, receive, send)
            return
        if self._is_alone and path.rstrip("/") in DARAJA:
            # Changed in place: outer middleware reads the route's template from this dictionary.
            scope["path"] = ROOT + path
        elif path.startswith(ROOT + "/") and path.split("/")[2] in OWN:
            await self._app(scope, receive, send)
            return
        is_refused = False

        async def send_as_daraja(message: Message) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                is_refused = all(name.lower() != _SIMULATED for name, _ in message.get("headers", ()))
                if is_refused:
                    kept = [header for header in message.get("headers", ()) if header[0].lower() in _KEPT]
                    await self._refuse(send, _REFUSALS[message["status"]], kept)
            if not is_refused:
                await send(message)

        await self._app(scope, receive, send_as_daraja)

    async def _refuse(self, send: Send, fault: Fault, kept: list[tuple[bytes, bytes]]) -> None:
        body = msgspec.json.encode(await self._daraja.fault_body(fault))
        lines = {"content-type": "application/json", "content-length": str(len(body)), SIMULATED.lower(): "1"}
        headers = [*kept, *((name.encode(), text.encode()) for name, text in lines.items())]
        await send({"type": "http.response.start", "status": fault.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
