"""Merchants whose servers or names misbehave: every attempt is counted, and no other merchant waits."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.http.egress import EgressFailed
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.schedule import PAUSES
from tests.name_server import NXDOMAIN, A, Question, Records, always, name_server
from tests.plugins.webhooks.test_side_by_side import owe

OK = b"HTTP/1.1 200 OK\r\n"
OUTCOME = (
    "SELECT status, attempts, last_status, last_error, due_at > now() AS is_later FROM delivery WHERE delivery_id = $1"
)


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """No worker: a test delivers what it wants delivered."""
    return values | {"worker": {"in_process": False, "grace": 0}, "webhooks": {"breaker_failures": 1000}}


class Server:
    """Answers each connection with the present bytes, whatever it is sent, and closes."""

    def __init__(self) -> None:
        self.says: Sequence[bytes] = ()
        self.asked = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        try:
            await reader.read(1)
            for part in self.says:
                writer.write(part)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def saying(*parts: bytes) -> AsyncGenerator[Server]:
    one = Server()
    one.says = parts
    async with await asyncio.start_server(one.serve, "127.0.0.1", 0) as server:
        one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        yield one


DELIVERED = {
    "ZZ for a chunk's size": OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nhi\r\n0\r\n\r\n",
    "no gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
    "too short": OK + b"Content-Length: 100\r\n\r\nhi",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nhi",
    "a header without a colon": OK + b"nonsense\r\n\r\n",
    "hints first": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000 + b"HTTP/1.1 204 No Content\r\n\r\n",
    "chunks of one byte": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 70_000 + b"0\r\n\r\n",
}
COUNTED = {
    "hints only": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
    "hints without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000,
    "nothing": b"",
    "no HTTP": b"\x15\x03\x01\x00\x02\x02\x16",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "no status": b"HTTP/1.1 two hundred OK\r\n\r\n",
    "an error with a broken body": b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
}


async def send(gateway: Gateway, delivery_id: str) -> dict[str, Any]:
    """Deliver once, and how the delivery stands."""
    await gateway.services.get(DeliveryService).deliver([delivery_id])
    row = await gateway.db.fetchrow(OUTCOME, delivery_id)
    assert row is not None
    return dict(row)


async def test_delivery_with_2xx_status_is_delivered_whatever_its_body(values: dict[str, Any]) -> None:
    async with (
        saying() as server,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=server.url) as api,
    ):
        ids = await owe(gateway, api, len(DELIVERED), "a")
        for delivery_id, (name, said) in zip(ids, DELIVERED.items(), strict=True):
            server.says = [said]
            found = await send(gateway, delivery_id)
            assert (found["status"], found["attempts"]) == ("delivered", 1), name
            tested = (await api.call("POST", "/v1/merchant/webhook/test")).data
            assert tested["delivered"], name


async def test_delivery_without_status_is_counted_attempt_and_dead_in_the_end(values: dict[str, Any]) -> None:
    async with (
        saying() as server,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=server.url) as api,
    ):
        ids = await owe(gateway, api, len(COUNTED), "a")
        for delivery_id, (name, said) in zip(ids, COUNTED.items(), strict=True):
            server.says = [said]
            found = await send(gateway, delivery_id)
            assert (found["status"], found["attempts"], found["is_later"]) == ("pending", 1, True), name
            assert found["last_error"], name
            tested = await api.call("POST", "/v1/merchant/webhook/test")
            assert (tested.status, tested.data["delivered"]) == (200, False), name
        # The schedule ends, as it does for every failure.
        server.says = [COUNTED["hints only"]]
        found = dict[str, Any]()
        for attempt in range(2, len(PAUSES) + 2):
            await gateway.db.execute(
                "UPDATE delivery SET due_at = now() - interval '1 second', leased_until = NULL WHERE delivery_id = $1",
                ids[0],
            )
            found = await send(gateway, ids[0])
            assert found["attempts"] == attempt
        assert found["status"] == "dead"


def random_answers(count: int) -> list[list[bytes]]:
    """Answers of random bytes, half of them behind a head that has been damaged at a random place."""
    chance = random.Random(14)  # noqa: S311 - the same in every run, to find a failure again
    found = list[list[bytes]]()
    for number in range(count):
        said = chance.randbytes(chance.randrange(300))
        if number % 2:
            head = bytearray(OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            head[chance.randrange(len(head))] = chance.randrange(256)
            said = bytes(head) + said
        cut = chance.randrange(len(said) + 1)
        found.append([said[:cut], said[cut:]])
    return found


async def test_delivery_to_server_of_random_bytes_is_delivered_or_counted(values: dict[str, Any]) -> None:
    async with (
        saying() as server,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=server.url) as api,
    ):
        answers = random_answers(60)
        outcomes = Counter[str]()
        for delivery_id, server.says in zip(await owe(gateway, api, len(answers), "a"), answers, strict=True):
            found = await send(gateway, delivery_id)
            assert found["attempts"] == 1, server.says
            assert (found["status"] == "delivered") == (found["last_status"] in range(200, 300)), server.says
            outcomes[found["status"]] += 1
        assert set(outcomes) == {"delivered", "pending"}


# -- names -------------------------------------------------------------------------------------------------------------


async def slow(question: Question) -> Records:
    """A name server that answers after 20 seconds for names that begin with ``slow``."""
    if question.name.startswith("slow"):
        await asyncio.sleep(20)
    return Records(code=NXDOMAIN)


async def set_urls(gateway: Gateway, api: Api, url: str) -> str:
    merchant_id: str = (await api.call("GET", "/v1/merchant/me")).data["id"]
    await gateway.db.execute("UPDATE webhook_endpoint SET url = $2 WHERE merchant_id = $1", merchant_id, url)
    return merchant_id


async def test_merchant_with_slow_dns_delays_no_other(values: dict[str, Any]) -> None:
    released = asyncio.Event()

    async def answer(question: Question) -> Records:
        if not question.name.startswith("quick"):
            await released.wait()
        return Records(code=NXDOMAIN)

    async with (
        name_server(answer) as dns,
        receiving() as receiver,
        running_gateway(values | {"dns": {"servers": [dns.address], "timeout": 20.0}}) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as one,
        shop(gateway, base, webhook_url=receiver.url) as other,
        shop(gateway, base, webhook_url=receiver.url) as third,
    ):
        await set_urls(gateway, one, "https://slow.example.co.ke/")
        await set_urls(gateway, third, "https://quick.example.co.ke/")
        theirs, ours = await owe(gateway, one, 20, "a"), await owe(gateway, other, 5, "b")
        sending = asyncio.create_task(gateway.services.get(DeliveryService).deliver(theirs))
        testing = [asyncio.create_task(one.call("POST", "/v1/merchant/webhook/test")) for _ in range(4)]
        await eventually(lambda: _was_asked(dns.asked))
        assert await gateway.services.get(DeliveryService).deliver(ours) == 5
        # A name of another merchant is looked up meanwhile.
        (looked_up,) = await owe(gateway, third, 1, "c")
        assert (await send(gateway, looked_up))["last_error"] == "the host's name could not be resolved"
        made = [await other.pay("254711000080", key=f"order-{number}") for number in range(5)]
        assert [answer.status for answer in made] == [201] * 5
        # All of that while nothing has answered the other merchant's look-ups.
        assert not sending.done()
        assert len(receiver.received) == 5
        released.set()
        tested = await asyncio.gather(*testing)
        assert sorted({answer.status for answer in tested}) == [200, 429]
        refused = next(answer for answer in tested if answer.status == 429)
        assert int(refused.headers["retry-after"]) > 0
        assert all("name" in answer.data["error"] for answer in tested if answer.status == 200)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _was_asked(asked: Sequence[object]) -> bool:
    return bool(asked)


async def test_lookups_beyond_the_merchants_bound_use_up_no_attempt(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpesa_gateway.http.egress._LOOKUPS_EACH", 1)
    async with (
        name_server(slow) as dns,
        receiving() as receiver,
        running_gateway(values | {"dns": {"servers": [dns.address], "timeout": 1.0}}) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        first, same, other = await owe(gateway, api, 3, "a")
        await set_urls(gateway, api, "https://slow-1.example.co.ke/")
        waiting = asyncio.create_task(gateway.services.get(DeliveryService).deliver([first, same]))
        await eventually(lambda: _was_asked(dns.asked))
        await set_urls(gateway, api, "https://slow-2.example.co.ke/")
        found = await send(gateway, other)
        # Nothing was sent, and nothing was counted: it is put off as it is.
        assert (found["attempts"], found["status"], found["is_later"]) == (0, "pending", True)
        refused = await api.call("POST", "/v1/merchant/webhook/test")
        assert (refused.status, refused.headers["retry-after"]) == (429, "10")
        # Calls that wait for one name wait for one question, and fail together.
        await waiting
        for delivery_id in (first, same):
            row = await gateway.db.fetchrow(OUTCOME, delivery_id)
            assert row is not None
            assert row["last_error"] == "the host's name could not be resolved in time"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1"])
async def test_name_that_leads_inside_is_refused_before_anything_is_connected(
    values: dict[str, Any], address: str
) -> None:
    values["webhooks"] = {"allow_loopback": False}
    async with (
        saying(OK + b"\r\n") as server,
        name_server(always("8.8.8.8", address)) as dns,
        running_gateway(values | {"dns": {"servers": [dns.address]}}) as (gateway, base),
        shop(gateway, base, webhook_url="https://shop.example.co.ke/") as api,
    ):
        await set_urls(gateway, api, f"https://shop.example.co.ke:{server.url.rpartition(':')[2]}")
        (delivery_id,) = await owe(gateway, api, 1, "a")
        found = await send(gateway, delivery_id)
        assert (found["attempts"], found["last_error"]) == (
            1,
            "the address resolves to a private, local or reserved address",
        )
        tested = (await api.call("POST", "/v1/merchant/webhook/test")).data
        assert "private" in tested["error"]
        assert (server.asked, bool(dns.asked)) == (0, True)


async def test_name_that_changes_its_mind_between_two_calls_is_checked_each_time(values: dict[str, Any]) -> None:
    answers = iter(["8.8.8.8", "127.0.0.1"])

    async def answer(question: Question) -> Records:
        return Records(((question.name, A, next(answers, "127.0.0.1")),) if question.kind == A else ())

    values["webhooks"] = {"allow_loopback": False}
    async with (
        name_server(answer) as dns,
        running_gateway(values | {"dns": {"servers": [dns.address]}}) as (gateway, _),
    ):
        egress = gateway.services.get(DeliveryService).egress
        addresses = await gateway.names("first.example.co.ke", 443)
        assert addresses == ["8.8.8.8"]
        with pytest.raises(EgressFailed, match="private"):
            await egress.post("https://second.example.co.ke/", body=b"", headers={}, allow_loopback=False)


# -- this machine ------------------------------------------------------------------------------------------------------


async def go_live(gateway: Gateway) -> None:
    merchant = await gateway.merchants.create("A live shop", actor="test")
    await gateway.merchants.set_envs(merchant.merchant_id, ["live"])


async def test_once_one_merchant_is_live_no_webhook_goes_to_this_machine(values: dict[str, Any]) -> None:
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        first, queued, replayed = await owe(gateway, api, 3, "a")
        assert (await send(gateway, first))["status"] == "delivered"
        assert (await api.call("POST", "/v1/merchant/webhook/test")).data["delivered"]
        assert len(receiver.received) == 2
        await go_live(gateway)
        # What was set and queued before, on a connection that is still open.
        found = await send(gateway, queued)
        assert (found["status"], found["attempts"]) == ("pending", 1)
        assert "must be an https address" in found["last_error"]
        tested = (await api.call("POST", "/v1/merchant/webhook/test")).data
        assert (tested["delivered"], tested["answer"]) == (False, "")
        for url in (receiver.url, "https://localhost:8443/", "https://127.0.0.1/"):
            refused = await api.call("PUT", "/v1/merchant/webhook", {"webhook_url": url})
            assert (refused.status, refused.error["field"]) == (422, "webhook_url")
        assert (await api.call("POST", f"/v1/webhooks/logs/{first}/replay")).status == 200
        await send(gateway, first)
        await send(gateway, replayed)
        assert len(receiver.received) == 2
        # Without live merchants it is a sandbox again.
        await gateway.db.execute("UPDATE merchant SET envs = '{}' WHERE 'live' = ANY(envs)")
        await eventually(gateway.merchants.is_sandbox_only)
        assert (await api.call("POST", "/v1/merchant/webhook/test")).data["delivered"]


async def test_live_merchant_of_another_process_is_heard_of(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, _):
        assert await gateway.merchants.is_sandbox_only()
        merchant = await gateway.merchants.create("A live shop", actor="test")
        await gateway.db.execute("UPDATE merchant SET envs = '{live}' WHERE merchant_id = $1", merchant.merchant_id)

        async def is_live() -> bool:
            return not await gateway.merchants.is_sandbox_only()

        await eventually(is_live)


# -- tests of webhooks -------------------------------------------------------------------------------------------------


async def test_tests_are_limited_per_merchant_and_minute(values: dict[str, Any]) -> None:
    values["webhooks"] = {"tests_per_minute": 3}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as one,
        shop(gateway, base, webhook_url=receiver.url) as other,
    ):
        answers = [await one.call("POST", "/v1/merchant/webhook/test") for _ in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[-1].error["code"] == "RATE_LIMITED"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert (await other.call("POST", "/v1/merchant/webhook/test")).status == 200
        assert len(receiver.received) == 4
