"""What an honest merchant still gets done while other merchants' webhook hosts misbehave.

``python -m bench.attack.egress``: one gateway with its worker, and for each scenario windows with and without it that
take turns. Everything listens on loopback.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.attack.floods import Attacked, Merchant
from bench.soak.client import Client
from mpesa_gateway.standalone.process import launch, stop
from mpesa_gateway.testing.serving import SANDBOX

BAR = 0.9
"""Share of its creates that an honest merchant keeps while other merchants' servers or names misbehave."""

ATTACKERS = 4
"""Merchants that attack, each with four tests of its webhook at a time."""

_AT_ONCE = 4
_DNS_SECONDS = 20.0
_SETTLE = 1.0

SCENARIOS = {
    "nothing": "no calls at all: the noise of this measurement",
    "healthy": "healthy webhooks, called as often",
    "slow-dns": "webhook hosts whose DNS answers after 20 s",
    "chunks": "webhook answers in 70,000 chunks of one byte",
    "hints": "webhook answers of 1,000 interim answers and no final one",
    "bad-chunk": "webhook answers with chunk header ZZ",
    "drip": "webhook answers of one byte each 100 ms",
    "bomb": "webhook answers of 10 MB that unpack to 10 GB",
}

_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_ANSWERS = {
    "chunks": _CHUNKED + b"1\r\nx\r\n" * 70_000 + b"0\r\n\r\n",
    "hints": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
    "bad-chunk": _CHUNKED + b"ZZ\r\nhi\r\n0\r\n\r\n",
    "bomb": _OK + b"Content-Encoding: gzip\r\nContent-Length: 10000000\r\n\r\n" + b"\x1f\x8b" + b"\0" * 10_000_000,
}


@dataclass(frozen=True)
class Outcome:
    """What one scenario came to: creates per second without and during it, and what the attackers were answered."""

    scenario: str
    without: float
    during: float
    refused: int
    cpu: tuple[float, float]
    """Seconds of processor time that the gateway took for each second, without and during it."""
    answers: dict[str, int]
    is_alive: bool

    @property
    def share(self) -> float:
        """Creates during the attack as a share of those without it."""
        return self.during / self.without if self.without else 0.0

    @property
    def is_withstood(self) -> bool:
        """Whether the gateway still serves and the honest merchant kept its share."""
        return self.is_alive and self.share >= BAR


class _SlowDns(asyncio.DatagramProtocol):
    """Says after 20 seconds that no name exists."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = data[:2] + b"\x81\x83" + data[4:]
        asyncio.get_running_loop().call_later(_DNS_SECONDS, self._transport.sendto, answer, addr)  # type: ignore[attr-defined]


@asynccontextmanager
async def _hostile() -> AsyncGenerator[tuple[int, int]]:
    """The ports of a name server and of a web server that misbehave, for the length of the block."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).split(b" ")
            name = head[1].decode("latin-1").strip("/")
            if name == "drip":
                writer.write(_OK + b"Content-Length: 100000\r\n\r\n")
                while not writer.is_closing():
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)
            else:
                writer.write(_ANSWERS.get(name, _OK + b"Content-Length: 0\r\n\r\n"))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(_SlowDns, ("127.0.0.1", 0))
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield udp.get_extra_info("sockname")[1], server.sockets[0].getsockname()[1]
        finally:
            udp.close()


async def attack(scenario: str, port: int, web: int, seconds: float, keys: Sequence[str]) -> dict[str, int]:
    """Merchants that set their webhooks and test them without a pause; returns how often each answer came."""
    url = "https://slow.example.co.ke/" if scenario == "slow-dns" else f"http://127.0.0.1:{web}/{scenario}"
    answers = Counter[str]()

    async def one(client: Client) -> None:
        while scenario != "nothing":
            answer = await client.call("POST", "/v1/merchant/webhook/test")
            answers[str(answer.status)] += 1
            # How many calls a key may make altogether is no question of this measurement.
            await asyncio.sleep(max(1, int(answer.headers.get("retry-after", "0"))))

    clients = [Client([port], key) for key in keys]
    for number, client in enumerate(clients):
        mine = url.replace("slow.", f"slow-{number}.")
        await client.call("PUT", "/v1/merchant/webhook", {"webhook_url": mine})
        for count in range(5):
            body = {"amount": 10, "phone": "254708374149", "provider": "mpesa"}
            await client.call("POST", "/v1/payments", body, key=f"{scenario}-{count}-{time.monotonic_ns()}")
    tasks = [asyncio.create_task(one(client)) for client in clients for _ in range(_AT_ONCE)]
    # The measurement begins now: starting this process is no part of the attack.
    print("ready", flush=True)
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return dict(answers)


