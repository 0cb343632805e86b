"""Protects calls to merchants' addresses: none into our own network, none beyond the limits of time and size."""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from urllib3_future.util import parse_url

from mpesa_gateway.dns import NameResolver
from mpesa_gateway.http.egress import (
    Egress,
    EgressFailed,
    EgressResponse,
    ForbiddenAddress,
    check_addresses,
    check_url,
    is_public,
    normal_url,
)
from mpesa_gateway.testing.serving import listening
from tests.kernel.scripted import ScriptedRequest, ScriptedServer, drip, reset, scripted, set_proxy_environment, write
from tests.name_server import NXDOMAIN, name_server
from tests.name_server import always as always_says

REFUSED_HOSTS = (
    # addresses that the standard library of some releases treats as public
    "[fec0::1]",
    "[feff::1]",
    "[3fff::1]",
    "192.0.0.8",
    "192.0.0.100",
    "192.88.99.1",
    # private, shared and link-local
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "0.0.0.0",  # noqa: S104 - an address to reject, not to bind
    "0.1.2.3",
    "[fc00::1]",
    "[fd12:3456::1]",
    "[fe80::1]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[::]",
    # this machine
    "127.0.0.1",
    "127.1.2.3",
    "127.255.255.254",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "localhost..",
    # IPv4 embedded in IPv6, public ones too
    "[::ffff:10.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:169.254.169.254]",
    "[::ffff:8.8.8.8]",
    "[::127.0.0.1]",
    "[::10.0.0.1]",
    "[2002:7f00:1::]",
    "[2002:a00:1::1]",
    "[2002:808:808::1]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::808:808]",
    "[64:ff9b:1::a00:1]",
    "[2001:0:4136:e378:8000:63bf:f5ff:fffe]",
    # numbers that a resolver reads as an address
    "2130706433",
    "3232235777",
    "167772161",
    "0x7f000001",
    "0X7F000001",
    "0x7f.0.0.1",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.1",
    "127.0.1",
    "10.1",
    "10.0.0.010",
    "127.0.0.1.",
    "10.0.0.1.",
    "134744072",
    "8.8.8",
    "0",
    # not a host name
    "",
    "-",
    "-shop.example",
    "shop..example",
    ".example",
    "shop.example..",
    "shop%2eexample",
    "shop,example",
    "[fe80::1%25eth0]",
    "x" * 64 + ".example",
    ".".join(["x" * 60] * 5),
)

REFUSED_URLS = (
    "https://user@shop.example/",
    "https://user:word@shop.example/",
    "https://:word@shop.example/",
    "https://@shop.example/",
    "https://shop.example@10.0.0.1/",
    "https://shop.example/#part",
    "https://shop.example#@10.0.0.1/",
    "http://shop.example/",
    "http://8.8.8.8/",
    "ftp://shop.example/",
    "file:///etc/passwd",
    "gopher://shop.example/",
    "//shop.example/",
    "shop.example",
    "",
    "https://",
    "https:shop.example",
    "https:///shop.example",
    "https://shop.example:0/",
    "https://shop.example:65536/",
    "https://shop.example:-1/",
    "https://shop.example:x/",
    "https://shop.example/a b",
    "https://shop.example/\n",
    "https://shop.example/\t",
    "https://shop.example/\x00",
    "https://shop.example\\@10.0.0.1/",
    "https://sh\u00f6p.example/",
    "https://127\u30020\u30020\u30021/",
    "https://\u2460\u2461\u2466.0.0.1/",
    "https://shop.example/" + "x" * 2048,
    "https://[::1/",
    "https://[nonsense]/",
)

TAKEN_URLS = (
    "https://shop.example.co.ke/mpesa?x=1",
    "HTTPS://Shop.Example.co.ke/",
    "https://shop.example:8443/",
    "https://shop_1.example/",
    "https://xn--shp-1na.example/",
    "https://3com.example/",
    "https://0xcafe.example/",
    "https://8.8.8.8/",
    "https://[2606:4700:4700::1111]/",
    "https://localhost.example/",
)


