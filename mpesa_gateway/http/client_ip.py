"""Whose address a request really comes from: the rightmost hop that is no proxy of ours."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from mpesa_gateway.config import ConfigRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def read_networks(texts: Iterable[str], setting: str) -> tuple[Network, ...]:
    """Addresses and CIDR ranges from a setting. Raises ConfigRefused, naming it."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError:
            raise ConfigRefused(
                f"setting `{setting}`: `{text}` is no address or CIDR range, such as 10.0.0.0/8"
            ) from None
    return tuple(networks)


@lru_cache(maxsize=4096)
def read_address(text: str) -> Address | None:
    """An address; IPv4 in IPv6's clothes is IPv4. None for anything else."""
    try:
        address = ip_address(text.strip().removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Whether the address lies in one of the ranges."""
    return any(address.version == network.version and address in network for network in networks)


def client_address(peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The client's address as text, ``unknown`` without one.

    ``peer`` is who is connected; ``forwarded_for`` the X-Forwarded-For headers as received. Only what trusted
    proxies wrote is believed: from the right, the first hop that is none of them. A trusted hop followed by
    something that is no address ends the search there.
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
