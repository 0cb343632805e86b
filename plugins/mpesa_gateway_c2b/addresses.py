"""Tokens of registered addresses."""

import hashlib
from dataclasses import dataclass

from mpesa_gateway.daraja.callbacks import StandingAddress
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.deadline import Deadline
from mpesa_gateway.env import Env
from mpesa_gateway.ids import Ids
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway_c2b import tables

_LOOK_UP_SECONDS = 1.0
_LOOK_UPS = 20

_WITHOUT_WORDS = str.maketrans("xm", "io")
"""Without these letters, an identifier cannot contain the words that M-Pesa filters in addresses."""


@dataclass(frozen=True)
class NewToken:
    """A token, sealed to be handed out again, and its digest to be compared."""

    sealed: str
    digest: bytes


class C2bAddresses:
    """The port of this plugin's standing addresses: tokens by their digest, in memory.

    An address never changes, and its row stays. So a known token needs no query, and is known without Postgres.
    """

    def __init__(self, *, db: Database, ids: Ids, sealer: Sealer) -> None:
        self._db = db
        self._ids = ids
        self._sealer = sealer
        self._known: dict[bytes, StandingAddress] = {}
        self._validation: dict[str, str] = {}
        self._deadline = Deadline(_LOOK_UP_SECONDS, _LOOK_UPS)

    async def start(self) -> None:
        for row in await self._db.fetch(tables.ADDRESSES):
            self.remember(row)

    async def stop(self) -> None:
        await self._deadline.stop()

    def find(self, token: str) -> StandingAddress | None:
        return self._known.get(digest_of(token))

    async def look_up(self, token: str) -> None:
        row = await self._deadline.run(self._db.fetchrow(tables.ADDRESS_OF, digest_of(token)))
        if row is not None:
            self.remember(row)

    def remember(self, row: Row) -> None:
        self._known[bytes(row["token_digest"])] = StandingAddress(row["env"], row["receiver_id"])
        self.remember_mode(row["receiver_id"], row["validation"])

    def remember_mode(self, receiver_id: str, validation: str) -> None:
        self._validation[receiver_id] = validation

    def last_mode(self, receiver_id: str) -> str:
        """Return the validation mode at this process's last read."""
        return self._validation.get(receiver_id, "accept")

    def create(self, env: Env, receiver_id: str) -> NewToken:
        """Return a new token: the receiver and 16 random bytes, in the form that logs mask."""
        prefix, _, rest = receiver_id.partition("_")
        token = f"{env[0]}-{prefix}_{rest.translate(_WITHOUT_WORDS)}.{self._ids.token(16).hex()}"
        return NewToken(self._sealer.seal(token, aad=_aad(env, receiver_id)), digest_of(token))

    def open(self, row: Row) -> Secret:
        """Return the token of a row. Raises UnsealError."""
        return Secret(self._sealer.open(row["token"], aad=_aad(row["env"], row["receiver_id"])))


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _aad(env: str, receiver_id: str) -> tuple[str, ...]:
    return ("c2b", env, receiver_id, "token")