@pytest.mark.parametrize("host", REFUSED_HOSTS)
def test_check_url_of_a_host_that_is_not_public_is_refused(host: str) -> None:
    for url in (f"https://{host}/", f"https://{host}:8443/x?y=z"):
        with pytest.raises(ValueError, match=r"^must "):
            check_url(url, allow_loopback=False)


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_check_url_that_is_not_plain_https_is_refused(url: str) -> None:
    for allow_loopback in (False, True):
        with pytest.raises(ValueError, match=r"^must "):
            check_url(url, allow_loopback=allow_loopback)


@pytest.mark.parametrize("url", TAKEN_URLS)
def test_check_url_of_an_ordinary_address_is_accepted(url: str) -> None:
    check_url(url, allow_loopback=False)
    check_url(url, allow_loopback=True)


def test_check_url_in_the_sandbox_allows_loopback_and_no_other_private_host() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "localhost", "[::1]"):
        for scheme in ("http", "https"):
            check_url(f"{scheme}://{host}:8080/", allow_loopback=True)
        with pytest.raises(ValueError, match="port 0"):
            check_url(f"http://{host}:0/", allow_loopback=True)
    for host in REFUSED_HOSTS:
        if host.lower() in {"127.0.0.1", "127.1.2.3", "127.255.255.254", "localhost", "[::1]", "[0:0:0:0:0:0:0:1]"}:
            continue
        if host.startswith("[::ffff:"):
            # Their loopback property differs between releases of Python.
            continue
        with pytest.raises(ValueError, match=r"^must "):
            check_url(f"https://{host}/", allow_loopback=True)


@given(st.text(max_size=60) | st.text("0123456789abcdefx.:[]@#/\\%", max_size=40).map(lambda text: "https://" + text))
def test_check_url_of_any_text_is_accepted_or_refused_with_a_reason(url: str) -> None:
    try:
        check_url(url, allow_loopback=False)
    except ValueError as refused:
        if not str(refused).startswith("must "):
            raise AssertionError(url) from refused


@given(st.ip_addresses(v=4))
def test_is_public_of_an_embedded_ipv4_address_is_false(address: Any) -> None:
    number = int(address)
    for embedding in (
        (0xFFFF << 32) | number,
        (0x2002 << 112) | (number << 80),
        (0x64FF9B << 96) | number,
        number,
    ):
        assert not is_public(ip_address(embedding.to_bytes(16, "big")))
    if is_public(address):
        assert address.is_global


NORMAL = {
    "Https://Shop.Example.co.ke/Mpesa?X=Y": "https://shop.example.co.ke/Mpesa?X=Y",
    "HTTPS://shop.example": "https://shop.example",
    "https://shop.example:443/": "https://shop.example/",
    "https://shop.example:8443/": "https://shop.example:8443/",
    "https://shop.example:/": "https://shop.example/",
    "https://shop.example:0443/": "https://shop.example/",
    "https://shop.example./x": "https://shop.example/x",
    "https://b\u00fccher.example/": "https://xn--bcher-kva.example/",
    "https://B\u00dcCHER.example/": "https://xn--bcher-kva.example/",
    "https://XN--BCHER-KVA.example/": "https://xn--bcher-kva.example/",
    "https://[2606:4700:4700:0:0:0:0:1111]/": "https://[2606:4700:4700::1111]/",
    "https://[2606:4700:4700::ABCD]:443/": "https://[2606:4700:4700::abcd]/",
    "https://shop.example/#": "https://shop.example/",
    "https://shop.example/a%20b?c=%7B": "https://shop.example/a%20b?c=%7B",
}


@pytest.mark.parametrize(("url", "kept"), NORMAL.items())
def test_normal_url_returns_the_stored_form(url: str, kept: str) -> None:
    assert normal_url(url, allow_loopback=False) == kept
    assert normal_url(kept, allow_loopback=False) == kept


