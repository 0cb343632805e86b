"""Second factors: TOTP codes (RFC 6238), accepted once, and recovery codes."""

import hashlib
import hmac
import io
import re
from datetime import datetime
from typing import Any

import pyotp
import segno
from pyotp.totp import TOTP

from mpesa_gateway.client_ip import client_network
from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.errors import Conflict, InvalidFields, TooManyFailures, require_found
from mpesa_gateway.ids import Ids, base32
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.gateway_secrets import OPERATOR_FORMS, GatewaySecrets
from mpesa_gateway.security.rate_limits import ACCOUNT, LOGIN, RateLimits
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway_ops import tables
from mpesa_gateway_ops.errors import NotAllowed
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.tables import PersonRow, RecoveryCodeRow

STEP = 30
"""Seconds of one code."""

_DRIFT = 1
"""Steps that the clock of a phone may be wrong."""

_MOST_WRONG = 20
"""Wrong codes in a row after which only a recovery code or a reset helps."""

_CODES, _CODE_BYTES, _CODE_LETTERS = 10, 8, 12
"""Recovery codes: number, random bytes of each, and letters that are shown."""

_TOTP = re.compile(r"[0-9]{6}\Z", re.ASCII)
_ISSUER = "mpesa-gateway"


def _typed(code: str) -> str:
    """Return a typed or pasted code without the spaces and hyphens that apps and lists show it with."""
    return "".join(code.lower().split()).replace("-", "")


