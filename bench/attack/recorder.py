"""The application behind an attacked server: it appends each request that reaches it to a file, and answers 200.

The file is what the judge counts. A candidate is one way to serve an ASGI application on a port of loopback:
``python -m bench.attack.recorder <candidate> <port> <file>``. With ``-`` in its place the application is the gateway.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvicorn

from mpesa_gateway.asgi import create
from mpesa_gateway.config import HttpConfig

HEAD_TIMEOUT = 3.0
"""Seconds that each candidate allows for a head, where it can be told."""


class Recorder:
    """ASGI application. Reads each body to its end before it writes the line."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1, encoding="utf-8")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Record one request."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        line = {"method": scope["method"], "path": scope["path"], "headers": headers, "body": body.decode("latin-1")}
        self._file.write(json.dumps(line) + "\n")
        answer = json.dumps({"path": scope["path"], "bytes": len(body)}).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(answer)).encode()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer})


def serve(candidate: str, app: Any, port: int) -> None:
    """Serve the application until stopped."""
    if candidate == "granian":
        from granian.constants import HTTPModes, Interfaces  # noqa: PLC0415 - installed for this candidate only
        from granian.http import HTTP1Settings  # noqa: PLC0415 - as above
        from granian.server.embed import Server  # noqa: PLC0415 - as above

        server = Server(
            app,
            port=port,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=2048,
            backpressure=4096,
            http1_settings=HTTP1Settings(header_read_timeout=int(HEAD_TIMEOUT * 1000), max_buffer_size=32_768),
            log_enabled=False,
        )
        with asyncio.Runner(loop_factory=_uvloop) as runner:
            runner.run(server.serve())
        return
    if candidate == "gateway":
        from mpesa_gateway.http.protocol import ServerConfig  # noqa: PLC0415 - the one that is attacked

        config: uvicorn.Config = ServerConfig(
            app, HttpConfig(head_timeout=HEAD_TIMEOUT), port=port, proxy_headers=False, loop="uvloop"
        )
    else:
        http: Any = {"uvicorn": "httptools", "uvicorn-h11": "h11"}[candidate]
        config = uvicorn.Config(
            app, http=http, ws="none", port=port, proxy_headers=False, access_log=False, log_config=None, loop="uvloop"
        )
    uvicorn.Server(config).run()


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop  # noqa: PLC0415 - not on every platform

    return uvloop.new_event_loop()


if __name__ == "__main__":
    serve(sys.argv[1], create() if sys.argv[3] == "-" else Recorder(Path(sys.argv[3])), int(sys.argv[2]))
