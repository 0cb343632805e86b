"""Protection against request smuggling when the server is not ours."""

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.errors import ApiError


class BodyLost(ApiError):
    """The server lost the body of a request with Upgrade."""


class CloseAfterUpgrade:
    """ASGI middleware: closes the connection after Upgrade, CONNECT or two lengths.

    After Upgrade, uvicorn with httptools parses the body as the next request; with h11 it accepts Content-Length beside
    Transfer-Encoding.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_ambiguous(scope):
            await self._app(scope, receive, send)
            return
        expected = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        is_lost = expected.strip(b"0") != b""

        async def receive_checked() -> Message:
            nonlocal is_lost
            message = await receive()
            if message["type"] == "http.request":
                if message.get("body"):
                    is_lost = False
                elif is_lost and not message.get("more_body", False):
                    raise BodyLost("this server cannot read a body together with Upgrade: send it without `Upgrade`")
            return message

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
                message["headers"] = [*others, (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive_checked, send_last)


def _is_ambiguous(scope: Message) -> bool:
    if scope["method"] == "CONNECT":
        return True
    names = {name.lower() for name, _ in scope["headers"]}
    return bool(names & {b"upgrade", b"http2-settings"}) or {b"content-length", b"transfer-encoding"} <= names