@pytest.mark.parametrize(
    "url",
    [
        *(url for url in REFUSED_URLS if "sh\u00f6p" not in url),
        *(f"https://{host}/" for host in REFUSED_HOSTS),
        "https://stra\u00dfe.example/",
        "https://shop\u200b.example/",
        "https://shop.example\uff0fpath/",
        "https://shop.example/caf\u00e9",
        "https://" + "\u00fc" * 100 + ".example/",
        "https://xn--.example\u3002/",
        "https://shop.example../",
        "https://" + "a" * 70_000 + ".example/",
    ],
)
def test_normal_url_refuses_what_is_not_called(url: str) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        normal_url(url, allow_loopback=False)


def test_normal_url_of_loopback_is_accepted_in_the_sandbox() -> None:
    for url, kept in (
        ("HTTP://LocalHost:80/x", "http://localhost/x"),
        ("http://localhost.:3000/", "http://localhost:3000/"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("http://127.0.0.1:443/", "http://127.0.0.1:443/"),
    ):
        assert normal_url(url, allow_loopback=True) == kept
        with pytest.raises(ValueError, match=r"^must "):
            normal_url(url, allow_loopback=False)


URLS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["https://", "HTTPS://", "Https://", "http://", "https:", "hTTp://", "ftp://", ""]),
        st.sampled_from(
            ["shop.example", "SHOP.example.", "localhost", "b\u00fccher.example", "[::1]", "8.8.8.8", "a@b"]
        )
        | st.text(max_size=10),
        st.sampled_from(["", ":443", ":80", ":8443", ":", ":0", ":x"]),
        st.text(max_size=20).map(lambda text: "/" + text) | st.sampled_from(["", "/", "/a?b#", "/a#b", "?x"]),
    ),
)


@given(URLS | st.text(max_size=60), st.booleans())
def test_normal_url_is_callable_and_stays_the_same(url: str, allow_loopback: bool) -> None:
    try:
        kept = normal_url(url, allow_loopback=allow_loopback)
    except ValueError as refused:
        if not str(refused).startswith("must "):
            raise AssertionError(url) from refused
        return
    check_url(kept, allow_loopback=allow_loopback)
    assert normal_url(kept, allow_loopback=allow_loopback) == kept
    # The CHECK of the column.
    assert re.match("https?://", kept)
    assert len(kept) <= 2048


# -- names -------------------------------------------------------------------------------------------------------------


class Dns:
    """A name server of the test: returns one set of addresses after the other, and counts."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


async def resolve(dns: Dns, *, allow_loopback: bool = False) -> list[str]:
    return check_addresses(await dns("shop.example", 443), allow_loopback=allow_loopback)


@pytest.mark.parametrize(
    "answers",
    [
        ["10.0.0.1"],
        ["172.16.5.5"],
        ["192.168.0.1"],
        ["169.254.169.254"],
        ["100.64.0.1"],
        ["127.0.0.1"],
        ["0.0.0.0"],  # noqa: S104 - an address to reject, not to bind
        ["224.0.0.1"],
        ["255.255.255.255"],
        ["::1"],
        ["::"],
        ["fe80::1"],
        ["fe80::1%eth0"],
        ["fd00::1"],
        ["fec0::1"],
        ["8.8.8.8", "fec0::1"],
        ["ff02::1"],
        ["::ffff:10.0.0.1"],
        ["::ffff:8.8.8.8"],
        ["2002:a00:1::"],
        ["64:ff9b::a00:1"],
        ["64:ff9b:1::1"],
        ["8.8.8.8", "10.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "2606:4700:4700::1111", "fd00::1"],
        ["2606:4700:4700::1111", "127.0.0.1"],
    ],
    ids=",".join,
)
async def test_check_addresses_with_one_private_address_refuses_the_name(answers: list[str]) -> None:
    dns = Dns(answers)
    with pytest.raises(ForbiddenAddress, match="private"):
        await resolve(dns)
    assert dns.asked == [("shop.example", 443)]


async def test_check_addresses_returns_public_addresses_unchanged() -> None:
    dns = Dns(["8.8.8.8", "2606:4700:4700::1111"])
    assert await resolve(dns) == ["8.8.8.8", "2606:4700:4700::1111"]
    assert dns.asked == [("shop.example", 443)]


async def test_check_addresses_of_a_changing_name_returns_what_was_checked() -> None:
    dns = Dns(["8.8.8.8"], ["10.0.0.1"])
    found = await resolve(dns)
    assert len(dns.asked) == 1
    assert found == ["8.8.8.8"]
    # Asked again, for another call, it is checked again.
    with pytest.raises(ForbiddenAddress):
        await resolve(dns)


async def test_check_addresses_of_loopback_is_accepted_only_if_allowed() -> None:
    for address in ("127.0.0.1", "::1"):
        assert await resolve(Dns([address]), allow_loopback=True) == [address]
        with pytest.raises(ForbiddenAddress):
            await resolve(Dns([address]))
    for answers in (["127.0.0.1", "10.0.0.1"], ["192.168.1.1"], ["169.254.169.254"]):
        with pytest.raises(ForbiddenAddress):
            await resolve(Dns(answers), allow_loopback=True)


# -- the whole address space -------------------------------------------------------------------------------------------

NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            # IANA's IPv4 special-purpose registry: entries that are not globally reachable, and multicast
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            # the IPv6 registry, and everything that IANA has not assigned: only 2000::/3 is in use
            "::/3",
            "4000::/2",
            "8000::/1",
            "2001::/23",
            "2001:db8::/32",
            "2002::/16",
            "3fff::/20",
        ),
    )
)
"""A table of this test's own, independent of the code."""


