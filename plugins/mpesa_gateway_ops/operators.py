"""Operators: made, let in by their password, given a new one and shut out, each of it on record."""

import re
from datetime import datetime
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from mpesa_gateway.clock import Clock
from mpesa_gateway.config import ConfigRefused
from mpesa_gateway.db.engine import Database
from mpesa_gateway.errors import Conflict, NotFound, checking
from mpesa_gateway.ids import Ids, base32
from mpesa_gateway.pages import Role
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_ops import tables
from mpesa_gateway_ops.api import HostLogin
from mpesa_gateway_ops.errors import WrongPassword
from mpesa_gateway_ops.guesses import Guesses
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import OperatorRow

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}\Z", re.ASCII)

SHORTEST, LONGEST = 12, 1024
"""Characters of a password."""

_NO_DEVICE = Secret("")

_hasher = PasswordHasher()


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """An operator as may be shown: never the password, nor its hash."""

    operator_id: str
    name: str
    role: Role
    is_active: bool
    created_at: datetime
    last_login_at: datetime | None = None


class SignedIn(NamedTuple):
    """What a login gives the browser: the session's cookie, and the one by which it is known the next time."""

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
        guesses: Guesses,
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
        """Find the host's own login where the settings name one. Raises ConfigRefused when it cannot be."""
        name = self._settings.login
        if name is not None:
            self.host_login = _named(name)

    async def stop(self) -> None:
        """End the threads that hash passwords."""
        self._guesses.stop()

    def signed_in_by(self, login: HostLogin) -> HostLogin:
        """Decorate the host's own login: who it says is signed in is, and our own passwords open nothing any more."""
        self.host_login = login
        return login

    async def create(self, name: str, password: Secret, *, role: Role, actor: str) -> Operator:
        """A new operator. Raises Invalid, and Conflict for a name that somebody has or had."""
        with checking() as checks:
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
            if not await self._db.fetchval(
                tables.CREATE, operator.operator_id, name, password_hash, role.value, operator.created_at
            ):
                raise Conflict(f"there is or was an operator called {name}: take another name")
            await self._audit("operator.created", actor, operator.operator_id, name=name, role=role.value)
        return operator

    async def create_first(self, name: str, *, actor: str) -> Secret | None:
        """The first operator, an admin, with a password of our choice, shown now or never; None where there is one."""
        query: Any = OperatorRow.exists()  # pyright: ignore[reportUnknownVariableType] - Piccolo
        if await self._db.run(query):
            return None
        password = Secret(base32(int.from_bytes(self._ids.token(15), "big"), 24))
        await self.create(name, password, role=Role.ADMIN, actor=actor)
        return password

    async def list(self) -> list[Operator]:
        """All operators by name, those that are shut out too."""
        query: Any = OperatorRow.select(  # pyright: ignore[reportUnknownVariableType] - Piccolo
            OperatorRow.operator_id,
            OperatorRow.name,
            OperatorRow.role,
            OperatorRow.is_active,
            OperatorRow.created_at,
            OperatorRow.last_login_at,
        ).order_by(OperatorRow.name)
        rows = await self._db.run(query)
        return [msgspec.convert(row, Operator) for row in rows]

    async def set_password(self, name: str, password: Secret, *, actor: str) -> None:
        """Another password; every session of this operator ends. Raises Invalid, and NotFound."""
        with checking() as checks:
            checks.take("password", _check_password, password)
        password_hash = await self._hash(password)
        async with self._db.transaction():
            operator_id = await self._db.fetchval(tables.CHANGE, name, password_hash)
            if operator_id is None:
                raise _unknown(name)
            await self._db.execute(tables.CLOSE_SESSIONS_OF, operator_id)
            await self._audit("operator.password_set", actor, operator_id)

    async def set_role(self, name: str, role: Role, *, actor: str) -> None:
        """Another role, from the next page on. Raises NotFound."""
        async with self._db.transaction():
            operator_id = await self._db.fetchval(tables.SET_ROLE, name, role.value)
            if operator_id is None:
                raise _unknown(name)
            await self._audit("operator.role_set", actor, operator_id, role=role.value)

    async def deactivate(self, name: str, *, actor: str) -> None:
        """Let this operator in no more; every session ends. Raises NotFound."""
        async with self._db.transaction():
            operator_id = await self._db.fetchval(tables.DEACTIVATE, name)
            if operator_id is None:
                raise _unknown(name)
            await self._db.execute(tables.CLOSE_SESSIONS_OF, operator_id)
            await self._audit("operator.deactivated", actor, operator_id)

    async def sign_in(self, name: str, password: Secret, address: str, device: Secret = _NO_DEVICE) -> SignedIn:
        """A new session, as the cookie will hold it. ``device`` is the browser's device cookie, empty without one.

        Raises WrongPassword, TooManyFailures for the address, the account or the device, and ServiceUnavailable.
        """
        name = name.strip().lower()
        guess = self._guesses.guess(name, address, device)
        async with self._guesses.judging(guess):
            row = await self._db.fetchrow(tables.FIND, name) if _NAME.match(name) else None
            known_hash = None if row is None else str(row["password_hash"])
            # What is no password at all is not worth the hashing, whoever has the name.
            is_right = SHORTEST <= len(password.reveal()) <= LONGEST and await self._guesses.run(
                partial(_verify, known_hash, password)
            )
            if row is not None and is_right and row["is_active"]:
                async with self._db.transaction():
                    now = self._clock.now()
                    # Unless the password was changed, or the operator shut out, while we were hashing.
                    if await self._db.fetchval(tables.NOTE_LOGIN, row["operator_id"], known_hash, now):
                        actor = f"operator:{row['operator_id']}"
                        await self._audit("operator.signed_in", actor, row["operator_id"])
                        session = await self._sessions.open(row["operator_id"])
                        return SignedIn(session, self._guesses.device_cookie(name))
            operator_id = None if row is None else row["operator_id"]
            await self._audit("operator.sign_in_failed", f"address:{address}", operator_id)
            await self._guesses.failed(guess)
            raise WrongPassword("the name or the password is wrong")

    async def _hash(self, password: Secret) -> str:
        return await self._guesses.run(partial(_hasher.hash, password.reveal()))

    async def _audit(self, action: str, actor: str, operator_id: str | None, **detail: str) -> None:
        await self._audit_log.record(action, merchant_id=None, actor=actor, subject_id=operator_id, detail=detail)


def _named(name: str) -> HostLogin:
    """The callable that a setting names."""
    module, _, attribute = name.partition(":")
    try:
        found: HostLogin = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise ConfigRefused(f"`ops.login`: {name} cannot be imported ({problem}): name a callable of yours") from None
    return found


def _verify(known_hash: str | None, password: Secret) -> bool:
    """Whether the password is the one; for a name that nobody has it takes as long to say no."""
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
