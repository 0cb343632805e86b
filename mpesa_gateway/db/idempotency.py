"""Claims, settles and releases idempotency keys.

All operations that move money share one namespace per merchant and env.
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
INSERT INTO idempotency_key
    (merchant_id, env, digest, operation, fingerprint, state, subject_id, leased_until, created_at)
VALUES ($1, $2, key_digest($1, $2, $3), $4, $5, 'in_flight', $6, $8, $7)
ON CONFLICT (digest) DO UPDATE SET state = 'in_flight', leased_until = excluded.leased_until
    WHERE idempotency_key.state = 'released' AND idempotency_key.fingerprint = excluded.fingerprint
        AND idempotency_key.operation IN ('', excluded.operation)
RETURNING subject_id
"""

CLAIMED = """
claimed AS (
    INSERT INTO idempotency_key
        (merchant_id, env, digest, operation, fingerprint, state, subject_id, leased_until, created_at)
    SELECT merchant_id, env, key_digest(merchant_id, env, idempotency_key) AS digest, operation, fingerprint,
        'in_flight', subject_id, leased_until, asked_at
    FROM asked
    -- Always in this order, so that two processes with the same keys wait for each other and not in a ring.
    ORDER BY digest
    ON CONFLICT (digest) DO NOTHING
    RETURNING subject_id
)
"""
"""CTE: the subjects of ``asked`` with an unused key. ``claim`` handles the others."""

UNLOCKED = """
unlocked AS MATERIALIZED (
    SELECT subject_id FROM given JOIN idempotency_key AS known
        ON known.digest = key_digest(given.merchant_id, given.env, given.idempotency_key)
    ORDER BY known.digest FOR UPDATE OF known SKIP LOCKED
)
"""
"""CTE: locks keys of ``given`` that no other session has locked."""

SETTLED = """
settled AS (
    UPDATE idempotency_key SET state = 'settled' FROM free
    WHERE digest = key_digest(free.merchant_id, free.env, free.idempotency_key) AND state = 'in_flight'
)
"""
"""CTE: settles the keys of ``free``."""

FIND = """
SELECT operation, fingerprint, state, subject_id, leased_until FROM idempotency_key
WHERE digest = key_digest($1, $2, $3)
"""

LOCK = """
SELECT state, leased_until FROM idempotency_key WHERE digest = key_digest($1, $2, $3) FOR UPDATE
"""

CLOSE = """
UPDATE idempotency_key SET state = 'settled' WHERE digest = key_digest($1, $2, $3) AND state <> 'settled'
"""

SETTLE = """
UPDATE idempotency_key SET state = $4 WHERE digest = key_digest($1, $2, $3) AND state = 'in_flight'
"""

FORGET = """
DELETE FROM idempotency_key WHERE digest IN (
    SELECT digest FROM idempotency_key WHERE digest = key_digest($1, $2, $3) FOR UPDATE NOWAIT
)
"""


class KeyRequired(ApiError):
    """The request moves money and needs an Idempotency-Key."""

    status, code = 400, Code.IDEMPOTENCY_KEY_REQUIRED


class KeyInProgress(Conflict):
    """The first request with this key is not finished."""

    code: ClassVar[Code] = Code.IDEMPOTENCY_IN_PROGRESS
    retryable = True


class KeyMismatch(ApiError):
    """The key was used with another body or operation."""

    status, code = 422, Code.IDEMPOTENCY_MISMATCH


@dataclass(frozen=True)
class Claim:
    """Without ``is_ours``, the request is a repetition."""

    subject_id: str
    is_ours: bool


def fingerprint(operation: str, body: dict[str, Any]) -> bytes:
    """Return 16 bytes of the SHA-256 over operation and body."""
    text = operation.encode() + b"\0" + msgspec.json.encode(body, order="deterministic")
    return hashlib.sha256(text).digest()[:16]


def read_key(header: str | None) -> str:
    """Raise KeyRequired unless the key is 1 to 255 printable ASCII characters."""
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
    """Claim the key for ``subject_id``, or return its subject. Concurrent claims wait.

    Raises KeyMismatch, and KeyInProgress during the first request's lease. A released key keeps its first subject.
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
    await db.execute(SETTLE, merchant_id, env, key, "settled")


async def lock(db: Database, *, merchant_id: str, env: Env, key: str) -> datetime | None:
    """Lock the key before its subject; return the end of its lease, or None without one."""
    row = await db.fetchrow(LOCK, merchant_id, env, key)
    leased_until: datetime | None = None if row is None or row["state"] != "in_flight" else row["leased_until"]
    return leased_until


async def close(db: Database, *, merchant_id: str, env: Env, key: str) -> None:
    await db.execute(CLOSE, merchant_id, env, key)


async def delete_key(db: Database, *, merchant_id: str, env: Env, key: str) -> None:
    """Delete the key of a finished object that has a copy. Raises LockNotAvailableError instead of waiting."""
    await db.execute(FORGET, merchant_id, env, key)


async def release(db: Database, *, merchant_id: str, env: Env, key: str) -> None:
    """Nothing was sent: allow a retry with the same key."""
    await db.execute(SETTLE, merchant_id, env, key, "released")
