"""The wire between the gateway and Daraja: the one place where a call is cut, lost or garbled, or a process dies."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn, cast

import asyncpg
import msgspec
import niquests

from mpesa_gateway.daraja.client import SIMULATED
from mpesa_gateway.db.engine import Database

OPERATIONS: dict[str, str] = {
    "oauth": "/oauth/v1/generate",
    "stkpush": "/mpesa/stkpush/v1/processrequest",
    "stkquery": "/mpesa/stkpushquery/v1/query",
    "transactionstatus": "/mpesa/transactionstatus/v1/query",
    "reversal": "/mpesa/reversal/v1/request",
    "pullregister": "/pulltransactions/v1/register",
    "pullquery": "/pulltransactions/v1/query",
}
"""The simulator's names of Daraja's operations, with their paths."""


class ProcessDied(BaseException):
    """The calling process died: none of its code runs any more, and its open transaction is rolled back."""


_is_dead: ContextVar[bool] = ContextVar("is_dead", default=False)


def kill_process() -> NoReturn:
    """End the calling process, as SIGKILL would. Raises ProcessDied."""
    _is_dead.set(True)
    raise ProcessDied


def start_process() -> None:
    """Continue as another process."""
    _is_dead.set(False)


CONNECTION_ENDED = "connection was closed in the middle of operation"
"""asyncpg's message about a closed connection."""


class KillableDatabase(Database):
    """A database that rejects calls of a dead process: clean-up code after an exception has no effect."""

    breaks = 0
    """The number of coming connections that are broken."""

    def _check(self) -> None:
        """Raise ProcessDied for a dead process, or asyncpg's error for a closed connection."""
        if _is_dead.get():
            raise ProcessDied
        if self.breaks:
            self.breaks -= 1
            raise asyncpg.ConnectionDoesNotExistError(CONNECTION_ENDED)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Any]:
        if _is_dead.get():
            raise ProcessDied
        async with super().connection() as connection:
            yield connection

    @asynccontextmanager
    async def _acquire(self) -> AsyncGenerator[Any]:
        """Return a connection of the pool for a live process: deferred writes are lost with a dead one."""
        self._check()
        async with super()._acquire() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        if _is_dead.get():
            raise ProcessDied
        async with super().transaction():
            yield


class Fate(Enum):
    """The fate of one call."""

    FINE = "fine"
    NEVER_CONNECTED = "never connected"
    NEVER_ARRIVED = "cut on the way there"
    DIES_BEFORE = "the process dies before the call"
    ANSWER_LOST = "cut on the way back"
    ANSWER_GARBLED = "answered with a page"
    DIES_AFTER = "the process dies before it reads the answer"
    BROKEN_CHUNK = "answered with a chunk that cannot be read, which the library stumbles over"
    NO_POSTGRES = "the connection to Postgres ends when the answer comes"

    def __repr__(self) -> str:
        return f"Fate.{self.name}"


class Act(Enum):
    """Concurrent act of others during a call."""

    PAY = "the payer pays and Daraja calls back"
    CANCEL = "the payer cancels and Daraja calls back"
    CALL_BACK = "Daraja makes the calls that it owes"
    REPEAT = "the merchant sends the same request again"
    ASK = "another worker asks about every payment and refund that is due"
    WAIT = "more time passes than any lease lasts"
    FLUSH = "Valkey is emptied"

    def __repr__(self) -> str:
        return f"Act.{self.name}"


@dataclass(frozen=True)
class Plan:
    """The plan of one call."""

    fate: Fate = Fate.FINE
    before: tuple[Act, ...] = ()
    after: tuple[Act, ...] = ()