class SecondFactors:
    """Sets up, judges and resets second factors. Codes of one person are judged one after the other."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        audit: Audit,
        sealer: Sealer,
        vault: GatewaySecrets,
        limits: RateLimits,
        sessions: Sessions,
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._audit = audit
        self._sealer = sealer
        self._vault = vault
        self._limits = limits
        self._sessions = sessions

    async def offer(self, person_id: str) -> None:
        """Store a new secret that becomes the second factor once a code of it is confirmed. Raises NotFound."""
        sealed = self._sealer.seal(pyotp.random_base32(), aad=aad(person_id))
        await self._update(person_id, {PersonRow.totp_offered: sealed})

    async def offered(self, person_id: str) -> str | None:
        """Return the address of the offered secret, for an authenticator app; None without an offer."""
        row = await self._db.run(
            PersonRow.select(PersonRow.email, PersonRow.totp_offered).where(PersonRow.person_id == person_id).first()
        )
        if row is None or row["totp_offered"] is None:
            return None
        secret = self._sealer.open(row["totp_offered"], aad=aad(person_id))
        return TOTP(secret).provisioning_uri(name=row["email"], issuer_name=_ISSUER)

    async def confirm(self, person_id: str, code: str, *, session: str) -> list[str]:
        """Make the offered secret the second factor, and return new recovery codes.

        The session with the key ``session`` counts as verified; all others end. Raises InvalidFields and Conflict.
        """
        async with self._db.transaction():
            row = await self._lock(person_id)
            if row["totp_offered"] is None:
                raise Conflict("start again: there is no second factor to confirm")
            step = self._step_of(row["totp_offered"], person_id, code)
            if step is None:
                raise InvalidFields.field_error("code", "this is not the code that the app shows now: try the next one")
            await self._update(
                person_id,
                {
                    PersonRow.totp_sealed: row["totp_offered"],
                    PersonRow.totp_offered: None,
                    PersonRow.totp_step: step,
                    PersonRow.totp_failures: 0,
                },
            )
            codes = await self._renew_codes(person_id)
            await self._sessions.close_all_of(person_id, but=session)
            await self._sessions.verified(session)
            await self._record("person.second_factor_set", person_id, f"person:{person_id}")
        return codes

    async def renew_codes(self, person_id: str) -> list[str]:
        """Replace the recovery codes and return the new ones."""
        async with self._db.transaction():
            row = await self._lock(person_id)
            if row["totp_sealed"] is None:
                raise Conflict("set up a second factor first")
            codes = await self._renew_codes(person_id)
            await self._record("person.recovery_codes_renewed", person_id, f"person:{person_id}")
        return codes

    async def count_codes(self, person_id: str) -> int:
        count: int = await self._db.run(RecoveryCodeRow.count().where(RecoveryCodeRow.person_id == person_id))
        return count

    async def reset(self, person_id: str, *, actor: str) -> None:
        """Remove a lost second factor and end the person's sessions. The next sign-in sets up a new one.

        Raises NotFound. An owner may not reset a person who belongs to the host or to a merchant of another owner:
        raises NotAllowed.
        """
        async with self._db.transaction():
            row = await self._lock(person_id)
            if actor.startswith("person:"):
                await self._check_reach(person_id, actor.removeprefix("person:"))
            if row["totp_sealed"] is None:
                raise Conflict("this person has no second factor")
            await self._update(person_id, {PersonRow.totp_sealed: None, PersonRow.totp_failures: 0})
            await self._db.run(RecoveryCodeRow.delete().where(RecoveryCodeRow.person_id == person_id))
            await self._sessions.close_all_of(person_id)
            await self._record("person.second_factor_reset", person_id, actor)

    async def _check_reach(self, person_id: str, actor_id: str) -> None:
        if person_id == actor_id:
            raise NotAllowed("another owner resets a lost second factor; with the app at hand, set up a new one")
        host_role = await self._db.run(
            PersonRow.select(PersonRow.host_role).where(PersonRow.person_id == actor_id).first()
        )
        if host_role is not None and host_role["host_role"] == "admin":
            return
        if await self._db.fetchval(tables.IS_BEYOND_OWNER, person_id, actor_id):
            raise NotAllowed("this person also belongs to other merchants: ask the host of the gateway")

    async def verify(self, person_id: str, code: str, address: str) -> bool:
        """Judge a TOTP or recovery code, and use it up. Raises TooManyFailures."""
        code = _typed(code)
        counters = ((LOGIN, client_network(address)), (ACCOUNT, _counter(person_id)))
        is_totp = _TOTP.match(code) is not None
        async with self._db.transaction():
            row = await self._lock(person_id)
            for what, counted in counters:
                await self._limits.check_failures(what, counted)
            is_right = await (self._use_step if is_totp else self._use_recovery_code)(person_id, row, code)
            if not is_right:
                await self._count_failure(person_id, row, counters)
            action = "person.code_accepted" if is_totp else "person.recovery_code_used"
            await self._record(action if is_right else "person.code_refused", person_id, f"person:{person_id}")
        return is_right

    async def _use_step(self, person_id: str, row: Row, code: str) -> bool:
        if row["totp_sealed"] is None or row["totp_failures"] >= _MOST_WRONG:
            return False
        step = self._step_of(row["totp_sealed"], person_id, code)
        if step is None:
            return False
        # A code is accepted once: a later step only.
        used = await self._db.run(
            PersonRow.update({PersonRow.totp_step: step, PersonRow.totp_failures: 0})
            .where(PersonRow.person_id == person_id, PersonRow.totp_step < step)
            .returning(PersonRow.person_id)
        )
        return bool(used)

    async def _use_recovery_code(self, person_id: str, row: Row, code: str) -> bool:
        if row["totp_sealed"] is None or len(code) != _CODE_LETTERS:
            return False
        used = await self._db.run(
            RecoveryCodeRow.delete()
            .where(RecoveryCodeRow.person_id == person_id, RecoveryCodeRow.digest == self._digest(person_id, code))
            .returning(RecoveryCodeRow.person_id)
        )
        if used:
            await self._update(person_id, {PersonRow.totp_failures: 0})
        return bool(used)

    async def _count_failure(self, person_id: str, row: Row, counters: tuple[tuple[str, str], ...]) -> None:
        await self._update(person_id, {PersonRow.totp_failures: row["totp_failures"] + 1})
        for what, counted in counters:
            try:
                await self._limits.count_failure(what, counted)
            except TooManyFailures:
                # The next code is rejected.
                continue

    def _step_of(self, sealed: str, person_id: str, code: str) -> int | None:
        return matching_step(self._sealer.open(sealed, aad=aad(person_id)), _typed(code), self._clock.now())

    async def _renew_codes(self, person_id: str) -> list[str]:
        await self._db.run(RecoveryCodeRow.delete().where(RecoveryCodeRow.person_id == person_id))
        codes = [base32(int.from_bytes(self._ids.token(_CODE_BYTES), "big") >> 4, _CODE_LETTERS) for _ in range(_CODES)]
        rows = sorted(self._digest(person_id, code) for code in codes)
        await self._db.run(
            RecoveryCodeRow.insert(*(RecoveryCodeRow(person_id=person_id, digest=digest) for digest in rows))
        )
        return [f"{code[:4]}-{code[4:8]}-{code[8:]}" for code in codes]

    def _digest(self, person_id: str, code: str) -> bytes:
        text = f"recovery\0{person_id}\0{code}"
        return hmac.new(self._vault.secret(OPERATOR_FORMS), text.encode(), hashlib.sha256).digest()

    async def _lock(self, person_id: str) -> Row:
        return require_found(await self._db.fetchrow(tables.LOCK_PERSON, person_id), "there is no such active person")

    async def _update(self, person_id: str, values: dict[Any, Any]) -> None:
        await self._db.run(PersonRow.update(values).where(PersonRow.person_id == person_id))

    async def _record(self, action: str, person_id: str, actor: str) -> None:
        await self._audit.record(action, merchant_id=None, actor=actor, subject_id=person_id)


def aad(person_id: str) -> tuple[str, ...]:
    return ("ops", "totp", person_id)


def _counter(person_id: str) -> str:
    return hashlib.sha256(f"code\0{person_id}".encode()).hexdigest()[:32]


def matching_step(secret: str, code: str, now: datetime) -> int | None:
    totp, current = TOTP(secret, interval=STEP), int(now.timestamp()) // STEP
    for step in range(current - _DRIFT, current + _DRIFT + 1):
        if hmac.compare_digest(totp.generate_otp(step).encode(), code.encode()):
            return step
    return None


def draw_qr(text: str) -> str:
    """Return a QR code as an SVG element without style or script."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(
        out, kind="svg", xmldecl=False, svgns=False, svgclass=None, lineclass=None, omitsize=True, light="#fff"
    )
    return out.getvalue().decode()
