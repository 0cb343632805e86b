"""The application behind an attacked server: it appends each received request to a file and answers 200.

The verdict counts the lines of the file. A candidate is one way to serve an ASGI application on a port of loopback:
``python -m bench.attack.recorder <candidate> <port> <file>``. With ``-`` as the file the application is the gateway.
"""

import asyncio
import json
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import uvicorn

from bench.attack.bounds import CONNECTIONS, SECONDS
from mpesa_gateway.asgi import create
from mpesa_gateway.config import HttpConfig
from mpesa_gateway.http.protocol import ServerConfig


class Recorder:
    """ASGI application. Reads each body to its end before it writes the line."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1, encoding="utf-8")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
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
        if scope["path"] == "/slow":
            await asyncio.sleep(1)
        answer = json.dumps({"path": scope["path"], "bytes": len(body)}).encode()
        if scope["path"] == "/large":
            answer += b" " * 4_000_000
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


def serve(candidate: str, app: Any, port: int, *, is_gateway: bool) -> None:
    """Serve the application until SIGTERM; the gateway with default limits, the recorder with tight ones."""
    bounds = HttpConfig() if is_gateway else HttpConfig(head_timeout=SECONDS, stall_timeout=SECONDS)
    connections = bounds.connections if is_gateway else CONNECTIONS
    if candidate == "granian":
        with asyncio.Runner(loop_factory=_uvloop) as runner:
            runner.run(_serve_by_granian(app, port, bounds, connections))
        return
    common: dict[str, Any] = {"port": port, "proxy_headers": False, "loop": "uvloop", "timeout_keep_alive": 75}
    if candidate == "gateway":
        config: uvicorn.Config = ServerConfig(app, bounds, limit_concurrency=connections, **common)
    else:
        http: Any = {"uvicorn": "httptools", "uvicorn-h11": "h11"}[candidate]
        config = uvicorn.Config(app, http=http, ws="none", access_log=False, log_config=None, **common)
    uvicorn.Server(config).run()


async def _serve_by_granian(app: Any, port: int, bounds: HttpConfig, connections: int) -> None:
    # `pip install granian`: only this candidate needs it, and it is no dependency.
    constants, http, embed = map(import_module, ("granian.constants", "granian.http", "granian.server.embed"))
    server = embed.Server(
        app,
        port=port,
        interface=constants.Interfaces.ASGI,
        http=constants.HTTPModes.http1,
        websockets=False,
        backlog=2048,
        backpressure=connections,
        http1_settings=http.HTTP1Settings(
            header_read_timeout=int(bounds.head_timeout * 1000), max_buffer_size=bounds.max_head_bytes
        ),
        log_enabled=False,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve()


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop  # noqa: PLC0415 - not on every platform

    return uvloop.new_event_loop()


if __name__ == "__main__":
    is_gateway = sys.argv[3] == "-"
    attacked = create() if is_gateway else Recorder(Path(sys.argv[3]))
    serve(sys.argv[1], attacked, int(sys.argv[2]), is_gateway=is_gateway)