def is_expected_public(address: Any) -> bool:
    return not any(address.version == each.version and address in each for each in NOT_PUBLIC)


def edges() -> list[Any]:
    """Return the first and the last address of each range, and their neighbours outside."""
    found: set[Any] = set()
    for each in NOT_PUBLIC:
        first, last, highest = int(each[0]), int(each[-1]), 2**each.max_prefixlen - 1
        numbers = {number for number in (first - 1, first, last, last + 1) if 0 <= number <= highest}
        found |= {type(each[0])(number) for number in numbers}
    return sorted(found, key=lambda address: (address.version, int(address)))


async def is_accepted(address: Any, *, allow_loopback: bool = False) -> bool:
    """Return True if the resolver accepts an address; it rejects others with Forbidden only."""
    try:
        found = await resolve(Dns([str(address)]), allow_loopback=allow_loopback)
    except ForbiddenAddress:
        return False
    assert found == [str(address)]
    return True


@pytest.mark.parametrize("address", edges(), ids=str)
async def test_check_addresses_at_the_edges_of_every_range(address: Any) -> None:
    assert await is_accepted(address) == is_expected_public(address)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
async def test_check_addresses_accepts_any_address_only_if_it_is_public(address: Any) -> None:
    assert await is_accepted(address) == is_expected_public(address)


@given(st.sampled_from(NOT_PUBLIC), st.integers(0))
async def test_check_addresses_accepts_no_address_of_a_special_range(network: Any, offset: int) -> None:
    address = network[offset % network.num_addresses]
    assert not await is_accepted(address)
    # In the sandbox: this machine itself, and no other.
    is_here = address in ip_network("127.0.0.0/8" if address.version == 4 else "::1/128")
    if getattr(address, "ipv4_mapped", None) is None:
        assert await is_accepted(address, allow_loopback=True) == is_here


def embeddings(address: IPv4Address) -> list[Any]:
    """Return an IPv4 address inside IPv6: mapped, compatible, translated, 6to4, NAT64 in both prefixes, Teredo."""
    number = int(address)
    return [
        IPv6Address(each)
        for each in (
            (0xFFFF << 32) | number,
            number,
            (0xFFFF << 48) | number,
            (0x2002 << 112) | (number << 80) | 1,
            (0x64FF9B << 96) | number,
            (0x64FF9B0001 << 80) | number,
            (0x20010000 << 96) | (0x4136E378 << 64) | (number ^ 0xFFFFFFFF),
            (0x20010000 << 96) | (number << 64) | 0xFFFFFFFF,
        )
    ]


@given(st.ip_addresses(v=4))
async def test_check_addresses_accepts_no_embedded_ipv4_address(address: Any) -> None:
    for embedding in embeddings(address):
        assert not await is_accepted(embedding), embedding
        with pytest.raises(ValueError, match=r"^must "):
            check_url(f"https://[{embedding}]/", allow_loopback=False)


