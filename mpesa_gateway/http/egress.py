"""HTTP calls to merchants' addresses, never into private networks."""

import asyncio
import re
import ssl
import time
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.call_slots import released_slot
from mpesa_gateway.dns import Address, Lookup, NameResolver, read_literal
from mpesa_gateway.http.outbound import Destination, NoResponse, OutboundClient, ResponseReader, request_bytes

Reason = Literal["refused", "dns", "connect", "tls", "too_slow", "reset", "bad_answer"]

LONGEST_URL = 2048

SHOWN = 1024
"""Stored characters of a response."""

_NON_PUBLIC = tuple(
    ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "3fff::/20", "100::/64", "2001::/23")
)
"""Non-public in IANA's registries, independent of the Python release."""

_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_NUMERIC = re.compile(r"(0x[0-9a-f]+|[0-9]+)(\.(0x[0-9a-f]*|[0-9]*))*\.?\Z", re.IGNORECASE)
_HOST = re.compile(
    r"(?=.{1,253}\Z)([A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)(\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\Z"
)


class EgressFailed(Exception):
    """``reason`` is a stable word; the text is safe to show to the merchant."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


class ForbiddenAddress(OSError):
    """A name resolved to a forbidden address."""


@dataclass(frozen=True)
class EgressResponse:
    """``ms`` is the duration in milliseconds."""

    status: int
    ms: int
    body_start: str


def is_public(address: Address) -> bool:
    """Return True for a public address; embedded IPv4 addresses are checked too."""
    inner = _embedded(address)
    if inner is not None:
        return False if isinstance(address, IPv6Address) else is_public(inner)
    if any(address.version == network.version and address in network for network in _NON_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified


def _embedded(address: Address) -> IPv4Address | None:
    """Covers mapped, 6to4, Teredo, NAT64 and compatible addresses."""
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


_ADDRESS_ADVICE = "must be an https address such as https://shop.example.co.ke/mpesa"


def _split(url: str) -> tuple[SplitResult, str, int | None]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(_ADDRESS_ADVICE) from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password")
    return parts, host, port


def check_url(url: str, *, allow_loopback: bool) -> None:
    """Raise ValueError if the address may not be called.

    ``allow_loopback`` (sandbox) permits http to this machine.
    """
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError(f"must be an https address of at most {LONGEST_URL} printable ASCII characters")
    parts, host, port = _split(url)
    if parts.fragment:
        raise ValueError("must not contain a fragment (#…)")
    literal = read_literal(host)
    is_loopback = host == "localhost" or (literal is not None and literal.is_loopback)
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_loopback and is_loopback):
        raise ValueError("must be an https address (http only for this machine itself, in the sandbox)")
    if port == 0:
        raise ValueError("must not name port 0")
    if is_loopback and allow_loopback:
        return
    if "[" in parts.netloc and not isinstance(literal, IPv6Address):
        raise ValueError("must have only an IPv6 address in brackets")
    _check_host(host, literal)


def normal_url(url: str, *, allow_loopback: bool) -> str:
    """Return the canonical address: lower case, xn-- host, no default port or trailing dot.

    Raises ValueError.
    """
    if len(url) > LONGEST_URL or not url.isprintable() or " " in url or "\\" in url:
        # urlsplit removes some of these characters.
        check_url(url, allow_loopback=allow_loopback)
    parts, host, port = _split(url)
    name = _ascii_name(host)
    if name.endswith(".") and not _NUMERIC.match(name):
        name = name[:-1]
    literal = read_literal(name)
    shown = f"[{literal.compressed}]" if isinstance(literal, IPv6Address) else name
    if port is not None and port != {"https": 443, "http": 80}.get(parts.scheme):
        shown += f":{port}"
    found = urlunsplit((parts.scheme, shown, parts.path, parts.query, parts.fragment))
    check_url(found, allow_loopback=allow_loopback)
    return found


def _ascii_name(host: str) -> str:
    """Raises ValueError if IDNA editions differ."""
    if host.isascii():
        return host
    try:
        name = host.encode("idna").decode("ascii")
        if name.encode("ascii").decode("idna") == unicodedata.normalize("NFC", host):
            return name
    except UnicodeError:
        pass
    raise ValueError("must name a host such as shop.example.co.ke (an international name in its xn-- form)")


def _check_host(host: str, literal: Address | None) -> None:
    if host == "localhost" or (literal is not None and literal.is_loopback):
        raise ValueError("must not name this machine: use an address that the Internet can reach")
    if literal is not None:
        if not is_public(literal):
            raise ValueError("must not name a private, local or reserved address")
    elif _NUMERIC.match(host):
        raise ValueError("must contain a host name, or an address in standard notation")
    elif not _HOST.match(host):
        raise ValueError("must name a host such as shop.example.co.ke (an international name in its xn-- form)")


def check_addresses(addresses: list[str], *, allow_loopback: bool) -> list[str]:
    """Return the addresses. Raises ForbiddenAddress if one may not be called."""
    for text in addresses:
        address = ip_address(text.partition("%")[0])
        if not (is_public(address) or (allow_loopback and address.is_loopback)):
            raise ForbiddenAddress("the name resolves to a private, local or reserved address")
    return [text.partition("%")[0] for text in addresses]


_LOOKUPS, _LOOKUPS_EACH = 256, 4
"""Concurrent lookups: in total and per account."""


class EgressBusy(Exception):
    """Too many pending lookups of this account. Nothing was sent."""


class Egress:
    """POST client for merchants' addresses; loopback only in the sandbox."""

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        lookup: Lookup | None = None,
        connections: int = 200,
        connect_timeout: float = 4.0,
    ) -> None:
        """``timeout`` is seconds per call, ``connect_timeout`` seconds per address."""
        self._timeout = timeout
        self._own_names = NameResolver() if lookup is None else None
        self._lookup: Lookup = lookup or self._own_names or NameResolver()
        self._lookups = Bulkhead(_LOOKUPS, _LOOKUPS_EACH)
        self._running_lookups: Counter[tuple[str, str]] = Counter()
        # Loopback connections are not reused for other calls.
        self._outbound = {
            allow_loopback: OutboundClient(connections=connections, connect_timeout=connect_timeout)
            for allow_loopback in (False, True)
        }

    async def start(self) -> None:
        """Connections open on demand."""

    async def stop(self) -> None:
        for outbound in self._outbound.values():
            outbound.close()
        if self._own_names is not None:
            await self._own_names.close()

    async def post(
        self, url: str, *, body: bytes, headers: Mapping[str, str], allow_loopback: bool, account: str = ""
    ) -> EgressResponse:
        """POST once, without redirects, cookies or proxy. Raises EgressFailed and EgressBusy.

        Errors after the status line are ignored.
        """
        try:
            check_url(url, allow_loopback=allow_loopback)
            destination, request = _request(url, body, headers)
        except ValueError as problem:
            raise EgressFailed("refused", f"the address {problem}") from None

        async def addresses() -> list[str]:
            return await self._look_up(destination, account, allow_loopback=allow_loopback)

        began = time.perf_counter()
        reader = ResponseReader(SHOWN * 4)
        try:
            async with asyncio.timeout(self._timeout):
                with released_slot():
                    await self._outbound[allow_loopback].post(destination, addresses, request, reader)
        except EgressBusy:
            raise
        except Exception as problem:  # noqa: BLE001 - any error is a failed attempt
            if reader.status is None:
                raise self._failure(problem) from None
        ms = int((time.perf_counter() - began) * 1000)
        text = reader.body.decode("utf-8", "replace").replace("\x00", "")[:SHOWN]
        return EgressResponse(reader.status or 0, ms, text)

    async def _look_up(self, destination: Destination, account: str, *, allow_loopback: bool) -> list[str]:
        if read_literal(destination.host) is not None:
            return check_addresses([destination.host], allow_loopback=allow_loopback)
        key = (account, destination.host)
        # Concurrent calls to one name share a lookup slot.
        with (
            nullcontext(enter_result=True) if self._running_lookups[key] else self._lookups.acquire(account) as has_slot
        ):
            if not has_slot:
                raise EgressBusy
            self._running_lookups[key] += 1
            try:
                found = await _as_dns(self._lookup(destination.host, destination.port))
            except BaseException:
                self._lookups.record_answer(account, answered=False)
                raise
            finally:
                self._running_lookups[key] -= 1
                if not self._running_lookups[key]:
                    del self._running_lookups[key]
            self._lookups.record_answer(account, answered=True)
        return check_addresses(found, allow_loopback=allow_loopback)

    def _failure(self, problem: Exception) -> EgressFailed:
        if isinstance(problem, EgressFailed):
            return problem
        if isinstance(problem, TimeoutError):
            return EgressFailed("too_slow", f"no complete answer within {self._timeout:g} seconds")
        if isinstance(problem, NoResponse):
            return EgressFailed(problem.reason, _BROKEN if problem.reason == "reset" else _UNREADABLE)
        for kinds, reason, text in _FAILURES:
            if isinstance(problem, kinds):
                return EgressFailed(reason, text)
        return EgressFailed("bad_answer", _UNREADABLE)


_BROKEN, _UNREADABLE = "the connection broke off", "the answer could not be read"
_FAILURES: tuple[tuple[tuple[type[Exception], ...], Reason, str], ...] = (
    ((ForbiddenAddress,), "refused", "the address resolves to a private, local or reserved address"),
    ((ConnectionResetError, ConnectionAbortedError, BrokenPipeError), "reset", _BROKEN),
    ((ssl.SSLError, ssl.CertificateError), "tls", "TLS failed: check the certificate"),
    ((OSError,), "connect", "the connection failed"),
)
"""Subclasses come first."""


async def _as_dns(lookup: Awaitable[list[str]]) -> list[str]:
    try:
        return await lookup
    except TimeoutError:
        raise EgressFailed("dns", "the host's name could not be resolved in time") from None
    except (OSError, UnicodeError):
        raise EgressFailed("dns", "the host's name could not be resolved") from None


def _request(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[Destination, bytes]:
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if is_tls else 80)
    shown = f"[{host}]" if ":" in host else host
    if parts.port is not None:
        shown += f":{port}"
    target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    return Destination(host, port, is_tls), request_bytes(shown, target, headers, body)


_SAFE = "%!#$&'()*+,/:;=?@[]~"
"""Not percent-encoded in paths and queries."""