class Wire:
    """The Daraja client's HTTP session, which passes on every call without a planned fault."""

    def __init__(
        self,
        session: Any,
        db: KillableDatabase,
        perform: Callable[[Act], Awaitable[None]],
        arrived: Callable[[str, Any], Awaitable[None]],
        ways: Mapping[str, str],
    ) -> None:
        """``perform`` runs an act; ``arrived`` is called with the operation and body of each call that reached Daraja.

        ``ways`` map addresses that do not exist to local ones.
        """
        self._ways = ways
        self._session = session
        self._db = db
        self._perform = perform
        self._arrived = arrived
        self._plans: dict[str, Plan] = {}
        self.hidden: frozenset[str] = frozenset()
        """Receipts missing from the statement so far."""
        self.acknowledged: set[str] = set()
        """CheckoutRequestIDs of pushes whose acknowledgement reached a live process."""
        self._hanging: asyncio.Event | None = None
        self._hangs: frozenset[str] = frozenset()

    def plan(self, operation: str, plan: Plan) -> None:
        """Plan the next call of an operation."""
        self._plans[operation] = plan

    def remove_faults(self) -> None:
        """Remove all faults."""
        self._plans.clear()
        self.hidden = frozenset()
        self.end_hanging()

    def hang(self, *operations: str) -> None:
        """Let these operations accept connections and answer nothing until `end_hanging`."""
        self._hanging, self._hangs = asyncio.Event(), frozenset(operations)

    def end_hanging(self) -> None:
        """End hanging calls with a timeout."""
        self._hangs = frozenset()
        if self._hanging is not None:
            self._hanging.set()

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def request(self, method: str, url: str, **options: Any) -> Any:
        # The intent is committed before the call, and no connection to Postgres is held during it.
        assert not self._db.in_transaction, f"{url} is called inside a transaction"
        operation = next(name for name, path in OPERATIONS.items() if path in url)
        if operation in self._hangs and self._hanging is not None:
            await self._hanging.wait()
            raise niquests.exceptions.ReadTimeout
        plan = self._plans.pop(operation, Plan())
        for act in plan.before:
            await self._perform(act)
        self._meet_before(plan.fate)
        response = await self._session.request(method, self._way(url), **options)
        if self._way(url) != url:
            # The live env is played by a simulator, which the gateway rejects by its header.
            response.headers.pop(SIMULATED, None)
        await self._arrived(operation, options.get("json"))
        for act in plan.after:
            await self._perform(act)
        self._meet_after(plan.fate)
        if plan.fate is Fate.ANSWER_GARBLED:
            return _answer(b"<html>We are improving our services. Please try again later.</html>")
        if operation == "stkpush":
            self._note_ack(response.content or b"")
        if plan.fate is Fate.NO_POSTGRES:
            self._db.breaks = 1
        if operation == "pullquery" and self.hidden and response.status_code == 200:
            return _answer(_without(response.content or b"", self.hidden))
        return response

    def _way(self, url: str) -> str:
        for name, way in self._ways.items():
            url = url.replace(name, way, 1)
        return url

    @staticmethod
    def _meet_before(fate: Fate) -> None:
        if fate is Fate.NEVER_CONNECTED:
            raise niquests.exceptions.ConnectTimeout
        if fate is Fate.NEVER_ARRIVED:
            raise niquests.exceptions.ReadTimeout
        if fate is Fate.DIES_BEFORE:
            kill_process()

    @staticmethod
    def _meet_after(fate: Fate) -> None:
        if fate is Fate.ANSWER_LOST:
            raise niquests.exceptions.ReadTimeout
        if fate is Fate.DIES_AFTER:
            kill_process()
        if fate is Fate.BROKEN_CHUNK:
            raise ValueError("invalid literal for int() with base 16: b'ZZ'")

    def _note_ack(self, body: bytes) -> None:
        with suppress(msgspec.DecodeError):
            answer = msgspec.json.decode(body)
            if isinstance(answer, dict) and isinstance(handle := cast(Any, answer).get("CheckoutRequestID"), str):
                self.acknowledged.add(handle)


def _answer(body: bytes) -> niquests.Response:
    made = niquests.Response()
    made.status_code = 200
    made._content = body  # pyright: ignore[reportPrivateUsage] - the library has no public constructor
    return made


def _without(body: bytes, receipts: frozenset[str]) -> bytes:
    """Return a statement without the rows of these receipts."""
    try:
        page = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body
    if isinstance(page.get("Response"), list):
        page["Response"] = [
            [row for row in rows if not (isinstance(row, dict) and row.get("transactionId") in receipts)]
            for rows in page["Response"]
        ]
    return msgspec.json.encode(page)