def spellings(address: IPv4Address) -> list[str]:
    """Return other spellings of an IPv4 address that inet_aton and many URL parsers accept."""
    a, b, c, d = address.packed
    number = int(address)
    return [
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{(b << 16) | (c << 8) | d}",
        f"{a}.{b}.{(c << 8) | d}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a}.0x{b:x}.0{c:o}.{d}",
        f"{a:03}.{b:03}.{c:03}.{d:03}",
        f"{address}.",
        f"0x{a:08x}.{b}.{c}.{d}",
    ]


@given(st.ip_addresses(v=4))
def test_check_url_accepts_no_other_spelling_of_an_ipv4_address(address: Any) -> None:
    for text in spellings(address):
        if text == str(address):
            continue
        for host in (text, text.upper()):
            with pytest.raises(ValueError, match=r"^must "):
                check_url(f"https://{host}/", allow_loopback=False)


@pytest.mark.parametrize("text", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1"])
async def test_lookup_of_an_unusual_spelling_is_no_address(text: str) -> None:
    """Even if one passed check_url, no resolver reads it as an address."""
    async with name_server(always_says(code=NXDOMAIN)) as server:
        names = NameResolver(servers=(server.address,))
        for spelling in spellings(IPv4Address(text)):
            try:
                found = check_addresses(await names(spelling, 443), allow_loopback=False)
            except (ForbiddenAddress, OSError):
                continue
            # 010.000.000.001 is 8.0.0.1: another address, and public.
            assert all(is_expected_public(ip_address(text)) for text in found), spelling
        await names.close()


@given(
    st.sampled_from(["https://", "HTTPS://", "https:", "https:/", "https:///", "//", "http://"]),
    st.text("abz019-._~%@:/?#[]\\\t\n \u3002\uff0e\u00e9\u2460xn", max_size=40),
)
def test_check_url_reads_an_accepted_url_as_the_client_does(start: str, rest: str) -> None:
    url = start + rest
    try:
        check_url(url, allow_loopback=False)
    except ValueError:
        return
    theirs, ours = parse_url(url), urlsplit(url)
    assert (theirs.scheme, theirs.auth) == ("https", None)
    assert (theirs.host, theirs.port) == (ours.hostname, ours.port)


TRICKS = (
    "https://shop.example@127.0.0.1/",
    "https://127.0.0.1#@shop.example/",
    "https://127.0.0.1?@shop.example/",
    "https://shop.example%40127.0.0.1/",
    "https://shop.example%2f@127.0.0.1/",
    "https://shop.example:443@127.0.0.1/",
    "https://127.0.0.1\\@shop.example/",
    "https://127.0.0.1%00.shop.example/",
    "https://127.0.0.1%09/",
    "https://127.0.0.1;shop.example/",
    "https://[::1%25lo]/",
    "https://[::1%lo]/",
    "https://[fe80::1%eth0]/",
    "https://[::ffff:127.0.0.1%lo]/",
    "https://127\u30020\u30020\u30021/",
    "https://127\uff0e0\uff0e0\uff0e1/",
    "https://127\uff610\uff610\uff611/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3/",
    "https://lo\u017fcalhost/",
    "https://localhost\u3002/",
    "https://localhost./",
    "https://shop.example./",
    "https://127.0.0.1.nip.io\u00ad/",
    "https://shop.example\u200b/",
    "https://[::]/",
    "https://[0:0:0:0:0:0:0:0]/",
    "https://[0000::1]/",
    "https://[::0001]/",
    "https://[::ffff:0:127.0.0.1]/",
    "https://[v1.127.0.0.1]/",
    "https://0/",
    "https://00/",
    "https://0x0/",
    "https://0.0/",
    "https://:80/",
    "https://@/",
    "https:127.0.0.1/",
    "https:\\\\127.0.0.1/",
)


@pytest.mark.parametrize("url", TRICKS)
async def test_post_to_a_deceptive_url_is_refused_before_any_lookup(url: str) -> None:
    dns = Dns(["8.8.8.8"])
    async with egress(lookup=dns) as one:
        assert await fails(one, url, allow_loopback=False) == "refused"
    assert dns.asked == []


@given(st.lists(st.ip_addresses(), min_size=1, max_size=6))
async def test_check_addresses_accepts_a_name_only_if_all_addresses_are_public(addresses: list[Any]) -> None:
    dns = Dns([str(address) for address in addresses])
    if all(map(is_expected_public, addresses)):
        assert await resolve(dns) == [str(address) for address in addresses]
    else:
        with pytest.raises(ForbiddenAddress):
            await resolve(dns)
    assert len(dns.asked) == 1


async def test_post_to_a_name_with_private_addresses_connects_to_nothing() -> None:
    """With the real client: each refusal comes from the resolver, before a socket exists."""
    answers = [["10.0.0.1"], ["8.8.8.8", "192.168.0.1"], ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"], ["fe80::1%lo"]]
    answers += [[str(embedding)] for embedding in embeddings(IPv4Address("127.0.0.1"))]
    async with scripted(always(200)) as server:
        port = server.base.rpartition(":")[2]
        for each in answers:
            async with egress(lookup=Dns(each)) as one:
                for allow_loopback in (False, True):
                    if allow_loopback and each == ["::ffff:127.0.0.1"]:
                        continue
                    url = f"https://shop.example:{port}/"
                    assert await fails(one, url, allow_loopback=allow_loopback) == "refused", each
    assert server.connections == 0


@pytest.mark.parametrize("answers", [[], ["nonsense"], [""], ["127.0.0.1:80"], ["1.2.3"]], ids=str)
async def test_post_to_a_name_with_an_invalid_answer_fails(answers: list[str]) -> None:
    async with egress(lookup=Dns(answers)) as one:
        assert await fails(one, "https://shop.example/", allow_loopback=False) in {"dns", "bad_answer", "connect"}


async def test_post_ignores_alternative_servers_of_an_answer() -> None:
    """Alt-Svc and Link name other servers; neither is ever connected to."""
    async with scripted(always(200)) as elsewhere:
        port = elsewhere.base.rpartition(":")[2]
        offers = {
            "Alt_Svc": f'h3="127.0.0.1:{port}"; ma=3600, h2="127.0.0.1:{port}"; ma=3600',
            "Link": f"<{elsewhere.base}/>; rel=preconnect",
            "Refresh": f"0; url={elsewhere.base}/",
            "Content_Location": f"{elsewhere.base}/",
        }
        async with egress() as one, scripted(always(200, b"", **offers)) as server:
            for _ in range(3):
                assert (await post(one, server.base)).status == 200
    assert (len(server.asked), elsewhere.connections) == (3, 0)


# -- calls -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def egress(**options: Any) -> AsyncGenerator[Egress]:
    one = Egress(**options)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def post(one: Egress, url: str, *, allow_loopback: bool = True) -> EgressResponse:
    return await one.post(url, body=b'{"a":1}', headers={"X-Event-Type": "test"}, allow_loopback=allow_loopback)


async def fails(one: Egress, url: str, *, allow_loopback: bool = True) -> str:
    """Return the reason of a failed call."""
    with pytest.raises(EgressFailed) as failed:
        await post(one, url, allow_loopback=allow_loopback)
    assert str(failed.value)
    return failed.value.reason


def always(
    status: int, body: bytes = b"", **headers: str
) -> Callable[[ScriptedRequest, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        write(writer, status, body, **headers)

    return answer


async def test_post_sends_its_body_and_returns_the_answer() -> None:
    async with egress() as one, scripted(always(202, b"thanks")) as server:
        answer = await post(one, server.base + "/hooks?x=1")
    assert (answer.status, answer.body_start) == (202, "thanks")
    assert 0 <= answer.ms < 5000
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("POST", "/hooks?x=1", b'{"a":1}')
    assert asked.headers["x-event-type"] == "test"


@pytest.mark.parametrize("kind", [RecursionError, TypeError, KeyError, AttributeError, UnicodeError])
async def test_post_with_unexpected_error_is_failed_attempt(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise kind("unexpected")

    monkeypatch.setattr("mpesa_gateway.http.outbound.OutboundClient.post", fail)
    async with egress() as one, scripted(always(202)) as server:
        assert await fails(one, server.base) == "bad_answer"


async def test_post_to_a_refused_address_does_no_lookup() -> None:
    dns = Dns(["127.0.0.1"])
    async with egress(lookup=dns) as one, scripted(always(200)) as server:
        assert await fails(one, server.base, allow_loopback=False) == "refused"
        assert await fails(one, "https://10.0.0.1/") == "refused"
        assert await fails(one, "https://localhost/", allow_loopback=False) == "refused"
    assert (server.connections, dns.asked) == (0, [])


async def test_post_to_a_name_of_this_machine_is_refused_before_connecting() -> None:
    async with scripted(always(200)) as server:
        port = server.base.rpartition(":")[2]
        for answers in (["127.0.0.1"], ["::1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"]):
            dns = Dns(answers)
            async with egress(lookup=dns) as one:
                url = f"https://shop.example:{port}/"
                assert await fails(one, url, allow_loopback=False) == "refused"
            assert dns.asked == [("shop.example", int(port))]
    assert server.connections == 0


async def test_post_connects_to_the_address_that_was_checked() -> None:
    dns = Dns(["127.0.0.1"], ["10.0.0.1"])
    async with egress(lookup=dns) as one, scripted(always(200, b"here")) as server:
        port = server.base.rpartition(":")[2]
        answer = await post(one, f"http://localhost:{port}/")
    assert answer.body_start == "here"
    assert dns.asked == [("localhost", int(port))]
    assert server.asked[0].headers["host"] == f"localhost:{port}"


async def test_post_to_a_name_without_an_address_fails_with_dns() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, f"no {host}:{port}")

    async with egress(lookup=unknown) as one:
        assert await fails(one, "https://shop.example/", allow_loopback=False) == "dns"


async def test_post_with_a_slow_answer_times_out() -> None:
    """A status line in time is the answer, with or without its body."""

    async def answer(asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        if asked.path == "/silent":
            await asyncio.sleep(600)
        elif asked.path == "/head":
            for byte in b"HTTP/1.1 200 Said\r\n" + b"X-Long: 1\r\n" * 1000:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
        else:
            await drip(writer, 200, 0.05)

    async with egress(timeout=0.6) as one, scripted(answer) as server:
        # Each of them would continue for minutes.
        async with asyncio.timeout(60):
            for path in ("/head", "/silent"):
                assert await fails(one, server.base + path) == "too_slow", path
            said = await post(one, server.base + "/body")
            assert (said.status, said.body_start.strip(), said.ms >= 600) == (200, "", True)


async def test_post_with_an_endless_body_reads_64_kib() -> None:
    written = 0
    broken_off = asyncio.Event()

    async def answer(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 Said\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await writer.drain()
                written += 4096
                await asyncio.sleep(0.001)
        except ConnectionError:
            broken_off.set()
            raise

    async with egress(timeout=8) as one, scripted(answer) as server:
        said = await post(one, server.base)
        # Bytes in transit count as well, but are few: the server writes slowly.
        assert 65_536 <= written < 1_048_576
        assert (said.status, said.body_start) == (200, "x" * 1024)
        async with asyncio.timeout(5):
            await broken_off.wait()
        assert said.ms < 5000
        # The rest of one answer is not read as the next.
        server.answer = always(204)
        assert (await post(one, server.base)).status == 204


async def test_post_answer_has_the_first_1024_characters_of_its_body() -> None:
    for body, shown in (
        (b"x" * 1024, "x" * 1024),
        (b"y" * 60_000, "y" * 1024),
        ("\u00e9".encode() * 5000, "\u00e9" * 1024),
        ("\U0001f600".encode() * 5000, "\U0001f600" * 1024),
        (b"a\x00b\xffc", "ab\ufffdc"),
        (b"", ""),
    ):
        async with egress() as one, scripted(always(200, body)) as server:
            assert (await post(one, server.base)).body_start == shown


async def test_post_with_a_connection_closed_before_a_status_fails_with_reset() -> None:
    async def answer(asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        if asked.path == "/in-the-body":
            writer.write(b"HTTP/1.1 200 Said\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
            await asyncio.sleep(0.1)
        if asked.path == "/politely":
            writer.close()
        else:
            reset(writer)

    async with egress() as one, scripted(answer) as server:
        for path in ("/at-once", "/politely"):
            assert await fails(one, server.base + path) == "reset", path
        said = await post(one, server.base + "/in-the-body")
        assert (said.status, said.body_start) == (200, "half")
        assert len(server.asked) == 3, "a call was repeated"


async def test_post_to_a_closed_port_fails_with_connect() -> None:
    with listening() as free:
        port = free.getsockname()[1]
    async with egress() as one:
        assert await fails(one, f"http://127.0.0.1:{port}/") == "connect"


async def test_post_with_an_answer_that_is_no_http_fails() -> None:
    async def answer(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"NONSENSE\r\n\r\n")
        await writer.drain()
        writer.close()

    async with egress(timeout=3) as one, scripted(answer) as server:
        assert await fails(one, server.base) in {"bad_answer", "reset"}


async def test_post_to_a_server_without_tls_fails_with_tls() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Said\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server, egress(timeout=5) as one:
        assert await fails(one, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/") == "tls"


async def test_post_to_a_server_with_an_untrusted_certificate_fails_and_sends_nothing(tmp_path: Path) -> None:
    received = b""

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        received += await reader.read()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path / "server.pem"))
    async with await asyncio.start_server(read, "127.0.0.1", 0, ssl=context) as server, egress(timeout=5) as one:
        assert await fails(one, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/") == "tls"
    assert received == b""


def self_signed(path: Path) -> Path:
    """Write a key and its self-signed certificate for 127.0.0.1 to one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    return path


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_post_does_not_follow_redirects(status: int) -> None:
    async with (
        egress() as one,
        scripted(always(200)) as elsewhere,
        scripted(always(status, b"go", Location=elsewhere.base + "/")) as server,
    ):
        assert (await post(one, server.base)).status == status
    assert (len(server.asked), elsewhere.connections) == (1, 0)


async def test_post_with_any_status_is_answered_once() -> None:
    async with egress() as one, scripted(always(200)) as server:
        for status in (200, 204, 400, 401, 404, 410, 429, 500, 503):
            server.answer = always(status)
            assert (await post(one, server.base)).status == status
        assert len(server.asked) == 9, "a call was repeated"


async def test_post_keeps_no_cookie_and_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(always(200)) as proxy, scripted(always(200, b"", Set_Cookie="a=b; Path=/")) as server:
        set_proxy_environment(proxy.base, monkeypatch)
        async with egress() as one:
            await post(one, server.base)
            await post(one, server.base)
    assert proxy.connections == 0
    assert all("cookie" not in asked.headers for asked in server.asked)
    assert len(server.asked) == 2


async def test_post_does_not_read_the_rest_of_a_slow_answer_as_the_next() -> None:
    """A late answer on a kept connection would be another delivery's."""

    async def answer(asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        if asked.path == "/slow":
            await asyncio.sleep(0.5)
            write(writer, 500, b"late")
        else:
            write(writer, 200, b"mine")

    async with egress(timeout=0.3) as one, scripted(answer) as server:
        await post(one, server.base + "/quick")
        assert await fails(one, server.base + "/slow") == "too_slow"
        await asyncio.sleep(0.4)
        said = await post(one, server.base + "/quick")
    assert (said.status, said.body_start) == (200, "mine")


async def test_post_of_many_calls_at_once_returns_each_its_own_answer() -> None:
    async def answer(asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        write(writer, 200, asked.path.encode())

    async def ask(one: Egress, server: ScriptedServer, number: int) -> bool:
        return (await post(one, f"{server.base}/{number}")).body_start == f"/{number}"

    async with egress() as one, scripted(answer) as server:
        assert all(await asyncio.gather(*(ask(one, server, number) for number in range(50))))
