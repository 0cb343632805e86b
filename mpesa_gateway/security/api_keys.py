"""API keys: stored as a digest, identified by a public id."""

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

import msgspec
import structlog
from piccolo.columns.combination import Where

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.invalidation import InvalidatedCache, InvalidationListener
from mpesa_gateway.errors import Conflict, InvalidKey, NotFound
from mpesa_gateway.ids import Ids, base32
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.gateway_secrets import API_KEY_PEPPER, GatewaySecrets
from mpesa_gateway.security.scopes import Caller, Env, Environment, Scope, key_prefix
from mpesa_gateway.security.tables import FIND_KEY, ApiKeyRow, MerchantRow

log = structlog.get_logger(__name__)

_KEY = re.compile(r"sk_(live|test)_([0-9a-z]{26})([0-9a-z]{22})\Z", re.ASCII)
_TOUCH_EVERY = timedelta(minutes=1)

_MOST = 10_000
"""A full cache is cleared."""

HEADER_HINT = "send your API key in the X-API-Key header, or as Authorization: Bearer: sk_live_… or sk_test_…"

TWO_KEYS = "two keys"
"""Represents two different keys in one request. No key has this form."""

_KEY_STARTS = ("sk_live_", "sk_test_")

_FORM = "a key is sk_test_ or sk_live_ followed by 48 small letters and digits"


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key of ``X-API-Key`` or ``Authorization: Bearer``, or ``TWO_KEYS``.

    Other authorization schemes, such as a proxy's Basic, are ignored; beside ``X-API-Key``, also a Bearer token of
    another party.
    """
    found, borne = dict[str, None](), dict[str, None]()
    for name, value in headers:
        text = value.decode("latin-1")
        if name == b"x-api-key":
            found[text] = None
        elif name == b"authorization":
            scheme, _, key = text.strip().partition(" ")
            if scheme.lower() == "bearer" and key.strip():
                borne[key.strip()] = None
    found |= {key: None for key in borne if not found or key.startswith(_KEY_STARTS)}
    return None if not found else next(iter(found)) if len(found) == 1 else TWO_KEYS


def _explain_form(text: str) -> str:
    """Return the advice for a text that is no key. The text itself may be another secret."""
    if text == TWO_KEYS:
        return "X-API-Key and Authorization: Bearer hold two different keys: send one of them"
    kind = next((kind for pattern, kind in _MISTAKEN if pattern.search(text)), "")
    return f"this is not a key of this gateway{kind}: {_FORM}. {HEADER_HINT[0].upper()}{HEADER_HINT[1:]}"


_MISTAKEN = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"\A\s*\Z", " (it is empty)"),
        (r"\Akey_", " but the ID of one; the key itself is shown once, when it is created"),
        (r"\Awhsec_", " but the secret of a webhook"),
        (r"\A(?:Bearer|Basic|Token)\b", " (leave out the word before it)"),
        (r"\A[\"'$<{]", " (it holds quotes or an unset variable)"),
        (r"\*\*|…|\.\.\.", " (it is shortened)"),
        (r"\s", " (it holds a space or a line break)"),
    )
)


def is_well_formed(text: str) -> bool:
    return _KEY.match(text) is not None


def id_of(text: str | None) -> str:
    """Return the public id, empty for other text."""
    found = _KEY.match(text or "")
    return "" if found is None else f"key_{found[2]}"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key without its secret."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "key_id": "key_01jdk3v8rc4x9m2q7ztbn5wgae",
        "merchant_id": "mer_01jdk3v8rc4x9m2q7ztbn5wgae",
        "name": "shop",
        "scopes": ["payments:read", "payments:write"],
        "created_by": "person:per_01jdk3v8rc4x9m2q7ztbn5wgae",
        "expires_at": None,
        "revoked_at": None,
    }

    key_id: str
    merchant_id: str
    name: str
    env: Environment
    scopes: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    caller: Caller
    digest: bytes
    is_active: bool
    expires_at: datetime | None
    last_used_at: datetime | None


class ApiKeys:
    """Creates, checks and revokes API keys."""

    def __init__(
        self, db: Database, changes: InvalidationListener, vault: GatewaySecrets, clock: Clock, ids: Ids, audit: Audit
    ) -> None:
        self._db = db
        self._changes = changes
        self._known: InvalidatedCache[_Known] = InvalidatedCache(changes)
        changes.on("api_key", self._known.evict)
        changes.on("merchant", self._known.clear)
        self._touched: dict[str, datetime] = {}
        self._right: dict[str, bytes] = {}
        self._vault = vault
        self._clock = clock
        self._ids = ids
        self._audit = audit

    async def create(
        self,
        merchant_id: str,
        *,
        name: str,
        scopes: Collection[Scope],
        env: Env,
        actor: str,
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, Secret]:
        """Return a key and its secret, which is not stored. Raises NotFound."""
        key_id = self._ids.new("key")
        text = key_prefix(env) + key_id.removeprefix("key_") + base32(int.from_bytes(self._ids.token(14), "big"), 22)
        key = ApiKey(
            key_id=key_id,
            merchant_id=merchant_id,
            name=name,
            env=env,
            scopes=tuple(sorted(scope.name for scope in scopes)),
            created_at=self._clock.now(),
            created_by=actor,
            expires_at=expires_at,
        )
        async with self._db.transaction():
            if not await self._db.run(MerchantRow.exists().where(MerchantRow.merchant_id == merchant_id)):
                raise NotFound("there is no such merchant")
            await ApiKeyRow(
                key_id=key.key_id,
                merchant_id=merchant_id,
                name=name,
                digest=self._digest(text),
                env=env,
                scopes=list(key.scopes),
                created_at=key.created_at,
                created_by=actor,
                expires_at=expires_at,
            ).save()
            await self._audit.record(
                "api_key.created",
                merchant_id=merchant_id,
                actor=actor,
                subject_id=key.key_id,
                detail={"name": name, "env": env, "scopes": list(key.scopes)},
            )
        return key, Secret(text)

    async def authenticate(self, text: str | None) -> Caller:
        """Raise InvalidKey, with one message for all causes that are not visible in the text."""
        found = _KEY.match(text or "")
        if text is None or found is None:
            raise InvalidKey(HEADER_HINT if text is None else _explain_form(text))
        key_id = f"key_{found[2]}"
        known = await self._known.get(key_id, lambda: self._find(key_id))
        # An unknown id must take as long as a wrong secret.
        is_right = hmac.compare_digest(self._digest(text), known.digest if known is not None else bytes(32))
        now = self._clock.now()
        is_over = known is not None and known.expires_at is not None and known.expires_at <= now
        if known is None or not is_right or not known.is_active or is_over:
            if is_right:
                self._right.pop(key_id, None)
            raise InvalidKey("this API key is unknown, revoked or expired: " + HEADER_HINT)
        if len(self._right) >= _MOST:
            self._right.clear()
        self._right[key_id] = known.digest
        await self._touch(known, now)
        return known.caller

    def was_valid(self, text: str) -> bool:
        """Return the cached result, which may be outdated."""
        found = _KEY.match(text)
        known = None if found is None else self._right.get(f"key_{found[2]}")
        return known is not None and hmac.compare_digest(self._digest(text), known)

    async def _find(self, key_id: str) -> "_Known | None":
        row = await self._db.fetchrow(FIND_KEY, key_id)
        if row is None:
            return None
        return _Known(
            caller=Caller(row["merchant_id"], key_id, frozenset(row["scopes"]), row["env"]),
            digest=bytes(row["digest"]),
            is_active=row["is_active"] and row["revoked_at"] is None,
            expires_at=row["expires_at"],
            last_used_at=row["last_used_at"],
        )

    async def _touch(self, known: "_Known", now: datetime) -> None:
        key_id = known.caller.key_id
        last = max(filter(None, (known.last_used_at, self._touched.get(key_id))), default=None)
        if last is None or last < now - _TOUCH_EVERY:
            self._touched[key_id] = now
            await self._db.run(
                ApiKeyRow.update({ApiKeyRow.last_used_at: now}).where(
                    ApiKeyRow.key_id == key_id,
                    ApiKeyRow.last_used_at.is_null() | (ApiKeyRow.last_used_at < now),
                )
            )

    async def list(self, merchant_id: str, env: Env | None = None) -> list[ApiKey]:
        rows = await self._db.run(
            ApiKeyRow.select(*_SHOWN).where(*_of(merchant_id, env)).order_by(ApiKeyRow.created_at, ascending=False)
        )
        return [_key(row) for row in rows]

    async def of_maker(self, actor: str) -> Sequence[ApiKey]:
        """Return the keys that this actor created and that are not revoked, of all merchants, newest first."""
        rows = await self._db.run(
            ApiKeyRow.select(*_SHOWN)
            .where(ApiKeyRow.created_by == actor, ApiKeyRow.revoked_at.is_null())
            .order_by(ApiKeyRow.created_at, ascending=False)
        )
        return [_key(row) for row in rows]

    async def has_live_key(self, merchant_id: str) -> bool:
        has_live: bool = await self._db.run(
            ApiKeyRow.exists().where(*_of(merchant_id, "live"), ApiKeyRow.revoked_at.is_null())
        )
        return has_live

    async def revoke(self, merchant_id: str, key_id: str, *, actor: str, env: Env | None = None) -> ApiKey:
        """Raise NotFound or Conflict."""
        async with self._db.transaction():
            revoked = await self._db.run(
                ApiKeyRow.update({ApiKeyRow.revoked_at: self._clock.now()})
                .where(*_of(merchant_id, env), ApiKeyRow.key_id == key_id, ApiKeyRow.revoked_at.is_null())
                .returning(*_SHOWN)
            )
            if not revoked:
                if any(key.key_id == key_id for key in await self.list(merchant_id, env)):
                    raise Conflict("this API key was revoked before")
                raise NotFound("there is no such API key")
            await self._audit.record(
                "api_key.revoked", merchant_id=merchant_id, actor=actor, subject_id=key_id, env=revoked[0]["env"]
            )
        self._changes.notify("api_key", key_id)
        return _key(revoked[0])

    def _digest(self, text: str) -> bytes:
        return hmac.new(self._vault.secret(API_KEY_PEPPER), text.encode(), hashlib.sha256).digest()


_SHOWN = (
    ApiKeyRow.key_id,
    ApiKeyRow.merchant_id,
    ApiKeyRow.name,
    ApiKeyRow.env,
    ApiKeyRow.scopes,
    ApiKeyRow.created_at,
    ApiKeyRow.created_by,
    ApiKeyRow.expires_at,
    ApiKeyRow.revoked_at,
    ApiKeyRow.last_used_at,
)


def _of(merchant_id: str, env: Env | None) -> tuple[Where, ...]:
    mine = ApiKeyRow.merchant_id == merchant_id
    return (mine,) if env is None else (mine, ApiKeyRow.env == env)


def _key(row: dict[str, Any]) -> ApiKey:
    return msgspec.convert(row, ApiKey)
