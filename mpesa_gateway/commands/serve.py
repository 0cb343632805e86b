"""``mpesa-gateway serve``: the HTTP API in one process, or in several on one socket."""

import asyncio
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import rich_click as click
import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.session import CONFIG_VARIABLE, CommandFailed, Session, pass_session, run, started
from mpesa_gateway.config import ENVIRONMENT, GatewayConfig
from mpesa_gateway.http.protocol import ServerConfig

log = structlog.get_logger(__name__)

_OTHER_FILES = 400
"""Open files other than clients' connections: Postgres, Valkey, Daraja, webhooks, the log."""

_GRACE = 5
"""Seconds for running requests, added to Daraja's timeout."""


@click.command()
@click.option("--host", help="Address to listen on (http.host).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (http.port); 0 takes a free one.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Number of processes.")
@click.option("--with-worker", is_flag=True, help="Run the queue's worker in the same process too (a small shop).")
@pass_session
def serve(session: Session, host: str | None, port: int | None, workers: int, with_worker: bool) -> None:
    """Serve the HTTP API until stopped (Ctrl-C or SIGTERM)."""
    config = session.config()
    logs.configure(config.logs)
    http = msgspec.structs.replace(
        config.http,
        host=config.http.host if host is None else host,
        port=config.http.port if port is None else port,
    )
    config = msgspec.structs.replace(config, http=http)
    if with_worker:
        config = msgspec.structs.replace(config, worker=msgspec.structs.replace(config.worker, in_process=True))
    Gateway(config)  # raises before anything listens
    with listening(http.host, http.port) as listener:
        config = _at_its_port(config, listener.getsockname()[1])
        if workers == 1:
            run(_serve(config, listener))
        else:
            _serve_many(session, config, listener, workers)


@contextmanager
def listening(host: str, port: int) -> Generator[socket.socket]:
    """Yield a listening socket. Raises CommandFailed."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise CommandFailed(
            f"cannot listen on {host} port {port} ({reason}): stop the program that does, or choose another --port"
        ) from None
    with listener:
        yield listener


def _at_its_port(config: GatewayConfig, port: int) -> GatewayConfig:
    """Set an unset public address to the listening one, so that callbacks arrive here."""
    http = msgspec.structs.replace(config.http, port=port)
    public_url = config.public_url
    if public_url == GatewayConfig().public_url:
        public_url = f"http://127.0.0.1:{port}"
    return msgspec.structs.replace(config, http=http, public_url=public_url)


def connections_within_open_files(wanted: int) -> int:
    """Return how many of ``wanted`` connections the process can open, after raising its limit of open files.

    A connection that the system refuses is a waiting client.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * 5 // 4 + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        more = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        # A service manager may forbid it.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    if soft == resource.RLIM_INFINITY:
        return wanted
    possible = max(1, (soft - _OTHER_FILES) * 4 // 5)
    if possible < wanted:
        log.warning("connections_limited", wanted=wanted, possible=possible, open_files=soft)
    return min(wanted, possible)


_IMPORTS = 60
"""Seconds until a worker process must answer its parent. Imports block it, and after uvicorn's 5 seconds a slow machine
would replace its processes endlessly."""


def _uvicorn_config(app: Any, config: GatewayConfig, **more: Any) -> ServerConfig:
    return ServerConfig(
        app,
        config.http,
        loop="uvloop",
        # The gateway reads X-Forwarded-For itself: security.trusted_proxies is the only list.
        proxy_headers=False,
        limit_concurrency=connections_within_open_files(config.http.connections),
        timeout_keep_alive=75,
        timeout_worker_healthcheck=_IMPORTS,
        timeout_graceful_shutdown=math.ceil(config.daraja.timeout) + _GRACE,
        **more,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, where: str) -> None:
        super().__init__(config)
        self._where = where

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            click.echo(self._where)


async def _serve(config: GatewayConfig, listener: socket.socket) -> None:
    gateway = Gateway(config)
    # uvicorn would turn a refusal at start into a traceback.
    gateway.asgi.build()
    server = _Server(_uvicorn_config(gateway.asgi, config, lifespan="off"), _where(config))
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        if gateway.is_draining or not config.http.drain:
            server.handle_exit(number, None)
            return
        gateway.drain()
        loop.call_later(config.http.drain, server.handle_exit, number, None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    async with started(gateway):
        if not server.should_exit:
            await server.serve([listener])


def _serve_many(session: Session, config: GatewayConfig, listener: socket.socket, workers: int) -> None:
    run(_start_once(config))
    os.environ[CONFIG_VARIABLE] = str(session.config_path or "")
    os.environ[ENVIRONMENT + "PUBLIC_URL"] = config.public_url
    os.environ[ENVIRONMENT + "WORKER__IN_PROCESS"] = str(config.worker.in_process).lower()
    processes = _Processes(
        _uvicorn_config("mpesa_gateway.asgi:create_in_worker", config, factory=True, workers=workers, lifespan="on"),
        [listener],
    )
    processes.drain = config.http.drain
    processes.where = _where(config)
    processes.run()
    if any(process.exitcode == STARTUP_FAILURE for process in processes.processes):
        raise CommandFailed("a serving process could not start: see the log above")


class _Processes(Multiprocess):
    drain = 0.0
    where = ""

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        if self.where and not self.should_exit.is_set() and all(process.is_ready() for process in self.processes):
            click.echo(self.where)
            self.where = ""

    def terminate_all(self) -> None:
        if self.drain:
            for process in self.processes:
                if process.pid is not None and process.exitcode is None:
                    os.kill(process.pid, signal.SIGUSR2)
            time.sleep(self.drain)
        super().terminate_all()


async def _start_once(config: GatewayConfig) -> None:
    """Migrate, and raise every refusal once instead of in each process."""
    worker = msgspec.structs.replace(config.worker, in_process=False)
    async with started(Gateway(msgspec.structs.replace(config, worker=worker))):
        pass


def _where(config: GatewayConfig) -> str:
    host = f"[{config.http.host}]" if ":" in config.http.host else config.http.host
    return f"Serving http://{host}:{config.http.port} (others reach it as {config.public_url})"
