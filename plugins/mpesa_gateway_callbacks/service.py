"""Takes callbacks: checks who sends them and what they say, keeps each once, and tells who is waiting for it."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from mpesa_gateway.config import ConfigRefused
from mpesa_gateway.daraja.certificates import Certificate, CertificateRefused, certificate_for
from mpesa_gateway.daraja.wire import NotACallback
from mpesa_gateway.db.engine import Row
from mpesa_gateway.http.client_ip import read_address, read_networks, within
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import decode_position, page_of
from mpesa_gateway.logs import trace
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.security.signatures import (
    CallbackSecrets,
    is_signed_with_certificate,
    is_signed_with_passkey,
    read_signature,
)
from mpesa_gateway.security.vault import CALLBACK_TOKENS
from mpesa_gateway.services import NotProvided
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.api import AnotherSubject, Kind
from mpesa_gateway_callbacks.dedup import Dedup
from mpesa_gateway_callbacks.errors import (
    CallbackRefused,
    ShapeRefused,
    SignatureRefused,
    SourceRefused,
    TokenRefused,
)
from mpesa_gateway_callbacks.kinds import Report, read_report
from mpesa_gateway_callbacks.schemas import (
    CallbackQuery,
    CallbackView,
    RefusedQuery,
    RefusedView,
    callback_view,
    refused_view,
)
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.tokens import Subject, make_token, read_token

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

PAUSES = (5, 15, 60, 300, 900, 3600)
"""Seconds until a callback that nobody could use is offered again; the last one repeats until the patience ends."""

LEASE = timedelta(seconds=60)
"""For how long one sweeper has a waiting callback to itself."""

_SHOWN = 2048
"""Characters of a refused callback that are kept."""

_REFUSALS_A_SECOND = 20
"""How many refused callbacks one process writes down in a second; a flood is only counted."""


@dataclass(frozen=True)
class Incoming:
    """A POST as it came: ``source`` is the client's address, ``signature`` the header, None without one."""

    kind: Kind
    token: str | None
    body: bytes
    source: str
    signature: str | None = None


