"""Protects the conclusions of ``just soak``: percentiles, growth, jumps and refusals."""

import asyncio
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.soak.client import Client
from bench.soak.figures import percentile, trend
from bench.soak.load import Load
from bench.soak.logs import seconds_of
from mpesa_gateway.testing.receiver import receiving


def test_percentile_is_a_measured_value() -> None:
    values = [float(number) for number in range(1, 101)]
    random.Random(1).shuffle(values)  # noqa: S311 - an order, not a secret
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7
    with pytest.raises(ValueError, match="nothing to measure"):
        percentile([], 0.5)


def line(per_second: float, start: float = 100.0, noise: float = 1.0) -> list[tuple[float, float]]:
    """Return ten minutes of samples, one every five seconds."""
    rng = random.Random(2)  # noqa: S311 - noise, not a secret
    return [(second, start + second * per_second + rng.uniform(-noise, noise)) for second in range(0, 600, 5)]


def test_growth_is_found_and_jitter_is_not() -> None:
    assert trend(line(0.0)).is_flat(slack=2.0, share=0.0)
    leak = trend(line(0.1))
    assert not leak.is_flat(slack=6.0)
    assert 340 < leak.per_hour < 380
    assert 28 < leak.growth < 31


def test_warm_up_and_one_jump_are_no_leak() -> None:
    warm = [(second, value if second > 250 else value * second / 250) for second, value in line(0.0)]
    assert trend(warm).is_flat(slack=2.0, share=0.0)
    jump = [(second, 5.0 if second == 450 else value) for second, value in line(0.0)]
    assert trend(jump).is_flat(slack=2.0, share=0.0)


def test_growth_of_a_few_samples_is_unknown() -> None:
    with pytest.raises(ValueError, match="too few"):
        trend(line(0.0)[:7])


def test_log_yields_the_duration_of_each_route(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    request = (
        '{"event": "request", "route": "/a", "status": %d, "ms": %d, "timestamp": "2026-11-24T10:00:%02d.000000Z"}\n'
    )
    log.write_text(
        "Serving\n{not json\n"
        + request % (200, 100, 5)
        + request % (200, 200, 59)
        + request % (503, 300, 5)
        + (request % (201, 400, 6)).replace("/a", "/b")
        + request % (201, 500, 7)
    )
    minute = (datetime(2026, 11, 24, 10, 0, tzinfo=UTC), datetime(2026, 11, 24, 10, 0, 30, tzinfo=UTC))
    assert seconds_of([log], "/a", *minute) == [0.1, 0.5]


ENVELOPE = b'{"success":false,"errors":[{"code":"SERVICE_UNAVAILABLE","message":"busy"}],"request_id":"req_1"}'
PLAIN = b"Service Unavailable"


@pytest.mark.parametrize(
    ("headers", "body", "is_impolite"),
    [(b"Retry-After: 0\r\n", ENVELOPE, False), (b"", ENVELOPE, True), (b"Retry-After: 1\r\n", PLAIN, True)],
)
async def test_refusal_without_retry_after_or_envelope_is_impolite(
    headers: bytes, body: bytes, *, is_impolite: bool
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
        length = f"Content-Length: {len(body)}\r\n".encode()
        writer.write(b"HTTP/1.1 503 Busy\r\nConnection: close\r\n" + headers + length + b"\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    client = Client([server.sockets[0].getsockname()[1]], "key")
    load = Load(client, random.Random(3), lambda: False)  # noqa: S311 - the order of clients, not a secret
    phase = await load.flow(40.0, 0.2, is_patient=False)
    server.close()
    assert phase.offered > 0
    assert phase.answers == {503: phase.offered}
    assert (phase.served, phase.given_up, phase.refused) == (0, phase.offered, phase.offered)
    assert len(phase.impolite) == (phase.offered if is_impolite else 0)
    assert set(load.payments.values()) == {None}


async def test_client_without_a_server_tries_the_second_port() -> None:
    async with receiving() as receiver:
        port = int(receiver.url.rpartition(":")[2].partition("/")[0])
        client = Client([1, port], "key")
        answers = [await client.call("POST", "/x", {"a": 1}) for _ in range(4)]
        client.close()
    assert [answer.status for answer in answers] == [200] * 4
    assert (await Client([1], "key").call("GET", "/x")).status == 0
