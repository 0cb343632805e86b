"""The load: buyers arrive at a fixed rate independent of the answers, and their waiting times are measured."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from bench.chaos.shoppers import Purchase
from bench.soak.client import Answer, Client
from mpesa_gateway.http.envelope import Failure

_REFUSED = frozenset({429, 503})
_AGAIN = frozenset({0, 409, 429, 503})
_EXPLAINED = frozenset({0, 200, 201, 409, 429, 502, 503})
_TRIES = 6


@dataclass
class Phase:
    """The results between two moments: the duration of each operation, and the answer to each try."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict[str, list[float]](list))
    """Durations by operation, of successful calls."""
    in_peace: dict[str, list[float]] = field(default_factory=lambda: defaultdict[str, list[float]](list))
    """The same, of calls without a fault during them."""
    answers: Counter[int] = field(default_factory=Counter[int])
    offered: int = 0
    served: int = 0
    given_up: int = 0
    """Calls that failed after all tries."""
    impolite: list[str] = field(default_factory=list[str])
    """Refusals without Retry-After or outside the envelope: expected to be empty."""

    @property
    def refused(self) -> int:
        """Return the number of tries answered 429 or 503."""
        return sum(self.answers[status] for status in _REFUSED)


@dataclass
class Load:
    """The buyers. Requests and answers are recorded in the form of the verifier."""

    client: Client
    rng: random.Random
    is_broken: Callable[[], bool]
    purchases: dict[str, Purchase] = field(default_factory=dict[str, Purchase])
    payments: dict[str, str | None] = field(default_factory=dict[str, str | None])
    refunds: dict[str, str | None] = field(default_factory=dict[str, str | None])
    conflicts: list[str] = field(default_factory=list[str])
    unexplained: list[str] = field(default_factory=list[str])
    phase: Phase = field(default_factory=Phase)
    _known: list[str] = field(default_factory=list[str])

    async def flow(self, rate: float, seconds: float, *, is_patient: bool) -> Phase:
        """Start ``rate`` buyers a second for some seconds, evenly; returns the results once all are answered.

        Patient buyers retry refused calls with the same key after Retry-After.
        """
        self.phase = phase = Phase()
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks: set[asyncio.Task[None]] = set()
        number = 0
        while (now := loop.time() - began) < seconds:
            # All buyers due by now: a late wake-up must not reduce the load.
            while number < now * rate:
                number += 1
                phase.offered += 1
                task = asyncio.create_task(self._come(phase, _TRIES if is_patient else 1))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(1 / max(rate, 100))
        await asyncio.gather(*tasks)
        return phase

    async def _come(self, phase: Phase, tries: int) -> None:
        chance = self.rng.random()
        if chance < 0.45 or not self._known:
            await self._buy(phase, tries)
        elif chance < 0.80:
            await self._ask(phase, tries, "get", "GET", f"/v1/payments/{self._one()}")
        elif chance < 0.90:
            await self._ask(phase, tries, "list", "GET", "/v1/payments?limit=20&status=completed")
        elif chance < 0.95:
            await self._refund(phase, tries)
        else:
            await self._ask(phase, tries, "whoami", "GET", "/v1/merchant/me")

    def _one(self) -> str:
        """Return one of the last payments."""
        return self._known[-1 - self.rng.randrange(min(len(self._known), 500))]

    async def _buy(self, phase: Phase, tries: int) -> None:
        number = len(self.purchases)
        key, purchase = f"buy-{number}", Purchase(f"2547{10_000_000 + number}", self.rng.randint(1, 2000))
        self.purchases[key], self.payments[key] = purchase, None
        body = {"amount": purchase.amount, "phone": purchase.phone}
        answer = await self._ask(phase, tries, "pay", "POST", "/v1/payments", body, key)
        if answer is not None:
            made = answer.json["data"]["id"]
            self.payments[key] = made
            self._known.append(made)

    async def _refund(self, phase: Phase, tries: int) -> None:
        key = f"refund-{len(self.refunds)}"
        self.refunds[key] = None
        body = {"payment_id": self._one(), "amount": 1}
        answer = await self._ask(phase, tries, "refund", "POST", "/v1/refunds", body, key)
        if answer is not None and answer.status in {200, 201}:
            self.refunds[key] = answer.json["data"]["id"]

    async def _ask(
        self, phase: Phase, tries: int, name: str, method: str, path: str, body: object = None, key: str = ""
    ) -> Answer | None:
        """Call and retry; returns None if all tries failed."""
        was_broken = self.is_broken()
        answer: Answer | None = None
        for number in range(tries):
            answer = await self.client.call(method, path, body, key)
            phase.answers[answer.status] += 1
            self._judge(phase, path, answer)
            # A refund of an unpaid or fully refunded payment is rejected correctly.
            if answer.status in {200, 201, 502} or (name == "refund" and _is_conflict(answer)):
                phase.served += 1
                phase.seconds[name].append(answer.seconds)
                if not was_broken and not self.is_broken():
                    phase.in_peace[name].append(answer.seconds)
                return answer if answer.status in {200, 201} else None
            if answer.status not in _AGAIN or number == tries - 1:
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", "1")) * self.rng.uniform(0.5, 1.5))
        phase.given_up += 1
        return None

    def _judge(self, phase: Phase, path: str, answer: Answer) -> None:
        if answer.status not in _EXPLAINED:
            self.unexplained.append(f"{answer.status} {path}: {answer.body[:200].decode('utf-8', 'replace')}")
        if answer.status in _REFUSED:
            try:
                is_enveloped = msgspec.json.decode(answer.body, type=Failure).request_id != ""
            except msgspec.DecodeError:
                is_enveloped = False
            if "retry-after" not in answer.headers or not is_enveloped:
                phase.impolite.append(f"{answer.status} {path}: {answer.headers}")


def _is_conflict(answer: Answer) -> bool:
    return answer.status == 409 and answer.json["errors"][0]["code"] == "CONFLICT"
