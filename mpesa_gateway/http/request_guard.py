"""Checks before routing: a canonical path and a timely body."""

import asyncio
import re
from typing import Any

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.errors import ApiError, ClientDisconnected, NotFound, RequestTimeout
from mpesa_gateway.http.errors import refuse
from mpesa_gateway.http.single_headers import find_repeated_header

_NON_CANONICAL = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|//|/\.\.?(?:/|\Z)")
"""Control characters, lone surrogates, backslashes, empty and dot segments."""

_ENCODED_SLASH = re.compile(rb"%(?:2f|5c)", re.IGNORECASE)


class RequestGuard:
    """ASGI middleware: rejects non-canonical paths and slow bodies.

    The router reads ``//ops`` and ``/%2fops`` as ``/ops``, which would bypass a proxy's path rules.
    """

    def __init__(self, app: ASGIApp, body_timeout: float) -> None:
        """``body_timeout`` is seconds for a whole body."""
        self._app = app
        self._body_timeout = body_timeout

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if _NON_CANONICAL.search(scope["path"]) or _ENCODED_SLASH.search(scope.get("raw_path") or b""):
                await refuse(send, NotFound("no such route: see /schema"))
                return
            if not scope["query_string"].isascii():
                await refuse(send, ApiError("the query string must be ASCII: percent-encode the rest, as UTF-8"))
                return
            if (repeated := find_repeated_header(scope["headers"])) is not None:
                await refuse(send, ApiError(f"the header {repeated} is repeated: send it once"))
                return
            if _has_body(scope["headers"]):
                receive = _with_deadline(receive, self._body_timeout)
        await self._app(scope, receive, send)


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any((name == b"content-length" and value != b"0") or name == b"transfer-encoding" for name, value in headers)


def _with_deadline(receive: Receive, seconds: float) -> Receive:
    until = asyncio.get_running_loop().time() + seconds
    is_whole = False

    async def receive_in_time() -> Any:
        nonlocal is_whole
        if is_whole:
            # Only the disconnect follows, so no timeout applies.
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(
                f"the body did not arrive within {seconds:g} seconds: send the request again"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the connection ended before the body")
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time
