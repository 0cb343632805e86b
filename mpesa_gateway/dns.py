"""Name resolution by c-ares.

``getaddrinfo`` would block a thread while a name server hangs.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import aiodns
from aiodns.error import DNSError

if TYPE_CHECKING:
    from urllib3_future.contrib.resolver._async import AsyncBaseResolver
else:
    # niquests vendors urllib3 under varying names.
    from niquests.packages.urllib3.contrib.resolver._async import AsyncBaseResolver

Address = IPv4Address | IPv6Address
Lookup = Callable[[str, int], Awaitable[list[str]]]

_TRY, _TRIES = 2.0, 2
"""Seconds for the first question, doubled for the next, and questions per server."""

_MOST = 512
"""Concurrent look-ups."""


def read_literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


class NameResolver:
    """Asks one question per name at a time, on one thread."""

    def __init__(self, *, timeout: float = 5.0, servers: tuple[str, ...] = ()) -> None:
        """``timeout`` is for a whole look-up. ``servers`` replace the machine's."""
        self._timeout = timeout
        self._servers = servers
        self._resolver: aiodns.DNSResolver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: dict[str, asyncio.Task[list[str]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:  # noqa: ARG002 - signature of Lookup
        """Raise gaierror or TimeoutError."""
        if read_literal(host) is not None:
            return [host]
        name = host.lower()
        if name == "localhost":
            return ["127.0.0.1", "::1"]
        task = self._asked.get(name)
        if task is None:
            if len(self._asked) >= _MOST:
                raise socket.gaierror(socket.EAI_AGAIN, "too many look-ups at the same time")
            task = asyncio.create_task(self._ask(name))
            self._asked[name] = task
            task.add_done_callback(partial(self._done, name))
        # Others may wait for the same question.
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise socket.gaierror(socket.EAI_AGAIN, "look-ups have ended") from None
            raise

    async def close(self) -> None:
        """The next look-up opens a new channel."""
        for task in (waiting := list(self._asked.values())):
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        if self._resolver is not None:
            resolver, self._resolver = self._resolver, None
            await resolver.close()

    def _done(self, name: str, task: "asyncio.Task[list[str]]") -> None:
        self._asked.pop(name, None)
        if not task.cancelled():
            # asyncio logs an exception that is never retrieved.
            task.exception()

    async def _ask(self, name: str) -> list[str]:
        resolver = self._channel()
        try:
            async with asyncio.timeout(self._timeout):
                found = await resolver.getaddrinfo(name, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
        except DNSError as problem:
            raise socket.gaierror(socket.EAI_NONAME, f"DNS: {problem.args[-1]}") from None
        addresses: list[str] = [node.addr[0].decode("ascii") for node in found.nodes]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType] - pycares says `tuple`
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "DNS: no address")
        return list(dict.fromkeys(addresses))

    def _channel(self) -> aiodns.DNSResolver:
        loop = asyncio.get_running_loop()
        if self._resolver is None or self._loop is not loop:
            self._loop = loop
            self._resolver = aiodns.DNSResolver(
                nameservers=list(self._servers) or None,
                loop=loop,
                timeout=_TRY,
                tries=_TRIES,
            )
        return self._resolver


async def system_lookup(host: str, port: int) -> list[str]:
    """Look up without a channel. Raises OSError."""
    names = NameResolver()
    try:
        return await names(host, port)
    finally:
        await names.close()


class ClientResolver(AsyncBaseResolver):
    """Resolver for hosts that the operator configured."""

    protocol = "custom"  # type: ignore[assignment] # an enum in the library
    implementation = "names"

    def __init__(self, lookup: Lookup) -> None:
        super().__init__(None)
        self._lookup = lookup

    def recycle(self) -> "ClientResolver":
        return ClientResolver(self._lookup)

    def is_available(self) -> bool:
        return True

    async def close(self) -> None:  # type: ignore[override] # synchronous in the library
        pass

    async def getaddrinfo(  # type: ignore[override] # the library's signature is older
        self,
        host: Any,
        port: Any,
        family: Any,  # noqa: ARG002 - signature of socket.getaddrinfo
        type: Any,  # noqa: A002 - the same reason
        proto: int = 0,
        flags: int = 0,  # noqa: ARG002 - the same reason
        **_: Any,
    ) -> list[tuple[Any, Any, int, str, tuple[Any, ...]]]:
        name = host.decode("ascii") if isinstance(host, bytes) else str(host)
        return [
            (socket.AF_INET, type, proto, "", (text, int(port)))
            if ":" not in text
            else (socket.AF_INET6, type, proto, "", (text, int(port), 0, 0))
            for text in await self._lookup(name.strip("[]"), int(port))
        ]