class _Site(Attacked):
    """A gateway that asks the slow name server."""

    def __init__(self, folder: Path, dns: int) -> None:
        super().__init__(folder, "gateway")
        self._dns = dns

    @property
    def processor_seconds(self) -> float:
        """What the gateway's processes have taken so far."""
        found, waiting = 0, [0 if self._process is None else self._process.pid]
        while waiting:
            pid = waiting.pop()
            with suppress(OSError, IndexError):
                words = (
                    Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
                )
                found += int(words[11]) + int(words[12])
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text(encoding="ascii").split())
        return found / os.sysconf("SC_CLK_TCK")

    def _settings(self) -> dict[str, str]:
        return super()._settings() | {"DNS__SERVERS": f"127.0.0.1:{self._dns}"}


async def measure(
    scenario: str, site: _Site, merchant: Merchant, web: int, keys: Sequence[str], *, seconds: float, rounds: int
) -> Outcome:
    """Windows of ``seconds`` without and with one scenario, in turns. The attackers are a process of their own."""
    port = site.base.rpartition(":")[2]
    without = [await _window(site, merchant, seconds)]
    during, refused, answers = list[tuple[float, int, float]](), 0, Counter[str]()
    for _ in range(rounds):
        words = ["attack", scenario, port, str(web), str(_SETTLE + seconds), *keys]
        command = [sys.executable, "-m", "bench.attack.egress", *words]
        process = launch(command, output=subprocess.PIPE, death_signal=signal.SIGKILL, cwd=Path(__file__).parents[2])
        try:
            if process.stdout is not None:
                await asyncio.to_thread(process.stdout.readline)
            await asyncio.sleep(_SETTLE)
            during.append(await _window(site, merchant, seconds))
            output, _ = await asyncio.to_thread(process.communicate, timeout=60)
        finally:
            stop(process, (signal.SIGTERM,), 5)
        refused += during[-1][1]
        answers.update(json.loads(output.splitlines()[-1]) if output.strip() else {})
        without.append(await _window(site, merchant, seconds))
    rates = [statistics.mean(rate for rate, _, _ in windows) for windows in (without, during)]
    cpu = [statistics.mean(each for _, _, each in windows) for windows in (without, during)]
    return Outcome(scenario, rates[0], rates[1], refused, (cpu[0], cpu[1]), dict(answers), site.is_alive)


async def _window(site: _Site, merchant: Merchant, seconds: float) -> tuple[float, int, float]:
    """Creates per second, calls refused, and processor time of the gateway per second."""
    before = site.processor_seconds
    rate, refused = await merchant.per_second(seconds)
    return rate, refused, (site.processor_seconds - before) / seconds


async def run(scenarios: Sequence[str], *, seconds: float, rounds: int) -> list[Outcome]:
    """Every scenario against one gateway."""
    found = list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="egress-") as name:
        async with _hostile() as (dns, web):
            site = _Site(Path(name), dns)
            try:
                await asyncio.to_thread(site.start)
                keys = [await asyncio.to_thread(_open_shop, site, f"Shop {number}") for number in range(ATTACKERS + 1)]
                merchant = Merchant(int(site.base.rpartition(":")[2]), keys[0])
                await merchant.per_second(2)
                for scenario in scenarios:
                    outcome = await measure(scenario, site, merchant, web, keys[1:], seconds=seconds, rounds=rounds)
                    print(f"  {scenario}: {outcome.share:.2f} {outcome.answers}", file=sys.stderr, flush=True)
                    found.append(outcome)
            finally:
                await asyncio.to_thread(site.close)
    return found


def _open_shop(site: Attacked, name: str) -> str:
    merchant = site.read("merchants", "create", name).split()[-1]
    secret = site.read("apikeys", "create", merchant, "--name", "attack").split()[-1]
    client = Client([int(site.base.rpartition(":")[2])], secret)
    answer = asyncio.run(client.call("PUT", "/v1/merchant/providers", SANDBOX))
    if answer.status != 200:
        raise RuntimeError(f"the shop cannot be opened: {answer.status} {answer.body.decode()}")
    return str(secret)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = [
        f"| {ATTACKERS} merchants with | creates/s without | with | share | CPU without | with | their tests |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for one in outcomes:
        answers = ", ".join(f"{status}: {count}" for status, count in sorted(one.answers.items()))
        row = (
            SCENARIOS[one.scenario],
            f"{one.without:.1f}",
            f"{one.during:.1f}",
            f"{one.share:.2f}",
            *(f"{each:.2f}" for each in one.cpu),
            answers,
        )
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the scenarios that the arguments name; the exit status is 0 if each was withstood."""
    if sys.argv[1:2] == ["attack"]:
        scenario, port, web, seconds, *keys = sys.argv[2:]
        print(json.dumps(asyncio.run(attack(scenario, int(port), int(web), float(seconds), keys))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="these (default: all)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=2, help="windows with each scenario")
    options = parser.parse_args()
    outcomes = asyncio.run(run(options.scenario or list(SCENARIOS), seconds=options.seconds, rounds=options.rounds))
    print(table(outcomes))
    return 0 if all(one.is_withstood for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
