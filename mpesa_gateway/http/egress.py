"""Calls out to addresses that merchants chose: never into our own network, whatever a name resolves to."""

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

import niquests

from mpesa_gateway.http.place import aside

if TYPE_CHECKING:
    from urllib3_future.contrib.resolver._async import AsyncBaseResolver
else:
    # Under whichever name niquests itself has it: as urllib3 where it took that over, as urllib3_future elsewhere.
    from niquests.packages.urllib3.contrib.resolver._async import AsyncBaseResolver

Address = IPv4Address | IPv6Address
Lookup = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to the addresses that DNS gives, as text."""

Reason = Literal["refused", "dns", "connect", "tls", "too_slow", "reset", "bad_answer"]

LONGEST_URL = 2048
_READ = 65_536
"""Bytes of an answer that are read; the rest is left where it is."""

SHOWN = 1024
"""Characters of an answer that are kept."""

_NEVER = tuple(
    ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "3fff::/20", "100::/64", "2001::/23")
)
"""Ranges that are not out in the Internet, whatever this release of Python's own tables say (IANA's registries)."""

_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_NUMERIC = re.compile(r"(0x[0-9a-f]+|[0-9]+)(\.(0x[0-9a-f]*|[0-9]*))*\.?\Z", re.IGNORECASE)
_HOST = re.compile(
    r"(?=.{1,253}\Z)([A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)(\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\Z"
)


class EgressFailed(Exception):
    """No answer came back. ``reason`` is a stable word; the text is fit for the merchant's eyes."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


class Forbidden(OSError):
    """A name resolved to an address that we do not call."""


@dataclass(frozen=True)
class Answer:
    """What the other side said: its HTTP status, how long it took in milliseconds, and how its body begins."""

    status: int
    ms: int
    body_start: str


