"""What every request has to fulfil before it is routed: a plain address, and a body that comes in time."""

import asyncio
import re
from typing import Any

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.errors import ApiError, ClientDisconnected, NotFound, RequestTimeout
from mpesa_gateway.http.errors import refuse
from mpesa_gateway.http.single_headers import find_repeated_header

_ODD_PATH = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|//|/\.\.?(?:/|\Z)")
"""What no address of ours has: control characters, halves of characters, back slashes, empty and dot segments."""

_ENCODED_SLASH = re.compile(rb"%(?:2f|5c)", re.IGNORECASE)


class RequestGuard:
    """ASGI middleware: another spelling of an address is none of ours, and a body that drips is not waited for.

    The router would take ``//ops`` or ``/%2fops`` for ``/ops``, and with it undo what a proxy in front of us refuses
    by its path.
    """

    def __init__(self, app: ASGIApp, body_timeout: float) -> None:
        """``body_timeout`` is for a whole body, in seconds."""
        self._app = app
        self._body_timeout = body_timeout

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            if _ODD_PATH.search(scope["path"]) or _ENCODED_SLASH.search(scope.get("raw_path") or b""):
                await refuse(send, NotFound("there is nothing at this address: see /schema for what there is"))
                return
            if not scope["query_string"].isascii():
                await refuse(send, ApiError("the query string must be ASCII: percent-encode the rest, as UTF-8"))
                return
            if (repeated := find_repeated_header(scope["headers"])) is not None:
                await refuse(send, ApiError(f"the header {repeated} came more than once: send it once"))
                return
            if _has_body(scope["headers"]):
                receive = _in_time(receive, self._body_timeout)
        await self._app(scope, receive, send)


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any((name == b"content-length" and value != b"0") or name == b"transfer-encoding" for name, value in headers)


def _in_time(receive: Receive, seconds: float) -> Receive:
    """``receive`` for a request whose body is to be whole within so many seconds from now."""
    until = asyncio.get_running_loop().time() + seconds
    is_whole = False

    async def receive_in_time() -> Any:
        nonlocal is_whole
        if is_whole:
            # Nothing but the end of the connection is left to come, and that may take as long as the answer.
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(f"the body did not come within {seconds:g} seconds: send the request again") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the connection ended before the body did")
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time
