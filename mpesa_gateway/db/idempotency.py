"""One key, one payment: who may act on an idempotency key is decided by Postgres, for every replica alike.

A key belongs to (merchant, env), and all operations that move money share one namespace.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

import msgspec

from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway.errors import ApiError, Code, Conflict

# raw SQL: hot path - each create claims and settles a key.
CLAIM = """
INSERT INTO idempotency_key (merchant_id, env, key, operation, fingerprint, state, subject_id, leased_until, created_at)
VALUES ($1, $2, $3, $4, $5, 'in_flight', $6, $8, $7)
ON CONFLICT (merchant_id, env, key) DO UPDATE SET state = 'in_flight', leased_until = excluded.leased_until
    WHERE idempotency_key.state = 'released' AND idempotency_key.fingerprint = excluded.fingerprint
        AND idempotency_key.operation IN ('', excluded.operation)
RETURNING subject_id
"""

CLAIMED = """
claimed AS (
    INSERT INTO idempotency_key
        (merchant_id, env, key, operation, fingerprint, state, subject_id, leased_until, created_at)
    SELECT merchant_id, env, idempotency_key, operation, fingerprint, 'in_flight', subject_id, leased_until, asked_at
    FROM asked
    -- Always in this order, so that two processes with the same keys wait for each other and not in a ring.
    ORDER BY merchant_id, env, idempotency_key
    ON CONFLICT (merchant_id, env, key) DO NOTHING
    RETURNING subject_id
)
"""
"""For a statement that claims many keys and writes what they are claimed for: a CTE that reads these columns of
``asked`` and gives the subjects whose keys nobody has used before. All others are left to ``claim``."""

UNLOCKED = """
unlocked AS MATERIALIZED (
    SELECT subject_id FROM told JOIN idempotency_key AS known
        ON known.merchant_id = told.merchant_id AND known.env = told.env AND known.key = told.idempotency_key
    ORDER BY known.merchant_id, known.env, known.key FOR UPDATE OF known SKIP LOCKED
)
"""
"""Likewise, for a statement that writes the outcome of many: locks the keys of ``told`` that no other session has."""

SETTLED = """
settled AS (
    UPDATE idempotency_key SET state = 'settled' FROM free
    WHERE idempotency_key.merchant_id = free.merchant_id AND idempotency_key.env = free.env AND key = idempotency_key
        AND state = 'in_flight'
)
"""
"""Likewise: settles the keys of ``free``, a CTE of what can be written now."""

FIND = """
SELECT operation, fingerprint, state, subject_id, leased_until FROM idempotency_key
WHERE merchant_id = $1 AND env = $2 AND key = $3
"""

LOCK = """
SELECT state, leased_until FROM idempotency_key WHERE merchant_id = $1 AND env = $2 AND key = $3 FOR UPDATE
"""

CLOSE = """
UPDATE idempotency_key SET state = 'settled' WHERE merchant_id = $1 AND env = $2 AND key = $3 AND state <> 'settled'
"""

SETTLE = """
UPDATE idempotency_key SET state = $4 WHERE merchant_id = $1 AND env = $2 AND key = $3 AND state = 'in_flight'
"""

FORGET = """
DELETE FROM idempotency_key WHERE (merchant_id, env, key) IN (
    SELECT merchant_id, env, key FROM idempotency_key WHERE merchant_id = $1 AND env = $2 AND key = $3 FOR UPDATE NOWAIT
)
"""


class KeyRequired(ApiError):
    """The request moves money and came without an Idempotency-Key."""

    status, code = 400, Code.IDEMPOTENCY_KEY_REQUIRED


class KeyInProgress(Conflict):
    """The first request with this key has not finished."""

    code: ClassVar[Code] = Code.IDEMPOTENCY_IN_PROGRESS
    retryable = True


class KeyMismatch(ApiError):
    """The key was used before with another body, or for another operation."""

    status, code = 422, Code.IDEMPOTENCY_MISMATCH


@dataclass(frozen=True)
class Claim:
    """Who acts: ``is_ours`` says that the caller does, else the request is a repetition of an earlier one."""

    subject_id: str
    is_ours: bool


def fingerprint(operation: str, body: dict[str, Any]) -> bytes:
    """What identifies a request: 16 bytes of the SHA-256 over the operation and its parsed body, in a fixed order."""
    text = operation.encode() + b"\0" + msgspec.json.encode(body, order="deterministic")
    return hashlib.sha256(text).digest()[:16]


def read_key(header: str | None) -> str:
    """The Idempotency-Key as sent; raises KeyRequired when it is missing or not 1…255 printable ASCII characters."""
    if header is None or not header.strip():
        raise KeyRequired("send an Idempotency-Key header, such as your order's id: it makes retrying safe")
    key = header.strip()
    if len(key) > 255 or not key.isascii() or not key.isprintable():
        raise KeyRequired("the Idempotency-Key must be 1 to 255 printable ASCII characters")
    return key


async def claim(
    db: Database,
    *,
    merchant_id: str,
    env: Env,
    key: str,
    operation: str,
    fingerprint: bytes,
    subject_id: str,
    now: datetime,
    lease: timedelta,
) -> Claim:
    """Claim the key for ``subject_id`` in the open transaction, or return the subject that has it.

    ``operation`` names what is asked for, such as ``payment``. Concurrent claims of one key wait for each other in
    Postgres. Raises KeyMismatch for another body or operation, and KeyInProgress while the first request is within its
    lease. A released key is claimed again for its first subject.
    """
    taken = await db.fetchval(CLAIM, merchant_id, env, key, operation, fingerprint, subject_id, now, now + lease)
    if taken is not None:
        return Claim(taken, is_ours=True)
    row = await db.fetchrow(FIND, merchant_id, env, key)
    if row is None:
        raise KeyInProgress("the first request with this Idempotency-Key is still being handled", retry_after=1)
    if row["operation"] not in {"", operation}:
        raise KeyMismatch(
            f"this Idempotency-Key was used for a {row['operation']} ({row['subject_id']}), and this request is a "
            f"{operation}: send a new key"
        )
    if row["fingerprint"] != fingerprint:
        raise KeyMismatch("this Idempotency-Key was used with another request: send a new key, or the same body")
    if row["state"] == "in_flight" and row["leased_until"] > now:
        raise KeyInProgress("the first request with this Idempotency-Key is still being handled", retry_after=1)
    return Claim(row["subject_id"], is_ours=False)


async def settle(db: Database, *, merchant_id: str, env: Env, key: str) -> None:
    """The request has its outcome: later requests with the key are answered with what it made."""
    await db.execute(SETTLE, merchant_id, env, key, "settled")


async def lock(db: Database, *, merchant_id: str, env: Env, key: str) -> datetime | None:
    """Lock the key in the open transaction, before anything that it stands for; returns until when it is leased.

    None where no request is under its lease: the key is settled, released or forgotten.
    """
    row = await db.fetchrow(LOCK, merchant_id, env, key)
    leased_until: datetime | None = None if row is None or row["state"] != "in_flight" else row["leased_until"]
    return leased_until


async def close(db: Database, *, merchant_id: str, env: Env, key: str) -> None:
    """What the key stands for has ended: settle it, whether its request is in flight or was released."""
    await db.execute(CLOSE, merchant_id, env, key)


async def delete_key(db: Database, *, merchant_id: str, env: Env, key: str) -> None:
    """Delete the key of an object that has ended and that has a copy of its key.

    Does not wait, because its caller holds locks that come after keys: raises LockNotAvailableError.
    """
    await db.execute(FORGET, merchant_id, env, key)


async def release(db: Database, *, merchant_id: str, env: Env, key: str) -> None:
    """Nothing was sent: the same key may try again."""
    await db.execute(SETTLE, merchant_id, env, key, "released")
