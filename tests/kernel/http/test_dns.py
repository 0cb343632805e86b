"""Protects DNS look-ups: slow, wrong, truncated, endless answers, and search domains."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpesa_gateway.dns import ClientResolver, NameResolver
from mpesa_gateway.testing.serving import eventually
from tests.name_server import (
    AAAA,
    CNAME,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    A,
    Answering,
    NameServer,
    Question,
    Records,
    always,
    name_server,
    never,
)


@asynccontextmanager
async def looking_up(answer: Answering, **options: Any) -> AsyncGenerator[tuple[NameResolver, NameServer]]:
    async with name_server(answer) as server:
        names = NameResolver(servers=(server.address,), **options)
        try:
            yield names, server
        finally:
            await names.close()


async def test_lookup_returns_addresses_of_both_families() -> None:
    async with looking_up(always("8.8.8.8", "8.8.4.4", "2606:4700:4700::1111")) as (names, server):
        assert set(await names("shop.example", 443)) == {"8.8.8.8", "8.8.4.4", "2606:4700:4700::1111"}
    assert {kind for _, _, kind in server.asked} == {A, AAAA}


async def test_lookup_of_literal_or_localhost_asks_no_server() -> None:
    async with looking_up(never) as (names, server):
        assert await names("192.0.2.1", 443) == ["192.0.2.1"]
        assert await names("2606:4700:4700::1111", 443) == ["2606:4700:4700::1111"]
        assert set(await names("LOCALHOST", 80)) == {"127.0.0.1", "::1"}
        # Names in /etc/hosts need no server.
        assert socket.gethostname() == "localhost" or await names(socket.gethostname(), 80)
    assert server.asked == []


@pytest.mark.parametrize("code", [NXDOMAIN, SERVFAIL, REFUSED])
async def test_lookup_of_name_without_address_raises_gaierror(code: int) -> None:
    async with looking_up(always(code=code)) as (names, _):
        with pytest.raises(socket.gaierror):
            await names("shop.example", 443)


async def loops(question: Question) -> Records:
    return Records(((question.name, CNAME, "other.example"), ("other.example", CNAME, question.name)))


async def says_nonsense(_: Question) -> bytes:
    return b"\x00\x01nonsense"


async def answers_another(question: Question) -> bytes:
    # The right answer with another identifier: it belongs to another question.
    head = (question.ident ^ 0xFFFF).to_bytes(2, "big") + b"\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00"
    return head + question.raw


@pytest.mark.parametrize("answer", [loops, says_nonsense, answers_another, never, always()])
async def test_lookup_of_bad_answer_raises_within_its_time(answer: Answering) -> None:
    async with looking_up(answer, timeout=0.5) as (names, _):
        began = time.monotonic()
        with pytest.raises(OSError):
            await names("shop.example", 443)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64 + ".example", "a\x00b.example", "-", "b\u00fccher.example"])
async def test_lookup_of_name_that_is_none_raises_os_error_or_unicode_error(name: str) -> None:
    async with looking_up(always(code=NXDOMAIN)) as (names, _):
        with pytest.raises((OSError, UnicodeError)):
            await names(name, 443)


async def test_lookup_follows_alias_and_returns_the_address_behind_it() -> None:
    async def answer(question: Question) -> Records:
        alias = (question.name, CNAME, "inside.example")
        return Records((alias, ("inside.example", A, "10.0.0.1")) if question.kind == A else (alias,))

    async with looking_up(answer) as (names, _):
        assert await names("shop.example", 443) == ["10.0.0.1"]


async def test_lookup_of_answer_cut_short_asks_again_by_tcp() -> None:
    async def answer(question: Question) -> Records:
        if server.asked[-1][0] == "udp":
            return Records(is_cut_short=True)
        return Records(((question.name, A, "8.8.4.4"),) if question.kind == A else ())

    async with looking_up(answer) as (names, server):
        assert await names("shop.example", 443) == ["8.8.4.4"]
    assert {transport for transport, _, _ in server.asked} == {"udp", "tcp"}


async def test_lookup_of_hundred_records_returns_each_of_them() -> None:
    """Each is checked before one is called."""
    every = [f"8.8.{number}.1" for number in range(100)]
    async with looking_up(always(*every)) as (names, _):
        assert sorted(await names("shop.example", 443)) == sorted(every)


async def test_lookup_asks_the_machines_search_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """These variables replace ``search`` and ``options`` of resolv.conf for one process."""
    monkeypatch.setenv("LOCALDOMAIN", "shop.svc.cluster.local")
    monkeypatch.setenv("RES_OPTIONS", "ndots:5")
    known = {"api.shop.svc.cluster.local": "10.9.9.9", "daraja.internal.example": "8.8.8.8"}

    async def answer(question: Question) -> Records:
        if question.name not in known:
            return Records(code=NXDOMAIN)
        return Records(((question.name, A, known[question.name]),) if question.kind == A else ())

    async with looking_up(answer) as (names, server):
        assert await names("api", 8000) == ["10.9.9.9"]
        assert await names("daraja.internal.example", 443) == ["8.8.8.8"]
        asked = list(dict.fromkeys(name for _, name, _ in server.asked))
        # With three dots and ndots:5 the search list comes first, as in a Kubernetes pod.
        assert asked[0] == "api.shop.svc.cluster.local"
        assert asked[1:] == [
            "daraja.internal.example.shop.svc.cluster.local",
            "daraja.internal.example",
        ]
        with pytest.raises(socket.gaierror):
            await names("api.", 8000)


async def test_lookup_of_slow_names_delays_no_other_and_takes_no_thread() -> None:
    released = asyncio.Event()

    async def answer(question: Question) -> Records:
        if question.name.startswith("slow"):
            await released.wait()
        return Records(((question.name, A, "8.8.8.8"),) if question.kind == A else ())

    async with looking_up(answer) as (names, server):
        assert await names("first.example", 443) == ["8.8.8.8"]
        threads = threading.active_count()
        waiting = [asyncio.create_task(names(f"slow-{number % 40}.example", 443)) for number in range(200)]
        await eventually(lambda: _has(server, 80))
        began = time.monotonic()
        assert await names("quick.example", 443) == ["8.8.8.8"]
        assert time.monotonic() - began < 4
        assert threading.active_count() <= threads + 1
        assert not any(task.done() for task in waiting)
        # A cancelled caller does not cancel the look-up of others.
        waiting[0].cancel()
        released.set()
        assert await asyncio.gather(*waiting[1:]) == [["8.8.8.8"]] * 199
    assert len([name for _, name, kind in server.asked if name == "slow-3.example" and kind == A]) <= 2


async def _has(server: NameServer, count: int) -> bool:
    return len({(name, kind) for _, name, kind in server.asked if name.startswith("slow")}) >= count


async def test_lookup_that_takes_too_long_raises_timeout() -> None:
    async with looking_up(never, timeout=0.3) as (names, _):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await names("shop.example", 443)
        assert 0.25 < time.monotonic() - began < 2


async def test_close_ends_open_lookups_and_the_next_one_works() -> None:
    async with looking_up(never) as (names, server):
        waiting = asyncio.create_task(names("shop.example", 443))
        await eventually(lambda: _was_asked(server))
        await names.close()
        with pytest.raises(socket.gaierror):
            await waiting
        server.answer = always("8.8.8.8")
        assert await names("shop.example", 443) == ["8.8.8.8"]


async def _was_asked(server: NameServer) -> bool:
    return bool(server.asked)


async def test_lookup_of_too_many_names_at_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpesa_gateway.dns._MOST", 3)
    async with looking_up(never, timeout=1.0) as (names, _):
        waiting = [asyncio.create_task(names(f"{number}.example", 443)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(socket.gaierror):
            await names("fourth.example", 443)
        assert await names("192.0.2.1", 443) == ["192.0.2.1"]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=600), st.booleans())
async def test_lookup_answer_of_any_bytes_is_addresses_or_an_error(data: bytes, is_framed: bool) -> None:
    async def answer(question: Question) -> bytes:
        if not is_framed:
            return data
        counts = b"\x00\x01\x00\x05\x00\x00\x00\x00"
        return question.ident.to_bytes(2, "big") + b"\x81\x80" + counts + question.raw + data

    async with looking_up(answer, timeout=0.2) as (names, _):
        try:
            found = await names("shop.example", 443)
        except OSError:
            return
        assert all(isinstance(text, str) for text in found)


async def test_resolver_of_the_http_library_returns_the_lookups_addresses() -> None:
    async def lookup(host: str, port: int) -> list[str]:
        assert (host, port) == ("shop.example", 443)
        return ["8.8.8.8", "2606:4700:4700::1111"]

    resolver = ClientResolver(lookup).recycle()
    assert resolver.is_available()
    for host in ("shop.example", b"shop.example"):
        assert await resolver.getaddrinfo(host, 443, socket.AF_UNSPEC, socket.SOCK_STREAM) == [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 443)),
            (socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("2606:4700:4700::1111", 443, 0, 0)),
        ]
    await resolver.close()
