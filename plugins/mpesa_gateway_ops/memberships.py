"""Memberships: roles of persons for a merchant. One owner always stays."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.permissions import GRANTS, MerchantRole, Permission, Role
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_ops import tables
from mpesa_gateway_ops.errors import NotAllowed
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.tables import InvitationRow, MembershipRow, PersonRow, void_links


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a merchant."""

    person_id: str
    email: str
    name: str
    role: MerchantRole
    has_factor: bool
    created_at: datetime
    last_login_at: datetime | None = None


class Memberships:
    """Adds, changes and removes members. Changes of one merchant wait for each other on its row."""

    def __init__(self, *, db: Database, clock: Clock, audit: Audit, sessions: Sessions) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._sessions = sessions

    async def list(self, merchant_id: str) -> Sequence[Member]:
        return [msgspec.convert(dict(row), Member) for row in await self._db.fetch(tables.MEMBERS, merchant_id)]

    async def role_of(self, merchant_id: str, person_id: str) -> MerchantRole | None:
        rows = await self._db.run(
            MembershipRow.select(MembershipRow.role).where(
                MembershipRow.merchant_id == merchant_id, MembershipRow.person_id == person_id
            )
        )
        return MerchantRole(rows[0]["role"]) if rows else None

    async def add(
        self, merchant_id: str, person_id: str, role: MerchantRole, *, actor: str, invited_by: str = ""
    ) -> None:
        """Raises Conflict for a member, NotFound for a merchant that is not active.

        ``invited_by`` must still manage the people of the merchant: raises NotAllowed.
        """
        async with self._db.transaction():
            await self._lock(merchant_id)
            if invited_by:
                await self.check_manages(merchant_id, invited_by)
            row = MembershipRow(
                merchant_id=merchant_id, person_id=person_id, role=role.value, created_at=self._clock.now()
            )
            if await self.role_of(merchant_id, person_id) is not None:
                raise Conflict("this person is a member already: change the role instead")
            await self._db.run(MembershipRow.insert(row))
            await self._record("membership.added", merchant_id, person_id, actor, role=role.value)

    async def set_role(self, merchant_id: str, person_id: str, role: MerchantRole, *, actor: str) -> None:
        """Raises NotFound, Conflict for the last owner, NotAllowed for a member who no longer manages people."""
        async with self._db.transaction():
            await self._lock(merchant_id)
            await self.check_manages(merchant_id, actor)
            if role is not MerchantRole.OWNER:
                await self._check_owner_stays(merchant_id, person_id)
            changed = await self._db.run(
                MembershipRow.update({MembershipRow.role: role.value})
                .where(MembershipRow.merchant_id == merchant_id, MembershipRow.person_id == person_id)
                .returning(MembershipRow.person_id)
            )
            if not changed:
                raise _unknown()
            await self._void_invitations(merchant_id, person_id)
            await self._record("membership.role_set", merchant_id, person_id, actor, role=role.value)

    async def remove(self, merchant_id: str, person_id: str, *, actor: str) -> None:
        """Remove a member; one may remove oneself.

        Raises NotFound, Conflict for the last owner, NotAllowed for a member who no longer manages people.
        """
        async with self._db.transaction():
            await self._lock(merchant_id)
            if actor != f"person:{person_id}":
                await self.check_manages(merchant_id, actor)
            await self._check_owner_stays(merchant_id, person_id)
            removed = await self._db.run(
                MembershipRow.delete()
                .where(MembershipRow.merchant_id == merchant_id, MembershipRow.person_id == person_id)
                .returning(MembershipRow.person_id)
            )
            if not removed:
                raise _unknown()
            await self._void_invitations(merchant_id, person_id)
            await self._record("membership.removed", merchant_id, person_id, actor)

    async def deactivate(self, person_id: str, *, actor: str) -> None:
        """Remove a person from the host and from all merchants, and end its sessions.

        Raises NotFound, and Conflict for the last owner of a merchant.
        """
        async with self._db.transaction():
            await self._db.fetch(tables.LOCK_MERCHANTS_OF_PERSON, person_id)
            owned = [row["name"] for row in await self._db.fetch(tables.ONLY_OWNER_OF, person_id)]
            if owned:
                raise Conflict(f"this person is the only owner of {', '.join(owned)}: make another person owner first")
            changed = await self._db.run(
                PersonRow.update({PersonRow.is_active: False, PersonRow.host_role: None})
                .where(PersonRow.person_id == person_id, PersonRow.is_active.eq(value=True))
                .returning(PersonRow.email)
            )
            if not changed:
                raise NotFound("there is no such active person")
            # Resets of the person have its address too.
            await void_links(self._db, InvitationRow.email == changed[0]["email"])
            await self._db.run(MembershipRow.delete().where(MembershipRow.person_id == person_id))
            await self._sessions.close_all_of(person_id)
            await self._audit.record("person.deactivated", merchant_id=None, actor=actor, subject_id=person_id)

    async def _void_invitations(self, merchant_id: str, person_id: str) -> None:
        person = await self._db.run(PersonRow.select(PersonRow.email).where(PersonRow.person_id == person_id).first())
        if person is not None:
            await void_links(self._db, InvitationRow.merchant_id == merchant_id, InvitationRow.email == person["email"])

    async def _lock(self, merchant_id: str) -> None:
        is_active = await self._db.fetchval(tables.LOCK_MERCHANT, merchant_id)
        if not is_active:
            raise NotFound("there is no such active merchant")

    async def check_manages(self, merchant_id: str | None, actor: str) -> None:
        """Read the actor's permission again under the lock: another owner may have removed it. Raises NotAllowed.

        Without a merchant, the actor must be an admin of the host.
        """
        if not actor.startswith("person:"):
            return
        person_id = actor.removeprefix("person:")
        is_host = await self._db.run(
            PersonRow.exists().where(
                PersonRow.person_id == person_id,
                PersonRow.is_active.eq(value=True),
                PersonRow.host_role == Role.ADMIN.value,
            )
        )
        role = None if merchant_id is None else await self.role_of(merchant_id, person_id)
        if not is_host and role not in GRANTS[Permission.PEOPLE].members:
            raise NotAllowed("the role of the person who asks for this has changed: it no longer manages these people")

    async def _check_owner_stays(self, merchant_id: str, person_id: str) -> None:
        owners = await self._db.run(
            MembershipRow.select(MembershipRow.person_id).where(
                MembershipRow.merchant_id == merchant_id, MembershipRow.role == MerchantRole.OWNER.value
            )
        )
        if [row["person_id"] for row in owners] == [person_id]:
            raise Conflict("this is the last owner of the merchant: make another member owner first")

    async def _record(self, action: str, merchant_id: str, person_id: str, actor: str, **detail: str) -> None:
        await self._audit.record(action, merchant_id=merchant_id, actor=actor, subject_id=person_id, detail=detail)


def _unknown() -> NotFound:
    return NotFound("this person is no member of the merchant")