class CallbackInbox:
    """Everything between Safaricom's POST and the plugin that asked for the callback."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._settings = gateway.settings(CallbacksSettings)
        self._allowlist = read_networks(self._settings.allowlist, "callbacks.allowlist")
        self._dedup = Dedup(gateway, timedelta(hours=self._settings.dedup_hours))
        self._refusals = (0, 0)
        self._certificate: Certificate | None = None

    async def start(self) -> None:
        """Read the live certificate. Raises ConfigRefused when signatures are required and it cannot be used."""
        try:
            self._certificate = certificate_for(self._gateway.config.daraja, "live")
            self._certificate.check_time(self._gateway.clock.now())
        except CertificateRefused as problem:
            if self._settings.signature == "required" and await self._gateway.merchants.any_live():
                raise ConfigRefused(f"callbacks.signature is `required`, and {problem}") from None
            log.info("live_certificate_unavailable", problem=str(problem))

    async def stop(self) -> None:
        """Nothing is held open."""

    def url_for(self, kind: Kind, *, env: Env, merchant_id: str, subject_id: str) -> str:
        """The address to give Daraja for one request; free of the words that Daraja's portal warns of."""
        token = make_token(self._gateway.vault.secret(CALLBACK_TOKENS), kind, Subject(env, merchant_id, subject_id))
        return self._gateway.url(f"/v1/cb/{kind}/{token}")

    async def receive(self, incoming: Incoming) -> None:
        """Check a callback and keep it; returns only once it is committed.

        Raises CallbackRefused (kept, for the operator to see why), and what the database raises when it is away.
        """
        subject: Subject | None = None
        try:
            subject = self._read_token(incoming)
            self._check_source(incoming, subject)
            is_signed = await self._check_signature(incoming, subject)
            report = _read(incoming)
            await self._keep(incoming, subject, report, is_signed=is_signed)
        except CallbackRefused as refusal:
            await self._keep_refused(incoming, subject, refusal)
            raise

    async def _keep(self, incoming: Incoming, subject: Subject | None, report: Report, *, is_signed: bool) -> None:
        kind = incoming.kind
        subject_id = subject.subject_id if subject else ""
        fingerprint = _fingerprint(kind, subject_id, report)
        if await self._dedup.has_seen(fingerprint) and await self._db.fetchval(tables.REPEATED, fingerprint):
            await self._audit_repeat(incoming, subject, report)
            return
        now = self._gateway.clock.now()
        async with self._db.transaction():
            row = await self._db.fetchrow(
                tables.KEEP,
                self._gateway.ids.new("cbk"),
                kind,
                fingerprint,
                now,
                incoming.source,
                subject.env if subject else None,
                subject_id,
                report.handle,
                report.result_code,
                incoming.body.decode("utf-8", "replace").replace("\x00", ""),
                now + timedelta(seconds=PAUSES[0]),
                subject.merchant_id if subject else "",
                "verified" if is_signed else "none",
            )
            if row is not None and row["is_new"]:
                await self._offer(report, row)
        await self._dedup.remember(fingerprint)
        if row is not None and not row["is_new"]:
            await self._audit_repeat(incoming, subject, report)
        log.info("callback_accepted", kind=kind, handle=report.handle, result_code=report.result_code)

    async def mark_applied(self, callback_id: str) -> None:
        """A subscriber has used this callback."""
        await self._db.execute(tables.APPLIED, callback_id, self._gateway.clock.now())

    async def apply_waiting(self, handle: str) -> int:
        """Offer what waits under a handle of Daraja's that has just become known."""
        if not handle:
            return 0
        rows = await self._db.fetch(tables.WAITING_FOR, handle)
        for row in rows:
            await self._offer_again(row)
        return len(rows)

    async def sweep(self) -> int:
        """Offer again what nobody could use yet, and forget old refusals; gives how many were offered."""
        now = self._gateway.clock.now()
        rows = await self._db.fetch(tables.CLAIM_DUE, now, now + LEASE, 200)
        for row in rows:
            async with self._db.transaction():
                await self._offer_again(row)
                if now - row["received_at"] > timedelta(hours=self._settings.patience_hours):
                    await self._db.execute(tables.GIVE_UP, row["callback_id"])
                else:
                    pause = PAUSES[min(int(row["tries"]), len(PAUSES) - 1)]
                    await self._db.execute(tables.PUT_OFF, row["callback_id"], now + timedelta(seconds=pause))
        await self._db.execute(tables.FORGET_REFUSED, self._settings.keep_refused)
        return len(rows)

    # -- who sends ------------------------------------------------------------------------------------------------

    def _read_token(self, incoming: Incoming) -> Subject | None:
        """What the token was made for, None without one. Raises TokenRefused, and SourceRefused before it.

        Where every address is checked, that comes first: a stranger learns nothing about tokens.
        """
        if self._settings.enforce_allowlist == "always":
            self._check_listed(incoming.source)
        if incoming.token is None:
            return None
        subject = read_token(self._gateway.vault.secret(CALLBACK_TOKENS), incoming.kind, incoming.token)
        if subject is None:
            raise TokenRefused("there is nothing at this address")
        return subject

    def _check_source(self, incoming: Incoming, subject: Subject | None) -> None:
        mode = self._settings.enforce_allowlist
        # Without a token the address is all the proof there is.
        if mode != "never" and (subject is None or subject.env == "live"):
            self._check_listed(incoming.source)

    def _check_listed(self, source: str) -> None:
        address = read_address(source)
        if address is None or not within(address, self._allowlist):
            raise SourceRefused("this address is not on the allowlist of Safaricom's addresses")

    async def _check_signature(self, incoming: Incoming, subject: Subject | None) -> bool:
        """Whether the callback is signed, and rightly. Raises SignatureRefused for any other signature."""
        if self._settings.signature == "off":
            return False
        if incoming.signature is None:
            if self._settings.signature == "required":
                raise SignatureRefused(f"the header {self._settings.signature_header} is required")
            return False
        signature = read_signature(incoming.signature)
        if signature is None or not await self._is_signed(incoming.body, signature, subject):
            raise SignatureRefused("the signature does not fit the body")
        return True

    async def _is_signed(self, body: bytes, signature: bytes, subject: Subject | None) -> bool:
        if subject is not None and subject.env == "sandbox":
            try:
                passkey = await self._gateway.services.get(CallbackSecrets).passkey_of(subject.merchant_id)
            except NotProvided:
                passkey = None
            return passkey is not None and is_signed_with_passkey(passkey, body, signature)
        # Without a token nobody knows whose passkey it would be: only Safaricom's own key is left.
        return self._certificate is not None and is_signed_with_certificate(self._certificate, body, signature)

    # -- who waits ------------------------------------------------------------------------------------------------

    async def _offer_again(self, row: Row) -> None:
        try:
            await self._offer(read_report(row["kind"], row["body"].encode()), row)
        except AnotherSubject:
            await self._db.execute(tables.GIVE_UP, row["callback_id"])
        except NotACallback as problem:
            # Taken by an earlier release, perhaps: it must not keep the others waiting.
            log.error("callback_not_read", callback_id=row["callback_id"], exception=trace(problem))

    async def _offer(self, report: Report, row: Row) -> None:
        """Publish inside the open transaction. A subscriber that fails is tried again later; the callback stays.

        Raises AnotherSubject when the subscriber finds that the content is not about what the token was made for.
        """
        if report.event is None:
            await self.mark_applied(row["callback_id"])
            return
        event = report.event(
            {
                "merchant_id": row["merchant_id"],
                "subject_id": row["subject_id"],
                "callback_id": row["callback_id"],
                "env": row["env"],
                "received_at": row["received_at"],
            }
        )
        try:
            async with self._db.savepoint():
                await self._gateway.outbox.publish(event)
        except AnotherSubject:
            raise
        except Exception as problem:  # noqa: BLE001 - whatever a subscriber raises: it is tried again
            log.error("callback_not_applied", callback_id=row["callback_id"], exception=trace(problem))

    # -- what is refused ------------------------------------------------------------------------------------------

    async def _keep_refused(self, incoming: Incoming, subject: Subject | None, refusal: CallbackRefused) -> None:
        now = self._gateway.clock.now()
        second, count = self._refusals
        self._refusals = (int(now.timestamp()), count + 1 if second == int(now.timestamp()) else 1)
        log.warning("callback_refused", kind=incoming.kind, source=incoming.source, reason=refusal.reason)
        if self._refusals[1] > _REFUSALS_A_SECOND:
            return
        refused_id = self._gateway.ids.new("ref")
        await self._db.execute(
            tables.REFUSE,
            refused_id,
            incoming.kind,
            now,
            incoming.source,
            refusal.reason,
            _shown(incoming.body),
            subject.merchant_id if subject else None,
            subject.subject_id if subject else None,
        )
        await self._gateway.audit.observe(
            "callback.refused",
            merchant_id=subject.merchant_id if subject else None,
            actor="callback",
            subject_id=subject.subject_id if subject else refused_id,
            detail={"kind": incoming.kind, "reason": refusal.reason, "refused_id": refused_id},
        )

    async def _audit_repeat(self, incoming: Incoming, subject: Subject | None, report: Report) -> None:
        log.info("callback_repeated", kind=incoming.kind, handle=report.handle)
        await self._gateway.audit.observe(
            "callback.repeated",
            merchant_id=subject.merchant_id if subject else None,
            actor="callback",
            subject_id=subject.subject_id if subject else None,
            detail={"kind": incoming.kind, "handle": report.handle},
        )

    # -- what operators see ---------------------------------------------------------------------------------------

    async def refused(self, filters: RefusedQuery) -> Page[RefusedView]:
        """Refused callbacks, newest first. Raises Invalid for a bad cursor."""
        at, refused_id = decode_position(filters.cursor) if filters.cursor else (None, "")
        rows = await self._db.fetch(tables.REFUSED, filters.limit + 1, at, refused_id)
        return page_of(rows, filters.limit, view=refused_view, position=lambda row: (row["at"], row["refused_id"]))

    async def accepted(self, filters: CallbackQuery) -> Page[CallbackView]:
        """Accepted callbacks, newest first. Raises Invalid for a bad cursor."""
        at, callback_id = decode_position(filters.cursor) if filters.cursor else (None, "")
        rows = await self._db.fetch(tables.ACCEPTED, filters.limit + 1, at, callback_id, filters.verdict)
        return page_of(
            rows, filters.limit, view=callback_view, position=lambda row: (row["received_at"], row["callback_id"])
        )


def _read(incoming: Incoming) -> Report:
    try:
        return read_report(incoming.kind, incoming.body)
    except NotACallback as problem:
        raise ShapeRefused(f"not a callback of this kind: {problem}") from None


def _shown(body: bytes) -> str:
    return mask_phones(body[: _SHOWN * 4].decode("utf-8", "replace").replace("\x00", ""))[:_SHOWN]


def _fingerprint(kind: str, subject_id: str, report: Report) -> bytes:
    """What makes two callbacks the same: about the same request, and saying the same.

    A callback about the same request that says something else is another one: late proof of money counts. So is one
    at the address of its request after one without: the first may wait for what the second knows.
    """
    parts = (kind, report.handle, subject_id, *report.content)
    return hashlib.sha256("\x1f".join(parts).encode()).digest()
