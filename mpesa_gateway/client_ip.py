"""Client addresses: the rightmost hop that is not a trusted proxy."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from mpesa_gateway.config import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

CLIENT = "mpesa_gateway_client"

_LAST_PORT = 65_535


def read_networks(texts: Iterable[str], setting: str) -> tuple[Network, ...]:
    """Parse addresses and CIDR ranges. Raises ConfigError."""
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


@lru_cache(maxsize=4096)
def read_address(text: str) -> Address | None:
    """Return an address without its port. IPv4 in IPv6 becomes IPv4; zones are rejected."""
    text = text.strip()
    found = _WITH_PORT.match(text)
    if found is not None:
        if found[3] is not None and int(found[3]) > _LAST_PORT:
            return None
        text = found[1] or found[2]
        if found[1] and ":" not in text:
            return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        # A client could vary the zone.
        return None if address.scope_id is not None else address.ipv4_mapped or address
    return address


@lru_cache(maxsize=4096)
def client_network(address: str) -> str:
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


def is_private(address: Address) -> bool:
    """Return True for this machine and private networks, which may hold a trusted proxy."""
    return is_within(address, _INSIDE)


def is_within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def client_address(peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the client's address or ``unknown``.

    From the right, the first hop in X-Forwarded-For that is not trusted. An invalid entry ends the search.
    """
    current = read_address(peer or "")
    if current is None:
        return "unknown"
    hops = [hop for header in forwarded_for for hop in header.split(",")]
    while is_within(current, trusted) and hops:
        before = read_address(hops.pop())
        if before is None:
            break
        current = before
    return str(current)
