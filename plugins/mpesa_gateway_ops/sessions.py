"""Sessions of persons, stored by digest, with a lifetime and an idle limit."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.ids import Ids
from mpesa_gateway.ops_contract import Visitor
from mpesa_gateway.permissions import (
    ALWAYS_STRONG,
    GRANTS,
    MerchantRole,
    Permission,
    Role,
    host_permissions,
    member_permissions,
)
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.gateway_secrets import OPERATOR_FORMS, GatewaySecrets
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway_ops import tables
from mpesa_gateway_ops.api import HostOperator
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import SessionRow

_SEEN_FOR, _MOST_SEEN = 600.0, 1000
"""Seconds and number of sessions remembered without a query; a full memory is emptied."""

_TOUCH_EVERY = timedelta(seconds=10)
_LONGEST_AGENT = 200


@dataclass(frozen=True, kw_only=True)
class Session:
    """A signed-in person, the token of its forms and the owner of its flash messages.

    ``is_ours``: the gateway opened it and can end it. ``lacks_factor``: a second factor is required and not set up.
    ``chosen``: the merchant that a member acts for on pages of no object.
    """

    name: str
    actor: str
    form_token: str
    owner: str
    host_role: Role | None
    memberships: Mapping[str, MerchantRole] = field(default_factory=dict[str, MerchantRole])
    merchant_names: Mapping[str, str] = field(default_factory=dict[str, str])
    person_id: str = ""
    chosen: str | None = None
    is_fresh: bool = True
    lacks_factor: bool = False
    has_factor: bool = False
    is_ours: bool = True

    def has_form_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.form_token.encode())

    def granted(self, merchant_id: str | None) -> frozenset[Permission]:
        """Permissions for this merchant, or for all merchants at once, with or without a second factor."""
        member = self.memberships.get(merchant_id or "")
        return host_permissions(self.host_role) | member_permissions(member) | {Permission.ACCOUNT}

    def held(self, merchant_id: str | None) -> frozenset[Permission]:
        """The permissions that the session can use without setting up a second factor first."""
        member = self.memberships.get(merchant_id or "")
        if not self.lacks_factor:
            return self.granted(merchant_id)
        parts = ((self.host_role, host_permissions(self.host_role)), (member, member_permissions(member)))
        weak = (permissions for role, permissions in parts if role not in ALWAYS_STRONG)
        return frozenset(each for part in weak for each in part if not GRANTS[each].is_strong) | {Permission.ACCOUNT}

    def visitor(self, merchant_id: str | None = None) -> Visitor:
        member = self.memberships.get(merchant_id or "")
        return Visitor(
            name=self.name,
            role=self.host_role or member or "no role",
            actor=self.actor,
            permissions=self.held(merchant_id),
            is_fresh=self.is_fresh,
            person_id=self.person_id,
            session_key=self.owner if self.is_ours else "",
        )


class OpenSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session in the list of its person."""

    key: str
    created_at: datetime
    last_seen_at: datetime
    agent: str


