"""The operations: for each one the requests for each contestant, and the rounds that take turns."""

import json
import secrets
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from bench.speed import thin
from bench.speed.load import request, write_requests
from bench.speed.seed import PEER_PENDING, SEED_PENDING, Shop, connect, id_stem, nth_id
from bench.speed.site import Contestant, Site, load
from mpesa_gateway.cursors import encode_cursor
from mpesa_gateway_callbacks.tokens import Subject, make_token

Measure = Callable[[], Awaitable[dict[str, Any]]]
"""One round of one contestant."""


@dataclass(frozen=True)
class Effort:
    """The load: the seconds of a round and the number of connections."""

    rounds: int
    seconds: float
    clients: int
    most: int
    """The most requests that one round can need: this many are prepared."""


@dataclass
class Contest:
    """One operation and its contestants."""

    name: str
    entrants: dict[str, Measure] = field(default_factory=dict[str, Measure])
    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])

    async def play(self, rounds: int, say: Callable[[str], None]) -> None:
        """Run the rounds. The order rotates, so that no contestant always follows the same one."""
        names = list(self.entrants)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                result = await self.entrants[name]()
                self.rounds.setdefault(name, []).append(result)
                say(f"{self.name}, round {number + 1}: {name} {result['rate']:,.0f}/s, p50 {result['p50_ms']:.2f} ms")

    def summary(self) -> dict[str, Any]:
        """Return median, minimum and maximum of each, and the median of our ratio to each within the rounds."""
        found: dict[str, Any] = {}
        ours = self.rounds.get("gateway", [])
        for name, rounds in self.rounds.items():
            rates = [one["rate"] for one in rounds]
            found[name] = {
                "rate": {"median": statistics.median(rates), "least": min(rates), "most": max(rates)},
                "p50_ms": statistics.median(one["p50_ms"] for one in rounds),
                "p99_ms": statistics.median(one["p99_ms"] for one in rounds),
                "cpu_us": {
                    part: statistics.median(one["cpu_us"][part] for one in rounds) for part in rounds[0]["cpu_us"]
                },
            }
            if name != "gateway" and ours:
                ratios = [mine["rate"] / theirs["rate"] for mine, theirs in zip(ours, rounds, strict=False)]
                found[name]["gateway_to_it"] = {
                    "median": statistics.median(ratios),
                    "least": min(ratios),
                    "most": max(ratios),
                }
        return found


