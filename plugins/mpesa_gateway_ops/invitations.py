"""Invitations and password resets: links that expire and work once."""

import hashlib
from datetime import datetime, timedelta
from typing import Any

import msgspec

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.errors import InvalidFields, check_fields
from mpesa_gateway.ids import Ids
from mpesa_gateway.permissions import MerchantRole, Role
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_ops.errors import InvalidInvitation
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.passwords import check_password
from mpesa_gateway_ops.people import People, Person, check_email, check_name
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import InvitationRow, PersonRow, void_links


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """An unused invitation; of a merchant's member, of the host's, or to set a new password."""

    email: str
    merchant_id: str | None
    person_id: str | None
    role: MerchantRole | None
    host_role: Role | None
    invited_by: str
    created_at: datetime
    expires_at: datetime


class Invitations:
    """Creates and accepts invitations. Their use is decided by deleting the row."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        audit: Audit,
        people: People,
        memberships: Memberships,
        sessions: Sessions,
        settings: OpsSettings,
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._audit = audit
        self._people = people
        self._memberships = memberships
        self._sessions = sessions
        self._lifetime = timedelta(hours=settings.invitation_hours)

    async def invite(
        self, email: str, *, actor: str, merchant_id: str | None = None, role: MerchantRole | Role
    ) -> Secret:
        """Return the token of a link; it replaces an earlier one. The answer is the same for known and new addresses.

        ``role`` is a merchant's with ``merchant_id``, else the host's. Raises InvalidFields.
        """
        email = email.strip().lower()
        with check_fields() as checks:
            checks.take("email", check_email, email)
        token = self._token()
        is_member = isinstance(role, MerchantRole)
        if is_member != (merchant_id is not None):
            raise InvalidFields.field_error("role", "choose a role of the merchant, or without a merchant of the host")
        async with self._db.transaction():
            of_kind = (
                (InvitationRow.merchant_id.is_null(), InvitationRow.person_id.is_null())
                if merchant_id is None
                else (InvitationRow.merchant_id == merchant_id,)
            )
            await void_links(self._db, InvitationRow.email == email, *of_kind)
            await self._insert(
                token,
                email=email,
                merchant_id=merchant_id,
                role=role.value if is_member else None,
                host_role=None if is_member else role.value,
                invited_by=actor,
            )
            await self._audit.record(
                "person.invited",
                merchant_id=merchant_id,
                actor=actor,
                subject_id=merchant_id,
                detail={"email": email, "role": role.value},
            )
        return token

    async def reset_password(self, person: Person, *, actor: str) -> Secret:
        token = self._token()
        async with self._db.transaction():
            await void_links(self._db, InvitationRow.person_id == person.person_id)
            await self._insert(token, email=person.email, person_id=person.person_id, invited_by=actor)
            await self._audit.record(
                "person.password_reset", merchant_id=None, actor=actor, subject_id=person.person_id
            )
        return token

    async def of_merchant(self, merchant_id: str) -> list[Invitation]:
        rows = await self._db.run(
            InvitationRow.select(*_SHOWN)
            .where(InvitationRow.merchant_id == merchant_id, InvitationRow.expires_at > self._clock.now())
            .order_by(InvitationRow.email)
        )
        return [msgspec.convert(row, Invitation) for row in rows]

    async def withdraw(self, merchant_id: str, email: str, *, actor: str) -> None:
        """Delete an open invitation. Raises InvalidInvitation."""
        async with self._db.transaction():
            deleted = await self._db.run(
                InvitationRow.delete()
                .where(InvitationRow.merchant_id == merchant_id, InvitationRow.email == email)
                .returning(InvitationRow.email)
            )
            if not deleted:
                raise _invalid()
            await self._audit.record(
                "person.invitation_withdrawn",
                merchant_id=merchant_id,
                actor=actor,
                subject_id=merchant_id,
                detail={"email": email},
            )

    async def find(self, token: Secret) -> Invitation:
        """Raises InvalidInvitation."""
        rows = await self._db.run(
            InvitationRow.select(*_SHOWN).where(
                InvitationRow.digest == _digest(token), InvitationRow.expires_at > self._clock.now()
            )
        )
        if not rows:
            raise _invalid()
        return msgspec.convert(rows[0], Invitation)

    async def accept(self, token: Secret, *, name: str, password: Secret, address: str) -> str:
        """Use an invitation and return the person's address, which can sign in then.

        A new person gets the password; a known one proves it. Raises InvalidInvitation, InvalidFields, TooManyFailures
        and Conflict.
        """
        invitation = await self.find(token)
        with check_fields() as checks:
            checks.take("password", check_password, password)
            if name:
                checks.take("name", check_name, name)
        known = await self._db.run(
            PersonRow.select(PersonRow.person_id, PersonRow.is_active).where(PersonRow.email == invitation.email)
        )
        if invitation.person_id is None and known:
            if not await self._people.knows_password(invitation.email, password, address):
                raise InvalidFields.field_error(
                    "password", "wrong: an account with this address exists, enter its password"
                )
            async with self._db.transaction():
                await self._use(token)
                await self._join(invitation, known[0]["person_id"])
            return invitation.email
        password_hash = await self._people.hash(password)
        async with self._db.transaction():
            await self._use(token)
            if invitation.person_id is not None:
                await self._set_password(invitation.person_id, password_hash)
            else:
                person = await self._people.insert(invitation.email, name, password_hash)
                await self._join(invitation, person.person_id)
        return invitation.email

    async def _join(self, invitation: Invitation, person_id: str) -> None:
        actor = f"person:{person_id}"
        if invitation.merchant_id is not None and invitation.role is not None:
            await self._memberships.add(
                invitation.merchant_id, person_id, invitation.role, actor=actor, invited_by=invitation.invited_by
            )
        elif invitation.host_role is not None:
            await self._memberships.check_manages(None, invitation.invited_by)
            await self._db.run(
                PersonRow.update({PersonRow.host_role: invitation.host_role.value}).where(
                    PersonRow.person_id == person_id
                )
            )
        await self._audit.record(
            "person.invitation_accepted",
            merchant_id=invitation.merchant_id,
            actor=actor,
            subject_id=person_id,
            detail={"invited_by": invitation.invited_by, "role": invitation.role or invitation.host_role},
        )

    async def _set_password(self, person_id: str, password_hash: str) -> None:
        await self._db.run(
            PersonRow.update({PersonRow.password_hash: password_hash}).where(
                PersonRow.person_id == person_id, PersonRow.is_active.eq(value=True)
            )
        )
        await void_links(self._db, InvitationRow.person_id == person_id)
        await self._sessions.close_all_of(person_id)
        await self._audit.record(
            "person.password_set", merchant_id=None, actor=f"person:{person_id}", subject_id=person_id
        )

    async def _use(self, token: Secret) -> None:
        """Raises InvalidInvitation if another request was first."""
        used = await self._db.run(
            InvitationRow.delete()
            .where(InvitationRow.digest == _digest(token), InvitationRow.expires_at > self._clock.now())
            .returning(InvitationRow.email)
        )
        if not used:
            raise _invalid()

    async def _insert(self, token: Secret, **values: Any) -> None:
        now = self._clock.now()
        row = InvitationRow(digest=_digest(token), created_at=now, expires_at=now + self._lifetime, **values)
        await self._db.run(InvitationRow.insert(row))

    def _token(self) -> Secret:
        return Secret(self._ids.token(32).hex())


_SHOWN = InvitationRow.all_columns(exclude=[InvitationRow.digest])


def _digest(token: Secret) -> bytes:
    return hashlib.sha256(token.reveal().encode()).digest()


def _invalid() -> InvalidInvitation:
    return InvalidInvitation("this link was used, withdrawn or has expired: ask for a new one")
