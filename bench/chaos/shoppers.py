"""A steady flow of payments and refunds from clients that retry as a careful merchant's program does."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import niquests

_TRY_AGAIN = frozenset({0, 409, 429, 500, 502, 503, 504})
"""Statuses, and 0 for no answer, after which the same request with the same key is repeated."""

_TRIES = 40

_EXPLAINED = frozenset({0, 200, 201, 409, 429, 502, 503})
"""Statuses, and 0 for no answer, that payments and refunds may get during faults."""


@dataclass(frozen=True)
class Purchase:
    """A buyer's request: the payer's number, unique to this buyer, and the amount in KES."""

    phone: str
    amount: int


@dataclass
class Shoppers:
    """The buyers. Requests are stored by their Idempotency-Key, with the resulting payment, if any.

    ``api_keys`` are the merchants' keys; each buyer uses one of them.
    """

    base: str
    api_keys: tuple[str, ...]
    rng: random.Random
    http: niquests.AsyncSession
    pace: float = 1.0
    """Factor of all waiting times."""
    purchases: dict[str, Purchase] = field(default_factory=dict[str, Purchase])
    payments: dict[str, str | None] = field(default_factory=dict[str, str | None])
    refunds: dict[str, str | None] = field(default_factory=dict[str, str | None])
    answers: Counter[int] = field(default_factory=Counter[int])
    conflicts: list[str] = field(default_factory=list[str])
    """Keys with two different payments: expected to be empty."""
    unexplained: list[str] = field(default_factory=list[str])
    """Answers that no fault explains: expected to be empty."""

    async def flow(self, rate: float, until: Callable[[], bool]) -> None:
        """Create ``rate`` payments a second, and refund one in five of the completed ones."""
        tasks: set[asyncio.Task[None]] = set()
        while not until():
            tasks.add(asyncio.create_task(self._buy()))
            await asyncio.sleep(self.rng.expovariate(rate))
            tasks = {task for task in tasks if not task.done()}
        await asyncio.gather(*tasks)

    async def _buy(self) -> None:
        number = len(self.payments)
        key, amount = f"buy-{number}", self.rng.randint(1, 2000)
        purchase = self.purchases[key] = Purchase(f"2547{11_000_000 + number}", amount)
        shop = self.api_keys[number % len(self.api_keys)]
        body = {"amount": amount, "phone": purchase.phone, "metadata": {"order": key}}
        # Some buyers press the button twice.
        times = 2 if self.rng.random() < 0.15 else 1
        self.payments[key] = None
        await asyncio.gather(*(self._request("/v1/payments", shop, key, body, self.payments) for _ in range(times)))
        payment_id = self.payments[key]
        if payment_id is None:
            return
        chance = self.rng.random()
        if chance < 0.1:
            await asyncio.sleep(self.rng.uniform(0, 3) * self.pace)
            await self._post(f"/v1/payments/{payment_id}/query", shop, "", None)
        elif chance < 0.15:
            await asyncio.sleep(self.rng.uniform(1, 5) * self.pace)
            await self._post(f"/v1/payments/mpesa/check-status/{payment_id}", shop, "", None)
        elif chance < 0.4 and await self._is_paid(payment_id, shop):
            await self._refund(payment_id, shop, number, amount)

    async def _is_paid(self, payment_id: str, shop: str) -> bool:
        """Wait a while for the payment to complete with a receipt."""
        for _ in range(15):
            answer = await self._call("GET", f"/v1/payments/{payment_id}", shop)
            if answer[0] == 200 and answer[1]["data"]["receipt"] is not None:
                return True
            await asyncio.sleep(self.pace)
        return False

    async def _refund(self, payment_id: str, shop: str, number: int, amount: int) -> None:
        share = self.rng.choice((None, amount, max(1, amount // 2), max(1, amount // 3)))
        body: dict[str, Any] = {"payment_id": payment_id} | ({} if share is None else {"amount": share})
        key = f"refund-{number}"
        self.refunds[key] = None
        times = 2 if self.rng.random() < 0.3 else 1
        await asyncio.gather(*(self._request("/v1/refunds", shop, key, body, self.refunds) for _ in range(times)))

    async def _request(
        self, path: str, shop: str, key: str, body: dict[str, Any], found: dict[str, str | None]
    ) -> None:
        for _ in range(_TRIES):
            status, answer = await self._post(path, shop, key, body)
            self.answers[status] += 1
            if status not in _EXPLAINED:
                self.unexplained.append(f"{status} {path}: {answer.get('errors')}")
            if status in {200, 201}:
                made = answer["data"]["id"]
                if found[key] not in {None, made}:
                    self.conflicts.append(key)
                found[key] = made
                return
            is_in_progress = status != 409 or answer["errors"][0]["code"] == "IDEMPOTENCY_IN_PROGRESS"
            if status not in _TRY_AGAIN or not is_in_progress:
                return
            await asyncio.sleep(self.rng.uniform(0.2, 2))

    async def _post(self, path: str, shop: str, key: str, body: Any) -> tuple[int, dict[str, Any]]:
        return await self._call("POST", path, shop, key, body)

    async def _call(
        self, method: str, path: str, shop: str, key: str = "", body: Any = None
    ) -> tuple[int, dict[str, Any]]:
        headers = {"X-API-Key": shop} | ({"Idempotency-Key": key} if key else {})
        try:
            answer = await self.http.request(method, self.base + path, json=body, headers=headers, timeout=20)
            return answer.status_code or 0, answer.json()
        except (niquests.RequestException, OSError, ValueError):
            return 0, {}
