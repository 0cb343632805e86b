"""Persons: accounts, passwords, roles of the host and sign-in, each change audited."""

import re
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import msgspec

from mpesa_gateway.clock import Clock
from mpesa_gateway.config import ConfigError
from mpesa_gateway.db.engine import Database
from mpesa_gateway.errors import Conflict, InvalidFields, NotFound, check_fields
from mpesa_gateway.ids import Ids, base32
from mpesa_gateway.permissions import Role
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_ops.api import HostLogin
from mpesa_gateway_ops.errors import WrongPassword
from mpesa_gateway_ops.login_limits import LoginLimits
from mpesa_gateway_ops.passwords import check_password, hash_password, is_possible, verify_password
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import InvitationRow, PersonRow, void_links

_EMAIL = re.compile(r"[!-?\[-~]{1,64}@[a-z0-9.-]{1,189}\Z", re.ASCII)
_NO_DEVICE = Secret("")


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """A person without the password hash. ``role`` is the host's; None for a member of merchants only."""

    person_id: str
    email: str
    name: str
    role: Role | None
    has_factor: bool
    is_active: bool
    created_at: datetime
    last_login_at: datetime | None = None


class SignedIn(NamedTuple):
    """The cookies of a login. ``needs_code``: the session waits for its second factor."""

    session: Secret
    device: Secret
    needs_code: bool


class People:
    """The use cases of persons."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        audit: Audit,
        settings: OpsSettings,
        guesses: LoginLimits,
        sessions: Sessions,
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._audit_log = audit
        self._settings = settings
        self._guesses = guesses
        self._sessions = sessions
        self.host_login: HostLogin | None = None

    async def start(self) -> None:
        """Import the host's login that the settings name. Raises ConfigError."""
        name = self._settings.login
        if name is not None:
            self.host_login = _named(name)

    def signed_in_by(self, login: HostLogin) -> HostLogin:
        self.host_login = login
        return login

    async def create(self, email: str, password: Secret, *, role: Role | None, actor: str, name: str = "") -> Person:
        """Raises InvalidFields, and Conflict for an address that is or was in use."""
        email = email.strip().lower()
        with check_fields() as checks:
            checks.take("email", check_email, email)
            checks.take("name", check_name, name or email.partition("@")[0])
            checks.take("password", check_password, password)
        password_hash = await self.hash(password)
        async with self._db.transaction():
            person = await self.insert(email, name, password_hash, role=role)
            await self._audit("person.created", actor, person.person_id, email=email, role=role or "member")
        return person

    async def insert(self, email: str, name: str, password_hash: str, *, role: Role | None = None) -> Person:
        """Raises Conflict for an address that is or was in use."""
        person = Person(
            person_id=self._ids.new("per"),
            email=email,
            name=name or email.partition("@")[0],
            role=role,
            has_factor=False,
            is_active=True,
            created_at=self._clock.now(),
        )
        row = PersonRow(
            person_id=person.person_id,
            email=email,
            name=person.name,
            password_hash=password_hash,
            host_role=role,
            is_active=True,
            created_at=person.created_at,
        )
        insert = PersonRow.insert(row).on_conflict(target=PersonRow.email, action="DO NOTHING")
        if not await self._db.run(insert.returning(PersonRow.person_id)):
            raise Conflict(f"there is or was a person with the address {email}: take another one")
        return person

    async def create_first(self, email: str, *, actor: str) -> Secret | None:
        """Create the first person, an admin of the host, and return its password; None if one exists."""
        if await self._db.run(PersonRow.exists()):
            return None
        password = Secret(base32(int.from_bytes(self._ids.token(15), "big"), 24))
        await self.create(email, password, role=Role.ADMIN, actor=actor)
        return password

    async def list(self) -> list[Person]:
        """Return all persons by address, deactivated ones included."""
        rows = await self._db.run(PersonRow.select(*_SHOWN).order_by(PersonRow.email))
        return [_person(row) for row in rows]

    async def find(self, key: str) -> Person:
        """Return a person by its address or id. Raises NotFound."""
        column = PersonRow.person_id if key.startswith("per_") and "@" not in key else PersonRow.email
        rows = await self._db.run(PersonRow.select(*_SHOWN).where(column == key.strip().lower()))
        if not rows:
            raise _unknown(key)
        return _person(rows[0])

    async def set_password(self, email: str, password: Secret, *, actor: str) -> None:
        """Set a password and end the person's sessions. Raises InvalidFields and NotFound."""
        with check_fields() as checks:
            checks.take("password", check_password, password)
        password_hash = await self.hash(password)
        async with self._db.transaction():
            person_id = await self._change(email, {PersonRow.password_hash: password_hash})
            await void_links(self._db, InvitationRow.person_id == person_id)
            await self._sessions.close_all_of(person_id)
            await self._audit("person.password_set", actor, person_id)

    async def change_password(
        self, person_id: str, current: Secret, password: Secret, *, address: str, session: str
    ) -> None:
        """Set one's own password and end all sessions but ``session``. Raises InvalidFields and TooManyFailures."""
        person = await self.find(person_id)
        with check_fields() as checks:
            checks.take("password", check_password, password)
        if not await self.knows_password(person.email, current, address):
            raise InvalidFields.field_error("current", "the current password is wrong")
        password_hash = await self.hash(password)
        async with self._db.transaction():
            await self._change(person.email, {PersonRow.password_hash: password_hash})
            await void_links(self._db, InvitationRow.person_id == person_id)
            await self._sessions.close_all_of(person_id, but=session)
            await self._audit("person.password_set", f"person:{person_id}", person_id)

    async def set_role(self, email: str, role: Role | None, *, actor: str) -> None:
        """Set the host's role, valid from the next request. Raises NotFound."""
        async with self._db.transaction():
            person_id = await self._change(email, {PersonRow.host_role: role})
            of_host = (InvitationRow.merchant_id.is_null(), InvitationRow.person_id.is_null())
            await void_links(self._db, InvitationRow.email == email.strip().lower(), *of_host)
            await self._audit("person.role_set", actor, person_id, role=role or "none")

    async def sign_in(
        self, email: str, password: Secret, address: str, device: Secret = _NO_DEVICE, *, agent: str = ""
    ) -> SignedIn:
        """Open a session. ``device`` is the device cookie, empty without one.

        Raises WrongPassword, TooManyFailures for the address, account or device, and ServiceUnavailable.
        """
        email = email.strip().lower()
        guess = self._guesses.guess(email, address, device)
        async with self._guesses.judge(guess):
            row = await self._find(email) if _EMAIL.match(email) else None
            known_hash = None if row is None else str(row["password_hash"])
            is_right = await self._is_right(known_hash, password)
            if row is not None and is_right and row["is_active"]:
                async with self._db.transaction():
                    now = self._clock.now()
                    # Fails if the password or the account changed during hashing.
                    if await self._note_login(row["person_id"], known_hash, now):
                        actor = f"person:{row['person_id']}"
                        needs_code = row["totp_sealed"] is not None
                        action = "person.password_accepted" if needs_code else "person.signed_in"
                        await self._audit(action, actor, row["person_id"])
                        session = await self._sessions.open(row["person_id"], agent=agent)
                        return SignedIn(session, self._guesses.device_cookie(email), needs_code)
            person_id = None if row is None else row["person_id"]
            await self._audit("person.sign_in_failed", f"address:{address}", person_id)
            await self._guesses.record_failure(guess)
            raise WrongPassword("the address or the password is wrong")

    async def knows_password(self, email: str, password: Secret, address: str) -> bool:
        """Judge a password as a sign-in does. False for an unknown or inactive person too.

        Raises TooManyFailures and ServiceUnavailable.
        """
        guess = self._guesses.guess(email, address, _NO_DEVICE)
        async with self._guesses.judge(guess):
            row = await self._find(email)
            is_right = await self._is_right(None if row is None else str(row["password_hash"]), password)
            if row is not None and is_right and row["is_active"]:
                return True
            await self._audit("person.sign_in_failed", f"address:{address}", None if row is None else row["person_id"])
            await self._guesses.record_failure(guess)
            return False

    async def hash(self, password: Secret) -> str:
        return await self._guesses.run(partial(hash_password, password))

    async def _is_right(self, known_hash: str | None, password: Secret) -> bool:
        # Reject impossible passwords without hashing.
        return is_possible(password) and await self._guesses.run(partial(verify_password, known_hash, password))

    async def _find(self, email: str) -> dict[str, Any] | None:
        shown = (PersonRow.person_id, PersonRow.password_hash, PersonRow.is_active, PersonRow.totp_sealed)
        row: dict[str, Any] | None = await self._db.run(
            PersonRow.select(*shown).where(PersonRow.email == email).first()
        )
        return row

    async def _change(self, email: str, values: dict[Any, Any]) -> str:
        changed: list[dict[str, str]] = await self._db.run(
            PersonRow.update(values)
            .where(PersonRow.email == email.strip().lower(), PersonRow.is_active.eq(value=True))
            .returning(PersonRow.person_id)
        )
        if not changed:
            raise _unknown(email)
        return changed[0]["person_id"]

    async def _note_login(self, person_id: str, known_hash: str | None, now: datetime) -> bool:
        noted = await self._db.run(
            PersonRow.update({PersonRow.last_login_at: now})
            .where(
                PersonRow.person_id == person_id,
                PersonRow.password_hash == known_hash,
                PersonRow.is_active.eq(value=True),
            )
            .returning(PersonRow.person_id)
        )
        return bool(noted)

    async def _audit(self, action: str, actor: str, person_id: str | None, **detail: str) -> None:
        await self._audit_log.record(action, merchant_id=None, actor=actor, subject_id=person_id, detail=detail)


