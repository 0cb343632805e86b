"""Operators: accounts, passwords, roles and sign-in, each change audited."""

import re
from datetime import datetime
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from mpesa_gateway.clock import Clock
from mpesa_gateway.config import ConfigError
from mpesa_gateway.db.engine import Database
from mpesa_gateway.errors import Conflict, NotFound, check_fields
from mpesa_gateway.ids import Ids, base32
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_ops.api import HostLogin
from mpesa_gateway_ops.errors import WrongPassword
from mpesa_gateway_ops.login_limits import LoginLimits
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import OperatorRow

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}\Z", re.ASCII)

SHORTEST, LONGEST = 12, 1024
"""Characters of a password."""

_NO_DEVICE = Secret("")

_hasher = PasswordHasher()


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """An operator without the password hash."""

    operator_id: str
    name: str
    role: Role
    is_active: bool
    created_at: datetime
    last_login_at: datetime | None = None


class SignedIn(NamedTuple):
    """The cookies of a login: session and device."""

    session: Secret
    device: Secret


class Operators:
    """The use cases of operators."""

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

    async def stop(self) -> None:
        self._guesses.stop()

    def signed_in_by(self, login: HostLogin) -> HostLogin:
        self.host_login = login
        return login

    async def create(self, name: str, password: Secret, *, role: Role, actor: str) -> Operator:
        """Raises InvalidFields, and Conflict for a name that is or was in use."""
        with check_fields() as checks:
            checks.take("name", _check_name, name)
            checks.take("password", _check_password, password)
        operator = Operator(
            operator_id=self._ids.new("opr"),
            name=name,
            role=role,
            is_active=True,
            created_at=self._clock.now(),
        )
        password_hash = await self._hash(password)
        async with self._db.transaction():
            row = OperatorRow(
                operator_id=operator.operator_id,
                name=name,
                password_hash=password_hash,
                role=role.value,
                is_active=True,
                created_at=operator.created_at,
            )
            insert = OperatorRow.insert(row).on_conflict(target=OperatorRow.name, action="DO NOTHING")
            if not await self._db.run(insert.returning(OperatorRow.operator_id)):
                raise Conflict(f"there is or was an operator called {name}: take another name")
            await self._audit("operator.created", actor, operator.operator_id, name=name, role=role.value)
        return operator

    async def create_first(self, name: str, *, actor: str) -> Secret | None:
        """Create the first operator, an admin, and return its password; None if one exists."""
        if await self._db.run(OperatorRow.exists()):
            return None
        password = Secret(base32(int.from_bytes(self._ids.token(15), "big"), 24))
        await self.create(name, password, role=Role.ADMIN, actor=actor)
        return password

    async def list(self) -> list[Operator]:
        """Return all operators by name, deactivated ones included."""
        shown = OperatorRow.all_columns(exclude=[OperatorRow.password_hash])
        rows = await self._db.run(OperatorRow.select(*shown).order_by(OperatorRow.name))
        return [msgspec.convert(row, Operator) for row in rows]

    async def set_password(self, name: str, password: Secret, *, actor: str) -> None:
        """Set a password and end the operator's sessions. Raises InvalidFields and NotFound."""
        with check_fields() as checks:
            checks.take("password", _check_password, password)
        password_hash = await self._hash(password)
        async with self._db.transaction():
            operator_id = await self._change(name, {OperatorRow.password_hash: password_hash})
            await self._sessions.close_all_of(operator_id)
            await self._audit("operator.password_set", actor, operator_id)

    async def set_role(self, name: str, role: Role, *, actor: str) -> None:
        """Set a role, valid from the next request. Raises NotFound."""
        async with self._db.transaction():
            operator_id = await self._change(name, {OperatorRow.role: role.value})
            await self._audit("operator.role_set", actor, operator_id, role=role.value)

    async def deactivate(self, name: str, *, actor: str) -> None:
        """Deactivate an operator and end its sessions. Raises NotFound."""
        async with self._db.transaction():
            operator_id = await self._change(name, {OperatorRow.is_active: False})
            await self._sessions.close_all_of(operator_id)
            await self._audit("operator.deactivated", actor, operator_id)

    async def sign_in(self, name: str, password: Secret, address: str, device: Secret = _NO_DEVICE) -> SignedIn:
        """Open a session. ``device`` is the device cookie, empty without one.

        Raises WrongPassword, TooManyFailures for the address, account or device, and ServiceUnavailable.
        """
        name = name.strip().lower()
        guess = self._guesses.guess(name, address, device)
        async with self._guesses.judge(guess):
            row = await self._find(name) if _NAME.match(name) else None
            known_hash = None if row is None else str(row["password_hash"])
            # Reject impossible passwords without hashing.
            is_right = SHORTEST <= len(password.reveal()) <= LONGEST and await self._guesses.run(
                partial(_verify, known_hash, password)
            )
            if row is not None and is_right and row["is_active"]:
                async with self._db.transaction():
                    now = self._clock.now()
                    # Fails if the password or the account changed during hashing.
                    if await self._note_login(row["operator_id"], known_hash, now):
                        actor = f"operator:{row['operator_id']}"
                        await self._audit("operator.signed_in", actor, row["operator_id"])
                        session = await self._sessions.open(row["operator_id"])
                        return SignedIn(session, self._guesses.device_cookie(name))
            operator_id = None if row is None else row["operator_id"]
            await self._audit("operator.sign_in_failed", f"address:{address}", operator_id)
            await self._guesses.record_failure(guess)
            raise WrongPassword("the name or the password is wrong")

    async def _find(self, name: str) -> dict[str, Any] | None:
        shown = (OperatorRow.operator_id, OperatorRow.password_hash, OperatorRow.is_active)
        row: dict[str, Any] | None = await self._db.run(
            OperatorRow.select(*shown).where(OperatorRow.name == name).first()
        )
        return row

    async def _change(self, name: str, values: dict[Any, Any]) -> str:
        """Change an active operator and return its id. Raises NotFound."""
        changed: list[dict[str, str]] = await self._db.run(
            OperatorRow.update(values)
            .where(OperatorRow.name == name, OperatorRow.is_active.eq(value=True))
            .returning(OperatorRow.operator_id)
        )
        if not changed:
            raise _unknown(name)
        return changed[0]["operator_id"]

    async def _note_login(self, operator_id: str, known_hash: str | None, now: datetime) -> bool:
        noted = await self._db.run(
            OperatorRow.update({OperatorRow.last_login_at: now})
            .where(
                OperatorRow.operator_id == operator_id,
                OperatorRow.password_hash == known_hash,
                OperatorRow.is_active.eq(value=True),
            )
            .returning(OperatorRow.operator_id)
        )
        return bool(noted)

    async def _hash(self, password: Secret) -> str:
        return await self._guesses.run(partial(_hasher.hash, password.reveal()))

    async def _audit(self, action: str, actor: str, operator_id: str | None, **detail: str) -> None:
        await self._audit_log.record(action, merchant_id=None, actor=actor, subject_id=operator_id, detail=detail)


def _named(name: str) -> HostLogin:
    module, _, attribute = name.partition(":")
    try:
        found: HostLogin = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise ConfigError(f"`ops.login`: {name} cannot be imported ({problem}): name a callable of yours") from None
    return found


def _verify(known_hash: str | None, password: Secret) -> bool:
    """An unknown name takes as long as a wrong password."""
    if known_hash is None:
        _hasher.hash(password.reveal())
        return False
    try:
        return _hasher.verify(known_hash, password.reveal())
    except VerifyMismatchError:
        return False


def _check_name(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError("must be 1 to 64 lower-case letters, digits, dots, dashes, underscores or at signs")
    return name


def _check_password(password: Secret) -> Secret:
    if not SHORTEST <= len(password.reveal()) <= LONGEST:
        raise ValueError(f"must have {SHORTEST} to {LONGEST} characters")
    return password


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no active operator called {name}: see `mpesa-gateway operators list`")
