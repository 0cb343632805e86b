"""A Daraja that accepts pushes at once and, on request, answers no query; it also receives webhooks."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

_ANSWERS: dict[str, Any] = {
    "/oauth/v1/generate": {"access_token": "token-of-the-bench", "expires_in": "3599"},
    "/mpesa/stkpushquery/v1/query": {
        "errorCode": "500.001.1001",
        "errorMessage": "The transaction is being processed",
        "requestId": "r",
    },
    "/pulltransactions/v1/query": {"ResponseCode": "1001", "ResponseMessage": "No transactions", "Response": [[]]},
}
_QUESTIONS = {"/mpesa/stkpushquery/v1/query", "/pulltransactions/v1/query"}


class HangingDaraja:
    """Serves on one port. With ``hangs`` queries are accepted and never answered."""

    def __init__(self) -> None:
        self.port = 0
        self.hangs = False
        self.hanging = dict.fromkeys(_QUESTIONS, 0)
        """Open queries, by path."""
        self.pushed: dict[str, str] = {}
        """The callback address of each push, by its CheckoutRequestID."""
        self.arrived: dict[str, float] = {}
        """The arrival of each payment's webhook on the clock of ``time.perf_counter``."""
        self._number = 0
        self._arrived = asyncio.Event()

    async def webhook(self, payment_id: str, patience: float) -> float:
        """Return the arrival of a payment's webhook. Raises TimeoutError after ``patience`` seconds."""
        async with asyncio.timeout(patience):
            while payment_id not in self.arrived:
                self._arrived.clear()
                await self._arrived.wait()
        return self.arrived[payment_id]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = head[0].split(" ")[1].partition("?")[0]
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                answer = json.dumps(await self._answer(path, body)).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(answer), answer)
                )
                await writer.drain()
        writer.close()

    async def _answer(self, path: str, body: bytes) -> Any:
        if path == "/hook":
            self.arrived.setdefault(json.loads(body)["data"]["payment_id"], time.perf_counter())
            self._arrived.set()
            return {}
        if path == "/mpesa/stkpush/v1/processrequest":
            self._number += 1
            handle = f"ws_CO_{self._number}"
            self.pushed[handle] = json.loads(body)["CallBackURL"]
            return {"MerchantRequestID": f"m-{self._number}", "CheckoutRequestID": handle, "ResponseCode": "0"}
        if self.hangs and path in _QUESTIONS:
            self.hanging[path] += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.hanging[path] -= 1
        return _ANSWERS[path]


@asynccontextmanager
async def playing() -> AsyncGenerator[HangingDaraja]:
    """Run such a Daraja on a free port of loopback."""
    daraja = HangingDaraja()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        with suppress(asyncio.CancelledError):
            await daraja.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    daraja.port = server.sockets[0].getsockname()[1]
    try:
        yield daraja
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