async def names_of(db: Database, actors: Iterable[str]) -> dict[str, str]:
    ids = sorted({actor.removeprefix("person:") for actor in actors if actor.startswith("person:per_")})
    if not ids:
        return {}
    rows = await db.run(PersonRow.select(PersonRow.person_id, PersonRow.name).where(PersonRow.person_id.is_in(ids)))
    return {f"person:{row['person_id']}": row["name"] for row in rows}


_SHOWN = PersonRow.all_columns(exclude=[PersonRow.password_hash, PersonRow.totp_offered])


def _person(row: dict[str, Any]) -> Person:
    role = row["host_role"]
    return Person(
        person_id=row["person_id"],
        email=row["email"],
        name=row["name"],
        role=None if role is None else Role(role),
        has_factor=row["totp_sealed"] is not None,
        is_active=row["is_active"],
        created_at=row["created_at"],
        last_login_at=row["last_login_at"],
    )


def _named(name: str) -> HostLogin:
    module, _, attribute = name.partition(":")
    try:
        found: HostLogin = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise ConfigError(f"`ops.login`: {name} cannot be imported ({problem}): name a callable of yours") from None
    return found


def check_email(email: str) -> str:
    """Raises ValueError."""
    if not _EMAIL.match(email):
        raise ValueError("must be an e-mail address in ASCII, such as amina@shop.example")
    return email


def check_name(name: str) -> str:
    """Raises ValueError."""
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise ValueError("must have 1 to 100 characters")
    return name


def _unknown(email: str) -> NotFound:
    return NotFound(f"there is no active person {email}: see `mpesa-gateway people list`")