class Contests:
    """Prepares requests and rows for each round, and builds the contests."""

    def __init__(self, site: Site, shop: Shop, effort: Effort) -> None:
        self._site = site
        self._shop = shop
        self._effort = effort
        self._file = Path(tempfile.mkdtemp(dir=site.folder)) / "requests"

    async def _load(
        self,
        requests: Iterator[bytes],
        contestant: Contestant,
        expect: int,
        *,
        repeat: bool = False,
        clients: int = 0,
        per_second: float | None = None,
    ) -> dict[str, Any]:
        write_requests(self._file, requests)
        effort, site = self._effort, self._site
        before = site.cpu() | {"app": contestant.cpu()}
        found = await load(
            self._file,
            contestant.ports,
            clients=clients or effort.clients,
            seconds=effort.seconds,
            expect=[expect],
            repeat=repeat,
            per_second=per_second,
        )
        after = site.cpu() | {"app": contestant.cpu()}
        answered = sum(found["statuses"].values())
        found["cpu_us"] = {name: (after[name] - before[name]) / answered * 1e6 for name in before}
        return found

    # -- create ---------------------------------------------------------------------------------------------------

    def create(self, contestant: Contestant, path: str, *, clients: int = 0) -> Measure:
        """Return requests for payments, each with its own key."""

        async def measure() -> dict[str, Any]:
            return await self._load(self._creates(path), contestant, 201, clients=clients)

        return measure

    def _creates(self, path: str) -> Iterator[bytes]:
        stem = secrets.token_hex(6)
        body = json.dumps({"amount": 500, "phone": "254708374149"}).encode()
        for number in range(self._effort.most):
            headers = {"X-API-Key": self._shop.key, "Idempotency-Key": f"order-{stem}-{number}"}
            yield request("POST", path, headers, body)

    # -- callbacks ------------------------------------------------------------------------------------------------

    def gateway_callback(self, contestant: Contestant, *, clients: int = 0) -> Measure:
        """Return callbacks for pending payments, at addresses as our own pushes contain."""

        async def measure() -> dict[str, Any]:
            stem = id_stem()
            await self._insert("gateway", "mpesa", SEED_PENDING, self._shop.merchant_id, stem, self._effort.most)
            return await self._load(self._callbacks(stem), contestant, 200, clients=clients)

        return measure

    def _callbacks(self, stem: str) -> Iterator[bytes]:
        key = bytes.fromhex(self._shop.callback_secret)
        for number in range(1, self._effort.most + 1):
            token = make_token(key, "stk", Subject("sandbox", self._shop.merchant_id, nth_id(stem, number)))
            yield request("POST", f"/v1/cb/stk/{token}", {}, _result(f"ws_CO_{stem}{number}", f"{stem}{number}"))

    def thin_callback(self, contestant: Contestant, *, clients: int = 0) -> Measure:
        """Return callbacks for the thin app, by its payment's id."""

        async def measure() -> dict[str, Any]:
            stem = id_stem()
            await self._insert("thin", None, thin.SEED_PENDING, stem, self._effort.most)
            requests = (
                request("POST", f"/callback/{stem}{number}", {}, _result(f"ws_CO_{stem}{number}", f"{stem}{number}"))
                for number in range(1, self._effort.most + 1)
            )
            return await self._load(requests, contestant, 200, clients=clients)

        return measure

    def peer_callback(self, contestant: Contestant) -> Measure:
        """Return callbacks for a peer, by their CheckoutRequestID."""

        async def measure() -> dict[str, Any]:
            stem = id_stem()
            await self._insert(contestant.name, None, PEER_PENDING, stem, self._effort.most)
            requests = (
                request("POST", "/callback", {}, _result(f"ws_CO_{stem}{number}", f"{stem}{number}"))
                for number in range(1, self._effort.most + 1)
            )
            return await self._load(requests, contestant, 200)

        return measure

    async def _insert(self, database: str, schema: str | None, sql: str, *values: Any) -> None:
        connection: asyncpg.Connection[Any] = await connect(self._site.database(database), schema)
        try:
            await connection.execute(sql, *values)
        finally:
            await connection.close()

    # -- reading --------------------------------------------------------------------------------------------------

    def read(self, contestant: Contestant, paths: list[str], *, clients: int = 0) -> Measure:
        """Return repeated GETs."""

        async def measure() -> dict[str, Any]:
            requests = (request("GET", path, {"X-API-Key": self._shop.key}) for path in paths)
            return await self._load(requests, contestant, 200, repeat=True, clients=clients)

        return measure

    def read_own(self, contestant: Contestant, paths: list[str]) -> Measure:
        """Return GETs for the seeded payments: ``{payment_id}`` and ``{cursor}``, deep in the list, are replaced."""

        async def measure() -> dict[str, Any]:
            connection: asyncpg.Connection[Any] = await connect(self._site.database("gateway"), "mpesa")
            try:
                row = await connection.fetchrow(_DEEP, self._shop.merchant_id)
            finally:
                await connection.close()
            if row is None:
                raise RuntimeError("there are no payments to read")
            known = {
                "payment_id": row["payment_id"],
                "cursor": encode_cursor(row["payment_id"], "sandbox"),
            }
            requests = (request("GET", path.format(**known), {"X-API-Key": self._shop.key}) for path in paths)
            return await self._load(requests, contestant, 200, repeat=True)

        return measure


_DEEP = """
SELECT payment_id FROM (
    SELECT payment_id FROM payment WHERE merchant_id = $1 AND env = 'sandbox' ORDER BY payment_id DESC LIMIT 99900
) AS newest ORDER BY payment_id LIMIT 1
"""
"""The last row before page 1,000, or of all with fewer rows."""


def _result(checkout_request_id: str, seed: str) -> bytes:
    """Return a successful result as Daraja posts it. The receipt contains the end of the seed."""
    receipt = ("B" + seed[16:22] + seed[-8:]).upper()
    items = {
        "Amount": 500.0,
        "MpesaReceiptNumber": receipt,
        "TransactionDate": 20261124101512,
        "PhoneNumber": 254708374149,
    }
    return json.dumps(
        {
            "Body": {
                "stkCallback": {
                    "MerchantRequestID": "29115-34620561-1",
                    "CheckoutRequestID": checkout_request_id,
                    "ResultCode": 0,
                    "ResultDesc": "The service request is processed successfully.",
                    "CallbackMetadata": {"Item": [{"Name": name, "Value": value} for name, value in items.items()]},
                }
            }
        }
    ).encode()
