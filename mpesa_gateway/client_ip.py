"""Whose address a request really comes from: the rightmost hop that is no proxy of ours."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from mpesa_gateway.config import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

CLIENT = "mpesa_gateway_client"
"""In the scope: the client's address, as ``client_address`` found it."""

_LAST_PORT = 65_535


def read_networks(texts: Iterable[str], setting: str) -> tuple[Network, ...]:
    """Addresses and CIDR ranges from a setting. Raises ConfigError, naming it."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError:
            raise ConfigError(
                f"setting `{setting}`: `{text}` is no address or CIDR range, such as 10.0.0.0/8"
            ) from None
    return tuple(networks)


_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?\Z", re.ASCII)
"""An address in brackets, or an IPv4 address, each with or without a port: how proxies write X-Forwarded-For."""


@lru_cache(maxsize=4096)
def read_address(text: str) -> Address | None:
    """Return an address, without the port that may follow it. IPv4 mapped into IPv6 becomes IPv4.

    Returns None for anything else: a name, a port out of range, half a bracket, an address with a zone.
    """
    text = text.strip()
    found = _WITH_PORT.match(text)
    if found is not None:
        if found[3] is not None and int(found[3]) > _LAST_PORT:
            return None
        text = found[1] or found[2]
        if found[1] and ":" not in text:
            # Brackets are for IPv6.
            return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        # One client could write any number of zones.
        return None if address.scope_id is not None else address.ipv4_mapped or address
    return address


@lru_cache(maxsize=4096)
def neighbourhood(address: str) -> str:
    """Return what an address is counted as: itself, or with IPv6 its /64, which is what one client is assigned."""
    found = read_address(address)
    return str(IPv6Network((found, 64), strict=False)) if isinstance(found, IPv6Address) else address


_INSIDE = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


def is_inside(address: Address) -> bool:
    """Whether an address is of this machine or of a private network: where a proxy of one's own can be.

    Not the opposite of a public one: addresses of examples, of multicast and of tunnels are neither.
    """
    return within(address, _INSIDE)


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Whether the address lies in one of the ranges."""
    return any(address.version == network.version and address in network for network in networks)


def client_address(peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The client's address as text, ``unknown`` without one.

    ``peer`` is who is connected; ``forwarded_for`` the X-Forwarded-For headers as received. Only what trusted
    proxies wrote is believed: from the right, the first hop that is none of them, without its port. A trusted hop
    followed by something that is no address ends the search there.
    """
    current = read_address(peer or "")
    if current is None:
        return "unknown"
    hops = [hop for header in forwarded_for for hop in header.split(",")]
    while within(current, trusted) and hops:
        before = read_address(hops.pop())
        if before is None:
            break
        current = before
    return str(current)