def is_public(address: Address) -> bool:
    """Whether an address is out in the Internet: none of ours, none of the link, none in another's clothes."""
    inner = _embedded(address)
    if inner is not None:
        return False if isinstance(address, IPv6Address) else is_public(inner)
    if any(address.version == network.version and address in network for network in _NEVER):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address carries inside: mapped, 6to4, Teredo, NAT64, compatible."""
    if not isinstance(address, IPv6Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or address in _NAT64_LOCAL or int(address) >> 32 == 0:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def check_url(url: str, *, allow_loopback: bool) -> None:
    """Whether an address may be called at all. Raises ValueError, saying what to send instead.

    ``allow_loopback`` is for the sandbox: then http is fine, for this machine itself.
    """
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError(f"must be an https address of at most {LONGEST_URL} printable ASCII characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("must be an https address such as https://shop.example.co.ke/mpesa") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password")
    if parts.fragment:
        raise ValueError("must not contain a fragment (#…)")
    literal = _literal(host)
    is_loopback = host == "localhost" or (literal is not None and literal.is_loopback)
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_loopback and is_loopback):
        raise ValueError("must be an https address (http only for this machine itself, in the sandbox)")
    if port == 0:
        raise ValueError("must not name port 0")
    if is_loopback and allow_loopback:
        return
    if "[" in parts.netloc and not isinstance(literal, IPv6Address):
        raise ValueError("must have nothing but an IPv6 address in brackets")
    _check_host(host, literal)


def _check_host(host: str, literal: Address | None) -> None:
    if host == "localhost" or (literal is not None and literal.is_loopback):
        raise ValueError("must not name this machine: use an address that the Internet can reach")
    if literal is not None:
        if not is_public(literal):
            raise ValueError("must not name a private, local or reserved address")
    elif _NUMERIC.match(host):
        raise ValueError("must name its host, or spell its address in the usual way")
    elif not _HOST.match(host):
        raise ValueError("must name a host such as shop.example.co.ke (an international name in its xn-- form)")


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


_LOOKUPS = 64
"""Names that one process looks up at the same time."""


async def system_lookup(host: str, port: int) -> list[str]:
    """The machine's own resolver. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class SystemLookup:
    """The machine's own resolver, in threads of its own, with one question for each name at a time.

    A name whose DNS is slow takes one thread, however many calls wait for it. The event loop's few threads would be
    all taken by a few such names.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        self._asked: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of a host. Raises OSError."""
        if _literal(host) is not None:
            return [host]
        name = (host, port)
        found = self._asked.get(name)
        if found is None:
            found = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)
            self._asked[name] = found
            found.add_done_callback(partial(self._done, name))
        # A caller that gives up does not end the question: others may wait for the same name.
        return await asyncio.shield(found)

    def close(self) -> None:
        """Take no more questions; those under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, name: tuple[str, int], found: "asyncio.Future[list[str]]") -> None:
        self._asked.pop(name, None)
        if not found.cancelled():
            # Read here, or asyncio complains where every caller has given up.
            found.exception()


def _look_up(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class GuardedResolver(AsyncBaseResolver):
    """Resolves a name once and hands over only addresses that we call: what was checked is what is connected to.

    One forbidden address among the answers refuses them all.
    """

    protocol = "custom"  # type: ignore[assignment]
    implementation = "guarded"

    def __init__(self, lookup: Lookup, *, allow_loopback: bool) -> None:
        super().__init__(None)
        self._lookup = lookup
        self._allow_loopback = allow_loopback

    def recycle(self) -> "GuardedResolver":
        """Another one like this."""
        return GuardedResolver(self._lookup, allow_loopback=self._allow_loopback)

    def is_available(self) -> bool:
        """Always: it keeps nothing open."""
        return True

    async def close(self) -> None:  # type: ignore[override]
        """Nothing to close."""

    async def getaddrinfo(  # type: ignore[override]
        self,
        host: Any,
        port: Any,
        family: Any,  # noqa: ARG002 - socket.getaddrinfo's shape
        type: Any,  # noqa: A002 - likewise
        proto: int = 0,
        flags: int = 0,  # noqa: ARG002 - likewise
        **_: Any,
    ) -> list[tuple[Any, Any, int, str, tuple[Any, ...]]]:
        """As socket.getaddrinfo. Raises Forbidden (an OSError) for an address that we do not call."""
        name = host.decode("ascii") if isinstance(host, bytes) else str(host)
        addresses = [ip_address(text.partition("%")[0]) for text in await self._lookup(name.strip("[]"), int(port))]
        for address in addresses:
            if not (is_public(address) or (self._allow_loopback and address.is_loopback)):
                raise Forbidden("the name resolves to a private, local or reserved address")
        return [
            (socket.AF_INET, type, proto, "", (str(address), int(port)))
            if address.version == 4
            else (socket.AF_INET6, type, proto, "", (str(address), int(port), 0, 0))
            for address in addresses
        ]


class Egress:
    """Posts to merchants. One session for the Internet, one that may also call this machine, for the sandbox."""

    def __init__(self, *, timeout: float = 10.0, lookup: Lookup | None = None, connections: int = 200) -> None:
        """``timeout`` is the whole time for one call, in seconds.

        ``connections`` bounds the hosts that connections are kept to, and those to one host. The library lets a call
        that finds no room wait for another to end, and many merchants may have one host: it must be more than there
        are calls at a time.
        """
        self._timeout = timeout
        self._lookup = lookup
        self._connections = connections
        self._sessions: dict[bool, niquests.AsyncSession] = {}
        self._own_lookup: SystemLookup | None = None

    async def start(self) -> None:
        """Make the sessions; nothing is connected yet."""
        lookup = self._lookup or SystemLookup()
        self._own_lookup = lookup if isinstance(lookup, SystemLookup) else None
        for allow_loopback in (False, True):
            session = niquests.AsyncSession(
                # The same class under the other of the library's two names.
                resolver=cast("Any", GuardedResolver(lookup, allow_loopback=allow_loopback)),
                retries=0,
                disable_http3=True,
                pool_connections=self._connections,
                pool_maxsize=self._connections,
                allow_incoming_cookies=False,
                revocation_configuration=None,
            )
            session.trust_env = False
            self._sessions[allow_loopback] = session

    async def stop(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()
        if self._own_lookup is not None:
            self._own_lookup.close()

    async def post(self, url: str, *, body: bytes, headers: Mapping[str, str], allow_loopback: bool) -> Answer:
        """POST once. No redirect is followed, no cookie kept, no proxy used. Raises EgressFailed."""
        try:
            check_url(url, allow_loopback=allow_loopback)
        except ValueError as problem:
            raise EgressFailed("refused", f"the address {problem}") from None
        began = time.perf_counter()
        try:
            # The library's own read timeout starts anew with each byte.
            async with asyncio.timeout(self._timeout):
                with aside():
                    status, start = await self._exchange(self._sessions[allow_loopback], url, body, headers)
        except TimeoutError:
            raise EgressFailed("too_slow", f"no complete answer within {self._timeout:g} seconds") from None
        except Exception as problem:  # noqa: BLE001 - any error of the library is a failed attempt
            raise _failure(problem) from None
        return Answer(status, int((time.perf_counter() - began) * 1000), start)

    async def _exchange(
        self, session: niquests.AsyncSession, url: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, str]:
        response = await session.post(
            url,
            data=body,
            headers=dict(headers),
            allow_redirects=False,
            stream=True,
            timeout=self._timeout,
        )
        read = b""
        is_whole = False
        try:
            chunks = await response.iter_content(4096)
            async for chunk in chunks:
                read += chunk
                if len(read) >= _READ:
                    break
            else:
                is_whole = True
        finally:
            if not is_whole:
                # What is left unread would be taken for the next answer on this connection.
                await response.close()
        return response.status_code or 0, read[: SHOWN * 4].decode("utf-8", "replace").replace("\x00", "")[:SHOWN]


def _failure(problem: BaseException) -> EgressFailed:
    """The stable word for what went wrong, from the whole chain of causes."""
    names: set[str] = set()
    waiting: list[Any] = [problem]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, Forbidden):
            return EgressFailed("refused", "the address resolves to a private, local or reserved address")
        names |= {kind.__name__ for kind in type(current).__mro__}
        waiting += [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
    for found, reason, text in (
        ({"gaierror", "NameResolutionError"}, "dns", "the host's name could not be resolved"),
        ({"SSLError", "SSLCertVerificationError", "CertificateError"}, "tls", "TLS failed: check the certificate"),
        # NewConnectionError is a kind of ConnectTimeoutError to the library: the narrower one first.
        ({"NewConnectionError", "ConnectionRefusedError"}, "connect", "nothing took the connection"),
        ({"ConnectTimeout", "ConnectTimeoutError"}, "too_slow", "no connection in time"),
        ({"ReadTimeout", "ReadTimeoutError"}, "too_slow", "no complete answer in time"),
        ({"ProtocolError", "ChunkedEncodingError", "ConnectionError"}, "reset", "the connection broke off"),
    ):
        if names & found:
            return EgressFailed(reason, text)  # type: ignore[arg-type]
    return EgressFailed("bad_answer", "the answer could not be read")
