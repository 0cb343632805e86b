"""Protects calls with slow or false DNS, and answers of random bytes: each is a fault, and no other call waits."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.daraja.client import DarajaClient, NotSent, OutcomeUnknown
from mpesa_gateway.dns import NameResolver
from mpesa_gateway.ids import Ids
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_payments.operations import STK_QUERY, StkQuery
from tests.kernel.daraja.test_client import CREDENTIALS, NIGHT, Daraja, started
from tests.kernel.scripted import scripted
from tests.name_server import always, name_server, never

SANDBOX, LIVE = CREDENTIALS, replace(CREDENTIALS, env="live")


def client_of(config: DarajaConfig, lookup: Any = None) -> DarajaClient:
    clock = SetClock(NIGHT)
    return DarajaClient(config, clock=clock, ids=Ids(clock), valkey=None, sealer=Sealer([b"k" * 32]), lookup=lookup)


async def test_daraja_with_an_unresponsive_dns_takes_no_thread_and_is_not_sent() -> None:
    async with name_server(never) as dns:
        names = NameResolver(servers=(dns.address,), timeout=2.0)
        client = client_of(DarajaConfig(sandbox_url="https://daraja.example.co.ke", max_concurrent_per_key=1000), names)
        async with started(client):
            calls = [
                asyncio.create_task(client.call(STK_QUERY, SANDBOX, StkQuery(f"ws_CO_{number}")))
                for number in range(50)
            ]
            await eventually(lambda: _is_asked(dns.asked))
            began = time.monotonic()
            assert await asyncio.gather(*(asyncio.to_thread(int, "1") for _ in range(20))) == [1] * 20
            await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
            assert time.monotonic() - began < 1
            assert not all(call.done() for call in calls)
            ended = await asyncio.gather(*calls, return_exceptions=True)
            # They waited together: one after the other would have taken 100 seconds.
            assert time.monotonic() - began < 10
            with pytest.raises(NotSent):
                await client.call(STK_QUERY, SANDBOX, StkQuery("ws_CO_1"))
        await names.close()
    assert all(isinstance(each, NotSent) for each in ended)
    assert len({id(each) for each in ended}) == 50


async def _is_asked(asked: list[Any]) -> bool:
    return bool(asked)


async def test_live_name_that_leads_to_this_machine_is_not_called() -> None:
    async with scripted(Daraja()) as server, name_server(always("127.0.0.1", "8.8.8.8")) as dns:
        port = server.base.rpartition(":")[2]
        names = NameResolver(servers=(dns.address,))
        for live in (f"https://api.safaricom.co.ke:{port}", f"https://API.Safaricom.co.ke:{port}/"):
            client = client_of(DarajaConfig(live_url=live), names)
            async with started(client):
                with pytest.raises(NotSent):
                    await client.call(STK_QUERY, LIVE, StkQuery("ws_CO_1"))
        await names.close()
    assert server.connections == 0


async def test_sandbox_name_may_lead_to_this_machine() -> None:
    """In Compose and Kubernetes the simulator's service has such a name."""
    daraja = Daraja()
    async with scripted(daraja) as server, name_server(always("127.0.0.1")) as dns:
        names = NameResolver(servers=(dns.address,))
        base = f"http://simulator.internal:{server.base.rpartition(':')[2]}"
        client = client_of(DarajaConfig(sandbox_url=base), names)
        async with started(client):
            await client.prepare(SANDBOX)
        await names.close()
    assert server.connections == 1


async def test_answers_of_random_bytes_are_faults() -> None:
    chance = random.Random(12)  # noqa: S311 - the same in every run, to find a failure again
    said = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    token = b'{"access_token": "t", "expires_in": "3599"}'
    good = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(token) + token
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = client_of(DarajaConfig(sandbox_url=base, timeout=1.0))
        async with started(client):
            for number in range(60):
                damaged = bytearray(good)
                for _ in range(1 + number % 3):
                    damaged[chance.randrange(len(damaged))] = chance.randrange(256)
                said = bytes(damaged) if number % 2 else chance.randbytes(chance.randrange(1, 300))
                # Each consumer key needs a token of its own.
                credentials = replace(CREDENTIALS, consumer_key=Secret(f"consumer-key-{number}"))
                with suppress(NotSent, OutcomeUnknown):
                    await client.call(STK_QUERY, credentials, StkQuery("ws_CO_1"))
