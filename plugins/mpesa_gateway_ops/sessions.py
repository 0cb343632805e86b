"""Sessions of operators, stored by digest, with a lifetime and an idle limit."""

import hashlib
import hmac
import time
from dataclasses import dataclass
from datetime import timedelta

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.ids import Ids
from mpesa_gateway.ops_contract import Role, Visitor
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.gateway_secrets import OPERATOR_FORMS, GatewaySecrets
from mpesa_gateway_ops import tables
from mpesa_gateway_ops.api import HostOperator
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import SessionRow

_SEEN_FOR, _MOST_SEEN = 600.0, 1000
"""Seconds and number of sessions remembered without a query; a full memory is emptied."""

_TOUCH_EVERY = timedelta(seconds=10)


@dataclass(frozen=True)
class Session:
    """A signed-in operator, the token of its forms and the owner of its flash messages.

    ``is_ours``: the gateway opened it and can end it.
    """

    visitor: Visitor
    form_token: str
    owner: str
    is_ours: bool = True

    def has_form_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.form_token.encode())


class Sessions:
    """Opens, finds and closes sessions."""

    def __init__(
        self, *, db: Database, clock: Clock, ids: Ids, vault: GatewaySecrets, audit: Audit, settings: OpsSettings
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._vault = vault
        self._audit = audit
        self.lifetime = timedelta(hours=settings.session_hours)
        self._seen: dict[bytes, float] = {}
        self._idle = timedelta(minutes=settings.idle_minutes)

    async def open(self, operator_id: str) -> Secret:
        """Delete ended sessions and return the token of a new one."""
        token = Secret(self._ids.token(32).hex())
        now = self._clock.now()
        await self._db.run(
            SessionRow.delete().where((SessionRow.expires_at <= now) | (SessionRow.last_seen_at <= now - self._idle))
        )
        await self._db.run(
            SessionRow.insert(
                SessionRow(
                    digest=_digest(token),
                    operator_id=operator_id,
                    created_at=now,
                    last_seen_at=now,
                    expires_at=now + self.lifetime,
                )
            )
        )
        return token

    async def find(self, token: Secret, *, is_used: bool) -> Session | None:
        """Return the session of a token, None if it ended. ``is_used`` extends the idle limit."""
        now = self._clock.now()
        digest = _digest(token)
        row = await self._db.fetchrow(tables.FIND_SESSION, digest, now, now - self._idle)
        if row is None:
            return None
        if is_used and row["last_seen_at"] < now - _TOUCH_EVERY:
            await self._db.run(SessionRow.update({SessionRow.last_seen_at: now}).where(SessionRow.digest == digest))
        self._remember(digest)
        visitor = Visitor(name=row["name"], role=Role(row["role"]), actor=f"operator:{row['operator_id']}")
        return Session(visitor, _form_token(token), digest.hex())

    def was_open(self, token: Secret) -> bool:
        """True if this process found the session within the last 10 minutes; it may have ended since. No I/O."""
        return self._seen.get(_digest(token), 0.0) > time.monotonic()

    def _remember(self, digest: bytes) -> None:
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[digest] = time.monotonic() + _SEEN_FOR

    def of_host(self, operator: HostOperator) -> Session:
        actor = f"operator:host:{operator.name}"
        key = self._vault.secret(OPERATOR_FORMS)
        token = hmac.new(key, f"{actor}|{operator.role.value}".encode(), hashlib.sha256).hexdigest()
        return Session(Visitor(name=operator.name, role=operator.role, actor=actor), token, actor, is_ours=False)

    async def close_all_of(self, operator_id: str) -> None:
        await self._db.run(SessionRow.delete().where(SessionRow.operator_id == operator_id))

    async def close(self, token: Secret) -> None:
        async with self._db.transaction():
            closed = await self._db.run(
                SessionRow.delete().where(SessionRow.digest == _digest(token)).returning(SessionRow.operator_id)
            )
            for operator_id in (row["operator_id"] for row in closed):
                await self._audit.record(
                    "operator.signed_out", merchant_id=None, actor=f"operator:{operator_id}", subject_id=operator_id
                )


def _digest(token: Secret) -> bytes:
    return hashlib.sha256(token.reveal().encode()).digest()


def _form_token(token: Secret) -> str:
    """Derived from the cookie, not from its stored digest."""
    return hmac.new(token.reveal().encode(), b"mpesa_gateway_ops.form", hashlib.sha256).hexdigest()
