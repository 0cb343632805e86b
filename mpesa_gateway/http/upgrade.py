"""A request whose end two servers may see in two places, where the one in front of the application is not ours."""

from mpesa_gateway.asgi_types import ASGIApp, Message, Receive, Send
from mpesa_gateway.errors import ApiError


class BodyLost(ApiError):
    """The server has read the body of a request with Upgrade as something else."""


class AnswerOnce:
    """ASGI middleware: a request with Upgrade, with two lengths, or a CONNECT is answered with ``Connection: close``.

    uvicorn with httptools takes the bytes after a head with Upgrade for the next request of the connection: a body
    becomes a request, with headers that no proxy has written. With h11 it takes ``Content-Length`` beside
    ``Transfer-Encoding``. With ``Connection: close`` what follows is never passed on.
    ``mpesa-gateway serve`` needs none of this. A host that serves the gateway by another server wraps its whole
    application: a request to a path of its own would bring the second one along as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass one request on; raises BodyLost out of ``receive`` for a body that the server has not delivered."""
        if scope["type"] != "http" or not _may_be_read_in_two_ways(scope):
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


def _may_be_read_in_two_ways(scope: Message) -> bool:
    if scope["method"] == "CONNECT":
        return True
    names = {name.lower() for name, _ in scope["headers"]}
    return bool(names & {b"upgrade", b"http2-settings"}) or {b"content-length", b"transfer-encoding"} <= names
