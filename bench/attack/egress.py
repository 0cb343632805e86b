"""Merchants with misbehaving webhook hosts, in a process of their own: ``python -m bench.attack.egress``.

Each sets its webhook, tests it repeatedly, and creates payments with events for it. Like an attacker of ``attackers``,
the process prints ``ready`` once it has begun, and ends by itself.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence

from bench.attack.attackers import attacking
from bench.soak.client import Client

ATTACKERS = 4
"""The number of attacking merchants."""

AT_ONCE = 4
"""Concurrent webhook tests of each: the limit of one merchant."""

_PAUSE = 3.0
"""Seconds between the answer to a test and the next one.

At most five tests a second in total, four times the limit of four merchants (``webhooks.tests_per_minute``).
"""

_PAYMENT_EVERY = 4.0
"""Seconds between two payments of one merchant."""

SCENARIOS = {
    "healthy": "healthy hosts, compared with windows without any: the cost of the calls themselves",
    "slow-dns": "hosts whose DNS answers after 20 s",
    "many-names": "the same, with a new name for every test",
    "hang": "hosts that never answer",
    "drip": "answers of a byte each 100 ms",
    "fast-drip": "answers of a byte each millisecond",
    "chunks": "answers in 70,000 chunks of one byte",
    "hints": "1,000 interim answers and no final one",
    "bad-chunk": "chunk header `ZZ`",
    "bomb": "10 MB that unpack to 10 GB",
    "huge-head": "heads of 10 MB",
    "redirect": "redirects to themselves",
}


def _address(scenario: str, web: int, merchant: int, count: int = 0) -> str:
    if scenario == "slow-dns":
        return f"https://slow-{merchant}.example.co.ke/"
    if scenario == "many-names":
        return f"https://slow-{merchant}-{count}-{time.monotonic_ns()}.example.co.ke/"
    return f"http://127.0.0.1:{web}/{scenario}"


async def attack(scenario: str, port: int, seconds: float, web: int, keys: Sequence[str]) -> dict[str, int]:
    """Attack for some seconds; returns the counts of the answers. The webhooks are removed at the end."""
    answers = Counter[str]()
    clients = [Client([port], key) for key in keys]

    async def test(number: int, client: Client) -> None:
        count = 0
        while True:
            if scenario == "many-names":
                count += 1
                await point(number, client, count)
            answer = await client.call("POST", "/v1/merchant/webhook/test")
            answers[str(answer.status)] += 1
            await asyncio.sleep(_PAUSE)

    async def buy(number: int, client: Client) -> None:
        await asyncio.sleep(number * _PAYMENT_EVERY / len(clients))
        while True:
            body = {"amount": 10, "phone": f"25472000000{number}", "provider": "mpesa"}
            await client.call("POST", "/v1/payments", body, key=f"{scenario}-{time.monotonic_ns()}")
            await asyncio.sleep(_PAYMENT_EVERY)

    async def point(number: int, client: Client, count: int = 0) -> None:
        await client.call("PUT", "/v1/merchant/webhook", {"webhook_url": _address(scenario, web, number, count)})

    await asyncio.gather(*(point(number, client) for number, client in enumerate(clients)))
    tasks = [asyncio.create_task(buy(number, client)) for number, client in enumerate(clients)]
    tasks += [
        asyncio.create_task(test(number, client)) for number, client in enumerate(clients) for _ in range(AT_ONCE)
    ]
    print("ready", flush=True)
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(client.call("DELETE", "/v1/merchant/webhook") for client in clients))
    return dict(answers)


if __name__ == "__main__":
    name, at, how_long, host, *secrets = sys.argv[1:]
    attacking(attack(name, int(at), float(how_long), int(host), secrets))