class Sessions:
    """Opens, finds and closes sessions."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        vault: GatewaySecrets,
        audit: Audit,
        merchants: Merchants,
        settings: OpsSettings,
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._vault = vault
        self._audit = audit
        self._merchants = merchants
        self.lifetime = timedelta(hours=settings.session_hours)
        self._seen: dict[bytes, float] = {}
        self._idle = timedelta(minutes=settings.idle_minutes)
        self._fresh_for = timedelta(minutes=settings.step_up_minutes)
        self._is_always_required = settings.second_factor == "always"

    async def open(self, person_id: str, *, agent: str = "", is_verified: bool = False) -> Secret:
        """Delete ended sessions and return the token of a new one."""
        token = Secret(self._ids.token(32).hex())
        now = self._clock.now()
        await self._db.run(
            SessionRow.delete().where((SessionRow.expires_at <= now) | (SessionRow.last_seen_at <= now - self._idle))
        )
        row = SessionRow(
            digest=_digest(token),
            person_id=person_id,
            created_at=now,
            last_seen_at=now,
            expires_at=now + self.lifetime,
            verified_at=now if is_verified else None,
            agent=agent[:_LONGEST_AGENT],
        )
        await self._db.run(SessionRow.insert(row))
        return token

    async def find(self, token: Secret, *, is_used: bool) -> Session | None:
        """Return the session of a token; None if it ended or waits for its second factor.

        ``is_used`` extends the idle limit.
        """
        row = await self._row(token)
        if row is None or (row["has_factor"] and row["verified_at"] is None):
            return None
        now, digest = self._clock.now(), _digest(token)
        if is_used and row["last_seen_at"] < now - _TOUCH_EVERY:
            await self._db.run(SessionRow.update({SessionRow.last_seen_at: now}).where(SessionRow.digest == digest))
        self._remember(digest)
        is_required = await self.is_factor_required()
        has_factor, verified_at = row["has_factor"], row["verified_at"]
        members = await self._db.fetch(tables.MEMBERSHIPS_OF_PERSON, row["person_id"])
        memberships = {each["merchant_id"]: MerchantRole(each["role"]) for each in members}
        chosen = row["merchant_id"] if row["merchant_id"] in memberships else next(iter(memberships), None)
        return Session(
            name=row["name"],
            actor=f"person:{row['person_id']}",
            form_token=_form_token(token),
            owner=digest.hex(),
            host_role=None if row["host_role"] is None else Role(row["host_role"]),
            memberships=memberships,
            merchant_names={each["merchant_id"]: each["name"] for each in members},
            person_id=row["person_id"],
            chosen=chosen,
            is_fresh=(verified_at is not None and verified_at > now - self._fresh_for)
            if has_factor
            else not is_required,
            lacks_factor=is_required and not has_factor,
            has_factor=has_factor,
        )

    async def find_unverified(self, token: Secret) -> str | None:
        row = await self._row(token)
        is_waiting = row is not None and row["has_factor"] and row["verified_at"] is None
        return row["person_id"] if row is not None and is_waiting else None

    async def is_factor_required(self) -> bool:
        """A second factor is required as soon as one merchant is live."""
        return self._is_always_required or not await self._merchants.is_sandbox_only()

    async def verify_waiting(self, token: Secret) -> Secret | None:
        """Record the second factor of a waiting session, and return its new token; None if the session ended.

        The row stays the same one: a concurrent end of all sessions of the person waits for it and deletes it.
        """
        renewed = Secret(self._ids.token(32).hex())
        rows = await self._db.run(
            SessionRow.update({SessionRow.digest: _digest(renewed), SessionRow.verified_at: self._clock.now()})
            .where(SessionRow.digest == _digest(token), SessionRow.verified_at.is_null())
            .returning(SessionRow.person_id)
        )
        return renewed if rows else None

    async def verified(self, key: str) -> None:
        """Record a second factor, which is recent from now on."""
        await self._update(key, {SessionRow.verified_at: self._clock.now()})

    async def choose(self, key: str, merchant_id: str) -> None:
        await self._update(key, {SessionRow.merchant_id: merchant_id})

    async def _update(self, key: str, values: dict[Any, Any]) -> None:
        await self._db.run(SessionRow.update(values).where(SessionRow.digest == bytes.fromhex(key)))

    async def _row(self, token: Secret) -> Row | None:
        now = self._clock.now()
        return await self._db.fetchrow(tables.FIND_SESSION, _digest(token), now, now - self._idle)

    def was_open(self, token: Secret) -> bool:
        """True if this process found the session within the last 10 minutes; it may have ended since. No I/O."""
        return self._seen.get(_digest(token), 0.0) > time.monotonic()

    def _remember(self, digest: bytes) -> None:
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[digest] = time.monotonic() + _SEEN_FOR

    def of_host(self, operator: HostOperator) -> Session:
        """The host's own login is responsible for second factors."""
        actor = f"operator:host:{operator.name}"
        key = self._vault.secret(OPERATOR_FORMS)
        token = hmac.new(key, f"{actor}|{operator.role.value}".encode(), hashlib.sha256).hexdigest()
        return Session(
            name=operator.name, actor=actor, form_token=token, owner=actor, host_role=operator.role, is_ours=False
        )

    async def list(self, person_id: str) -> list[OpenSession]:
        """Return a person's open sessions, newest first."""
        now = self._clock.now()
        rows = await self._db.run(
            SessionRow.select(SessionRow.digest, SessionRow.created_at, SessionRow.last_seen_at, SessionRow.agent)
            .where(
                SessionRow.person_id == person_id,
                SessionRow.expires_at > now,
                SessionRow.last_seen_at > now - self._idle,
            )
            .order_by(SessionRow.created_at, ascending=False)
        )
        return [
            OpenSession(
                key=bytes(row["digest"]).hex(),
                created_at=row["created_at"],
                last_seen_at=row["last_seen_at"],
                agent=row["agent"],
            )
            for row in rows
        ]

    async def close_all_of(self, person_id: str, *, but: str = "") -> None:
        """End a person's sessions, except the one with this key."""
        await self._db.run(
            SessionRow.delete().where(SessionRow.person_id == person_id, SessionRow.digest != bytes.fromhex(but))
        )

    async def close_one_of(self, person_id: str, key: str) -> bool:
        closed = await self._db.run(
            SessionRow.delete()
            .where(SessionRow.person_id == person_id, SessionRow.digest == bytes.fromhex(key))
            .returning(SessionRow.digest)
        )
        return bool(closed)

    async def close(self, token: Secret) -> None:
        async with self._db.transaction():
            closed = await self._db.run(
                SessionRow.delete().where(SessionRow.digest == _digest(token)).returning(SessionRow.person_id)
            )
            for person_id in (row["person_id"] for row in closed):
                await self._audit.record(
                    "person.signed_out", merchant_id=None, actor=f"person:{person_id}", subject_id=person_id
                )


def _digest(token: Secret) -> bytes:
    return hashlib.sha256(token.reveal().encode()).digest()


def _form_token(token: Secret) -> str:
    """Derived from the cookie, not from its stored digest."""
    return hmac.new(token.reveal().encode(), b"mpesa_gateway_ops.form", hashlib.sha256).hexdigest()
