"""Takes callbacks: checks who sends them and what they say, keeps each once, and tells who is waiting for it."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
import structlog

from mpesa_gateway.config import ConfigRefused
from mpesa_gateway.daraja.certificates import Certificate, CertificateRefused, certificate_for
from mpesa_gateway.daraja.wire import Contradictory, NotACallback, decoded, stored
from mpesa_gateway.db.engine import OVERBURDENED, UNREACHABLE, Row, reserve
from mpesa_gateway.db.writes import ChangedMeanwhile, Write
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.http.client_ip import neighbourhood, read_address, read_networks, within
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import decode_position, page_of
from mpesa_gateway.logs import trace
from mpesa_gateway.origin import Origin, coming_from, current_origin, origins
from mpesa_gateway.pages import Moment
from mpesa_gateway.sampling import Sampler
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.security.signatures import (
    CallbackSecrets,
    is_signed_with_certificate,
    is_signed_with_passkey,
    read_signature,
)
from mpesa_gateway.security.vault import CALLBACK_TOKENS
from mpesa_gateway.services import NotProvided
from mpesa_gateway.together import Together
from mpesa_gateway.tracing import POSTGRES
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.api import AnotherSubject
from mpesa_gateway_callbacks.dedup import Dedup
from mpesa_gateway_callbacks.errors import (
    CallbackRefused,
    DoubledRefused,
    ShapeRefused,
    SignatureRefused,
    SizeRefused,
    SourceRefused,
    TokenRefused,
)
from mpesa_gateway_callbacks.kinds import Kinds, Make, Report
from mpesa_gateway_callbacks.measures import CALLBACKS, combinations
from mpesa_gateway_callbacks.schemas import (
    CallbackQuery,
    CallbackView,
    RefusedQuery,
    RefusedView,
    callback_view,
    laid_out,
    refused_view,
    visible,
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

_LOOK_AGAIN = timedelta(minutes=1)
"""How often a certificate that cannot be used is read again."""

_SHOWN = 2048
"""Characters of a refused callback that are shown."""

_REPLAYABLE = 16_384
"""Bytes of a stranger's callback beyond which it is not kept to be replayed."""

_LOGGED_EVERY = 60.0
"""Seconds in which one refused callback is logged for each address and reason; the next line counts the others."""

_REFUSALS_A_SECOND = 20
"""How many strangers' callbacks one process writes down in a second; a flood is only counted."""


@dataclass(frozen=True)
class Incoming:
    """A POST as it came: ``source`` is the client's address, ``signature`` the header, None without one."""

    kind: str
    token: str | None
    body: bytes
    source: str
    signature: str | None = None
    cut: "Cut | None" = None
    was_forwarded: bool = False
    """Whether ``source`` said for whom it asks, as a proxy does."""


@dataclass(frozen=True)
class Cut:
    """A body that was larger than is taken, of which ``Incoming.body`` is the beginning.

    ``length`` is what was announced or read, in bytes; ``sha256`` is of the first ``read`` bytes.
    """

    length: int
    read: int
    sha256: bytes

    @classmethod
    def of(cls, read: bytes, length: int) -> "Cut":
        """What is known of a body of this length after so much of it was read."""
        return cls(length, len(read), hashlib.sha256(read).digest())


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay came to: ``callback_id`` is the accepted callback; with ``was_done`` it had been used before."""

    id: str
    callback_id: str
    verdict: str
    was_done: bool


KEPT_OF_LARGER = 65_536
"""Bytes that are kept of a body that is larger than is taken."""

_IN_LINE = 65_536
"""Bytes of a body up to which it is read on the event loop; a larger one would hold up the others."""

Verdict = Literal["waiting", "applied", "aside"]


@dataclass(frozen=True)
class _Arrival:
    """A callback that has passed every check, on its way into the inbox. ``subject`` is what its token was made for."""

    callback_id: str
    incoming: Incoming
    subject: Subject | None
    report: Report
    fingerprint: bytes
    is_signed: bool
    is_listed: bool
    origin: Origin | None
    """The request that brought it."""
    text: str
    """The body as it is shown and searched."""
    raw: bytes | None
    """The body's bytes where its text does not give them back."""

    def known(self, now: datetime) -> dict[str, Any]:
        """What the inbox knows about it, for its event."""
        return {
            "merchant_id": self.subject.merchant_id if self.subject else "",
            "subject_id": self.subject.subject_id if self.subject else "",
            "callback_id": self.callback_id,
            "env": self.subject.env if self.subject else None,
            "received_at": now,
            "is_listed": self.is_listed,
        }


_ODD: tuple[type[BaseException], ...] = (AnotherSubject, asyncpg.UniqueViolationError, *OVERBURDENED)
"""Why several callbacks are not kept in one go, with nothing wrong on our side."""


class CallbackInbox:
    """Everything between Safaricom's POST and the plugin that asked for the callback."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._reads = gateway.reads
        self._settings = gateway.settings(CallbacksSettings)
        self.kinds = Kinds(gateway.callback_kinds)
        gateway.meter.expect(CALLBACKS, combinations(self.kinds.names))
        self._allowlist = read_networks(self._settings.allowlist, "callbacks.allowlist")
        self._dedup = Dedup(gateway, timedelta(hours=self._settings.dedup_hours))
        self._kept: Together[_Arrival, bool | None] = Together(
            self._keep_together, told=partial(gateway.tracer.step, "postgres keep callback", POSTGRES, "client")
        )
        self._unkept: ContextVar[dict[str, Verdict] | None] = ContextVar("unkept_callbacks", default=None)
        """Callbacks that are written at the end of the open transaction, each with its verdict so far."""
        self._uncounted: Counter[bytes] = Counter()
        self._counting: asyncio.Task[None] | None = None
        self._refusals = (0, 0)
        self._logged = Sampler(_LOGGED_EVERY)
        self._certificate: Certificate | None = None
        self._certificate_read_at: datetime | None = None

    async def start(self) -> None:
        """Read the live certificate. Raises ConfigRefused when signatures are required and it cannot be used."""
        try:
            self._read_certificate()
        except CertificateRefused as problem:
            if self._settings.signature == "required" and await self._gateway.merchants.any_live():
                raise ConfigRefused(f"callbacks.signature is `required`, and {problem}") from None
            log.info("live_certificate_unavailable", problem=str(problem))

    async def stop(self) -> None:
        """Finish what no caller waits for."""
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)
        await self._dedup.settle()

    def url_for(self, kind: str, *, env: Env, merchant_id: str, subject_id: str) -> str:
        """The address to give Daraja for one request; free of the words that Daraja's portal warns of.

        Raises LookupError where no enabled plugin declares the kind.
        """
        if self.kinds.get(kind) is None:
            raise LookupError(f"no enabled plugin declares the callback kind `{kind}`")
        token = make_token(self._gateway.vault.secret(CALLBACK_TOKENS), kind, Subject(env, merchant_id, subject_id))
        return self._gateway.url(f"/v1/cb/{kind}/{token}")

    def is_known(self, path: str, source: str) -> bool:
        """Whether a callback to this path comes from a listed address, or to an address that we handed out. No I/O."""
        if self._is_listed(source):
            return True
        key = self._gateway.vault.secret(CALLBACK_TOKENS)
        token = path.rpartition("/")[2]
        return any(read_token(key, kind, token) is not None for kind in self.kinds.names)

    async def receive(self, incoming: Incoming) -> Mapping[str, Any] | None:
        """Check a callback and keep it; returns only once it is committed: what to answer, None for ``Accepted``.

        Raises CallbackRefused (kept, for the operator to see why), and what the database raises when it is away.
        """
        subject: Subject | None = None
        try:
            if incoming.cut is not None:
                raise SizeRefused("the body is too large to be a callback: its beginning is kept for the operator")
            subject, kind = self._read_token(incoming)
            incoming = replace(incoming, kind=kind)
            if subject is not None:
                self._gateway.tracer.concerns(subject.subject_id)
            self._check_source(incoming, subject)
            is_signed = await self._check_signature(incoming, subject)
            arrival = await self._arrival(incoming, subject, is_signed=is_signed)
            report = arrival.report
            # One that may be of two kinds is offered by itself.
            is_new = None if report.otherwise else await self._kept.ask(arrival)
            if is_new is None:
                is_new = await self._keep(arrival)
        except CallbackRefused as refusal:
            self._gateway.meter.count(CALLBACKS, incoming.kind, "refused", refusal.reason)
            await self._keep_refused(incoming, subject, refusal)
            raise
        self._gateway.meter.count(CALLBACKS, incoming.kind, "accepted" if is_new else "repeated", "")
        if not is_new:
            await self._audit_repeat(incoming, subject, report)
        log.info("callback_accepted", kind=incoming.kind, handle=report.handle, result_code=report.result_code)
        taken = self.kinds.get(incoming.kind)
        if taken is None or taken.answer is None or report.event is None:
            return None
        return await taken.answer(self._gateway, report.event(arrival.known(self._gateway.clock.now())))

    def is_trusted(self, kind: str, token: str | None, source: str) -> bool:
        """Whether a body is kept whatever it is: it is for an address that we handed out, or from Safaricom's."""
        return self._opened(kind, token) is not None or self._is_listed(source)

    async def _arrival(self, incoming: Incoming, subject: Subject | None, *, is_signed: bool) -> "_Arrival":
        read = partial(self._read, incoming, has_token=subject is not None)
        if len(incoming.body) <= _IN_LINE:
            report, (text, raw) = read(), stored(incoming.body)
        else:
            report, (text, raw) = await asyncio.to_thread(lambda: (read(), stored(incoming.body)))
        fingerprint = _fingerprint(incoming.kind, subject.subject_id if subject else "", report)
        origin = current_origin(self._gateway.tracer)
        return _Arrival(
            self._gateway.ids.new("cbk"),
            incoming,
            subject,
            report,
            fingerprint,
            is_signed,
            self._is_listed(incoming.source),
            origin,
            text,
            raw,
        )

    def _read(self, incoming: Incoming, *, has_token: bool) -> Report:
        try:
            return self.kinds.read(incoming.kind, incoming.body, has_token=has_token)
        except Contradictory as problem:
            raise DoubledRefused(f"not one statement: {problem}") from None
        except NotACallback as problem:
            raise ShapeRefused(f"not a callback of this kind: {problem}") from None
        except Exception as problem:  # noqa: BLE001 - whatever is wrong with our reading, the body is kept
            log.error("callback_not_read", kind=incoming.kind, exception=trace(problem))
            raise ShapeRefused("not a callback that can be read") from None

    async def _keep_together(self, arrivals: Sequence["_Arrival"]) -> list[bool | None]:
        """Keep what came at the same time in one transaction. For each: True, False for a repetition, None for not yet.

        Whatever is odd about one, or has to wait for somebody, is left to whoever brought it, so that it holds up none
        of the others.
        """
        seen = await self._dedup.seen_among([arrival.fingerprint for arrival in arrivals])
        again = Counter(arrival.fingerprint for arrival in arrivals if arrival.fingerprint in seen)
        # Of two that are the same, one is new and the other a repetition: that is for Postgres to say.
        fresh = {arrival.fingerprint: arrival for arrival in arrivals if arrival.fingerprint not in seen}
        # What is done together is done outside its callers' contexts, and with that outside their right to the reserve.
        with reserve(), self._for_those_who_brought(arrivals):
            kept = await self._keep_at_once(list(fresh.values()))
            repeated = await self._repeats_among(again) if again else set[bytes]()
        self._dedup.remember([arrival.fingerprint for arrival in fresh.values() if arrival.callback_id in kept])
        return [
            True if arrival.callback_id in kept else False if arrival.fingerprint in repeated else None
            for arrival in arrivals
        ]

    def _for_those_who_brought(self, arrivals: Sequence["_Arrival"]) -> AbstractContextManager[None]:
        """A block whose jobs are those of the requests that brought these callbacks, each of its own."""
        if len(arrivals) == 1:
            return coming_from(arrivals[0].origin, self._gateway.tracer)
        brought = {one.subject.subject_id: one.origin for one in arrivals if one.subject and one.origin}
        return origins(brought)

    async def _keep_at_once(self, arrivals: Sequence["_Arrival"]) -> set[str]:
        """Publish, and write the inbox last, each with its verdict: two trips to Postgres however many they are.

        Gives those that were kept: all but those put aside, and none when one of them has been here before.
        """
        if not arrivals:
            return set()
        now = self._gateway.clock.now()
        events = [arrival.report.event(arrival.known(now)) for arrival in arrivals if arrival.report.event is not None]
        if any(map(self._gateway.outbox.is_owed, events)):
            # One that is put aside is published again, and whoever hears of it after commit would hear of it twice.
            return set()
        verdicts: dict[str, Verdict] = {
            arrival.callback_id: "waiting" if arrival.report.event else "applied" for arrival in arrivals
        }
        token = self._unkept.set(verdicts)
        try:
            async with self._db.transaction():
                await self._gateway.outbox.publish_many(events)
                kept = [arrival for arrival in arrivals if verdicts[arrival.callback_id] != "aside"]
                if kept:
                    await self._write(kept, verdicts, now)
        except _ODD:
            return set()
        except UNREACHABLE:
            raise
        except Exception as problem:  # noqa: BLE001 - each is offered by itself then: only what nobody can take has to wait
            log.error("callbacks_one_by_one", count=len(arrivals), exception=trace(problem))
            return set()
        finally:
            self._unkept.reset(token)
        return {arrival.callback_id for arrival in kept}

    async def _write(self, arrivals: Sequence["_Arrival"], verdicts: Mapping[str, Verdict], now: datetime) -> None:
        """Write callbacks with their verdicts, each or none: ChangedMeanwhile when one of them has been here before."""
        args = (
            [arrival.callback_id for arrival in arrivals],
            [arrival.incoming.kind for arrival in arrivals],
            [arrival.fingerprint for arrival in arrivals],
            [arrival.incoming.source for arrival in arrivals],
            [arrival.subject.env if arrival.subject else None for arrival in arrivals],
            [arrival.subject.subject_id if arrival.subject else "" for arrival in arrivals],
            [arrival.report.handle for arrival in arrivals],
            [arrival.report.result_code for arrival in arrivals],
            [arrival.text for arrival in arrivals],
            [arrival.subject.merchant_id if arrival.subject else "" for arrival in arrivals],
            ["verified" if arrival.is_signed else "none" for arrival in arrivals],
            now,
            now + timedelta(seconds=PAUSES[0]),
            [verdicts[arrival.callback_id] == "applied" for arrival in arrivals],
            [arrival.raw for arrival in arrivals],
        )
        await self._db.put_off(Write(tables.KEEP_MANY, args, expects=len(arrivals)))

    async def _repeats_among(self, times: Counter[bytes]) -> set[bytes]:
        """Like ``_count_repeats``. Where that fails, none: each is looked at by itself, and the fresh ones are kept."""
        try:
            return await self._count_repeats(times)
        except Exception as problem:  # noqa: BLE001 - raised again for each repetition alone
            log.warning("repetitions_one_by_one", count=times.total(), exception=trace(problem))
            return set()

    async def _count_repeats(self, times: Counter[bytes]) -> set[bytes]:
        """Count repetitions of callbacks that were kept before; returns those that were. Waits for no lock."""
        fingerprints = sorted(times)
        rows = await self._db.fetch(tables.REPEATED, fingerprints, [times[one] for one in fingerprints])
        for row in rows:
            if not row["is_counted"]:
                self._count_later(bytes(row["fingerprint"]), times[row["fingerprint"]])
        return {bytes(row["fingerprint"]) for row in rows}

    def _count_later(self, fingerprint: bytes, times: int) -> None:
        """Count repetitions of a callback whose row is locked, one after the other, with one connection."""
        self._uncounted[fingerprint] += times
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._count_uncounted(), context=Context())

    async def _count_uncounted(self) -> None:
        while self._uncounted:
            fingerprint, times = self._uncounted.popitem()
            try:
                await self._db.execute(tables.COUNT_REPEATED, [fingerprint], [times])
            except Exception as problem:  # noqa: BLE001 - a count for operators: the callback itself is kept
                log.warning("repetition_not_counted", times=times, exception=trace(problem))

    async def _keep(self, arrival: "_Arrival", *, counts: bool = True) -> bool:
        """Keep one callback whatever is odd about it; False for one that we have had, which ``counts`` as come again.

        As where several are kept, what it is about is locked before the callback is written: of two that are the same
        one then waits for the other, and they do not wait for each other.
        """
        is_new = not await self._is_repeated(arrival.fingerprint, counts=counts)
        if is_new:
            try:
                await self._keep_new(arrival)
            except ChangedMeanwhile:
                # The same has been kept in this moment, and nothing else may have come in between.
                if not await self._is_repeated(arrival.fingerprint, counts=counts):
                    raise
                is_new = False
        self._dedup.remember([arrival.fingerprint])
        return is_new

    async def _is_repeated(self, fingerprint: bytes, *, counts: bool) -> bool:
        """Whether the same callback was kept before."""
        if counts:
            return bool(await self._count_repeats(Counter([fingerprint])))
        return await self._db.fetchrow(tables.FIND_BY_FINGERPRINT, fingerprint) is not None

    async def _keep_new(self, arrival: "_Arrival") -> None:
        now = self._gateway.clock.now()
        verdicts: dict[str, Verdict] = {arrival.callback_id: "waiting"}
        token = self._unkept.set(verdicts)
        try:
            async with self._db.transaction():
                await self._offer(arrival.report, arrival.known(now))
                await self._write([arrival], verdicts, now)
        finally:
            self._unkept.reset(token)

    async def mark_applied(self, callback_id: str) -> None:
        """A subscriber has used this callback."""
        unkept = self._unkept.get()
        if unkept is not None and callback_id in unkept:
            unkept[callback_id] = "applied"
            return
        await self._db.execute(tables.APPLIED, callback_id, self._gateway.clock.now())

    def put_aside(self, callback_id: str) -> None:
        """See the port. Raises KeyError where it is offered by itself already."""
        unkept = self._unkept.get()
        if unkept is None or callback_id not in unkept:
            raise KeyError(f"{callback_id} is not taken together with others")
        unkept[callback_id] = "aside"

    async def waiting_among(self, handles: Sequence[str]) -> set[str]:
        """See the port."""
        return {row["handle"] for row in await self._db.fetch(tables.WAITING_AMONG, handles)}

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

    def _read_token(self, incoming: Incoming) -> tuple[Subject | None, str]:
        """What the token was made for, None without one, and the kind of the callback.

        Raises TokenRefused, and SourceRefused before it: where every address is checked, a stranger learns nothing
        about tokens.
        """
        if self._settings.enforce_allowlist == "always":
            self._check_listed(incoming.source)
        if incoming.token is None:
            return None, self.kinds.of_body(incoming.kind, incoming.body)
        found = self._opened(incoming.kind, incoming.token)
        if found is None:
            raise TokenRefused("there is nothing at this address")
        return found

    def _opened(self, address: str, token: str | None) -> tuple[Subject, str] | None:
        """What a token was made for; it opens at every address of its family."""
        if token is None:
            return None
        key = self._gateway.vault.secret(CALLBACK_TOKENS)
        for kind in self.kinds.family(address):
            subject = read_token(key, kind, token)
            if subject is not None:
                return subject, self.kinds.merged(address, kind)
        return None

    def _check_source(self, incoming: Incoming, subject: Subject | None) -> None:
        mode = self._settings.enforce_allowlist
        # Without a token the address is all the proof there is, unless Daraja can be asked.
        is_checked = mode != "never" and (subject is None or subject.env == "live")
        kind = self.kinds.get(incoming.kind)
        if is_checked or (subject is None and not (kind is not None and kind.can_be_asked)):
            self._check_listed(incoming.source)

    def _check_listed(self, source: str) -> None:
        if not self._is_listed(source):
            raise SourceRefused("this address is not on the allowlist of Safaricom's addresses")

    def _is_listed(self, source: str) -> bool:
        address = read_address(source)
        return address is not None and within(address, self._allowlist)

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

    def _read_certificate(self) -> None:
        """Raises CertificateRefused for one that cannot be used, today."""
        self._certificate, self._certificate_read_at = None, self._gateway.clock.now()
        certificate = certificate_for(self._gateway.config.daraja, "live")
        certificate.check_time(self._certificate_read_at)
        self._certificate = certificate

    def _live_certificate(self) -> Certificate | None:
        """The certificate, while it is valid; once it is not, its successor is looked for now and then."""
        now = self._gateway.clock.now()
        if self._certificate is not None and self._certificate.not_before <= now < self._certificate.not_after:
            return self._certificate
        if self._certificate_read_at is None or now - self._certificate_read_at >= _LOOK_AGAIN:
            try:
                self._read_certificate()
            except CertificateRefused as problem:
                log.warning("live_certificate_unavailable", problem=str(problem))
        else:
            self._certificate = None
        return self._certificate

    async def _is_signed(self, body: bytes, signature: bytes, subject: Subject | None) -> bool:
        if subject is not None and subject.env == "sandbox":
            try:
                secrets = self._gateway.services.get(CallbackSecrets)
                passkeys = await secrets.passkeys_of(subject.merchant_id, subject.env)
            except NotProvided:
                passkeys = ()
            return any(is_signed_with_passkey(passkey, body, signature) for passkey in passkeys)
        # Without a token nobody knows whose passkey it would be: only Safaricom's own key is left.
        certificate = self._live_certificate()
        return certificate is not None and is_signed_with_certificate(certificate, body, signature)

    # -- who waits ------------------------------------------------------------------------------------------------

    async def _offer_again(self, row: Row) -> None:
        try:
            body = row["body"].encode() if row["body_bytes"] is None else bytes(row["body_bytes"])
            report = self.kinds.read(row["kind"], body, has_token=bool(row["subject_id"]))
            await self._offer(report, dict(row) | {"is_listed": self._is_listed(row["source"])})
        except AnotherSubject:
            await self._db.execute(tables.GIVE_UP, row["callback_id"])
        except NotACallback as problem:
            # Taken by an earlier release, perhaps: it must not keep the others waiting.
            log.error("callback_not_read", callback_id=row["callback_id"], exception=trace(problem))

    async def _offer(self, report: Report, row: Mapping[str, Any]) -> None:
        """Publish inside the open transaction. A subscriber that fails is tried again later; the callback stays.

        Raises AnotherSubject when the subscriber finds that the content is not about what the token was made for.
        """
        if report.event is None:
            await self.mark_applied(row["callback_id"])
            return
        await self._publish(report.event, row)
        for make in report.otherwise:
            if await self._is_applied(row["callback_id"]):
                break
            await self._publish(make, row)

    async def _is_applied(self, callback_id: str) -> bool:
        unkept = self._unkept.get()
        if unkept is not None and callback_id in unkept:
            return unkept[callback_id] == "applied"
        return bool(await self._db.fetchval(tables.IS_APPLIED, callback_id))

    async def _publish(self, make: Make, row: Row | Mapping[str, Any]) -> None:
        event = make(
            {
                "merchant_id": row["merchant_id"],
                "subject_id": row["subject_id"],
                "callback_id": row["callback_id"],
                "env": row["env"],
                "received_at": row["received_at"],
                "is_listed": row["is_listed"],
            }
        )
        try:
            async with self._db.savepoint():
                await self._gateway.outbox.publish(event)
        except AnotherSubject:
            raise
        except Exception as problem:  # noqa: BLE001 - whatever a subscriber raises: it is tried again
            unkept = self._unkept.get()
            if unkept is not None and row["callback_id"] in unkept:
                unkept[row["callback_id"]] = "waiting"
            log.error("callback_not_applied", callback_id=row["callback_id"], exception=trace(problem))

    # -- what is refused ------------------------------------------------------------------------------------------

    def _log_refused(self, incoming: Incoming, refusal: CallbackRefused) -> None:
        left_out = self._logged.admit((neighbourhood(incoming.source), refusal.reason))
        if left_out is not None:
            more = {"left_out": left_out} if left_out else {}
            log.warning("callback_refused", kind=incoming.kind, source=incoming.source, reason=refusal.reason, **more)

    async def _keep_refused(self, incoming: Incoming, subject: Subject | None, refusal: CallbackRefused) -> None:
        """Keep what was refused: whole from a listed address or at a valid token, and bounded from strangers."""
        now = self._gateway.clock.now()
        self._log_refused(incoming, refusal)
        if subject is None and (found := self._opened(incoming.kind, incoming.token)) is not None:
            # Refused before its token was read: we may know what it is about, whoever sent it does not.
            subject, kind = found
            incoming = replace(incoming, kind=kind)
        is_trusted = subject is not None or self._is_listed(incoming.source)
        if not is_trusted:
            second, count = self._refusals
            self._refusals = (int(now.timestamp()), count + 1 if second == int(now.timestamp()) else 1)
            if self._refusals[1] > _REFUSALS_A_SECOND:
                return
        is_kept, cut = is_trusted or (incoming.cut is None and len(incoming.body) <= _REPLAYABLE), incoming.cut
        text, raw = (
            await asyncio.to_thread(stored, incoming.body) if len(incoming.body) > _IN_LINE else stored(incoming.body)
        )
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
            subject.env if subject else None,
            text if is_kept else None,
            incoming.signature,
            raw if is_kept else None,
            is_trusted,
            cut and cut.length,
            cut and cut.read,
            cut and cut.sha256,
            incoming.was_forwarded,
        )
        await self._gateway.audit.observe(
            "callback.refused",
            merchant_id=subject.merchant_id if subject else None,
            actor="callback",
            subject_id=subject.subject_id if subject else refused_id,
            env=subject.env if subject else None,
            detail={"kind": incoming.kind, "reason": refusal.reason, "refused_id": refused_id}
            | ({} if cut is None else {"length": cut.length}),
        )

    async def _audit_repeat(self, incoming: Incoming, subject: Subject | None, report: Report) -> None:
        log.info("callback_repeated", kind=incoming.kind, handle=report.handle)
        await self._gateway.audit.observe(
            "callback.repeated",
            merchant_id=subject.merchant_id if subject else None,
            actor="callback",
            subject_id=subject.subject_id if subject else None,
            env=subject.env if subject else None,
            detail={"kind": incoming.kind, "handle": report.handle},
        )

    # -- what operators see and do --------------------------------------------------------------------------------

    async def replay(
        self, callback_id: str, *, actor: str, env: Env | None = None, vouches: bool = False
    ) -> "Replayed":
        """Send a callback that was kept through the pipeline again: one that was accepted, or one that was refused.

        With ``env`` only what that env may touch is found. With ``vouches`` the caller takes it on itself that a
        refused callback came from Safaricom; signature, shape and subject are checked as always. A callback that was
        applied, or a refused one that was accepted since, changes nothing. Raises NotFound, Conflict where it cannot
        be replayed, and CallbackRefused.
        """
        if callback_id.startswith("ref_"):
            return await self._replay_refused(callback_id, actor, env, vouches=vouches)
        row = await self.find(callback_id)
        _check_env(row, env)
        async with self._db.transaction():
            # Of several replays at a time each waits here, and finds what the one before has done.
            await self._db.execute(tables.ONE_AT_A_TIME, callback_id)
            is_applied = bool(await self._db.fetchval(tables.IS_APPLIED, callback_id))
            if not is_applied:
                # What it is about is locked before the callback, as in every path.
                await self._offer_again(row)
                await self._db.execute(
                    tables.WAKE, callback_id, self._gateway.clock.now() + timedelta(seconds=PAUSES[0])
                )
            await self._gateway.audit.record(
                "callback.offered",
                merchant_id=row["merchant_id"] or None,
                actor=actor,
                subject_id=callback_id,
                env=row["env"],
            )
        verdict = str((await self._db.fetchrow(tables.FIND, callback_id) or row)["verdict"])
        return Replayed(id=callback_id, callback_id=callback_id, verdict=verdict, was_done=is_applied)

    async def _replay_refused(self, refused_id: str, actor: str, env: Env | None, *, vouches: bool) -> "Replayed":
        row = await self.find_refused(refused_id)
        _check_env(row, env)
        kept_id, was_done = row["callback_id"], row["callback_id"] is not None
        if kept_id is None:
            kept_id = await self._keep_refused_one(row, vouches=vouches)
        async with self._db.transaction():
            changed = await self._db.fetchval(tables.REPLAYED, refused_id, self._gateway.clock.now(), kept_id)
            await self._gateway.audit.record(
                "callback.replayed",
                merchant_id=row["merchant_id"],
                actor=actor,
                subject_id=refused_id,
                env=row["env"],
                detail={"kind": row["kind"], "reason": row["reason"], "callback_id": kept_id}
                | ({} if changed else {"again": True}),
            )
        kept = await self.find(kept_id)
        return Replayed(id=refused_id, callback_id=kept_id, verdict=kept["verdict"], was_done=was_done)

    async def _keep_refused_one(self, row: Row, *, vouches: bool) -> str:
        """Check a refused callback again and keep it as an accepted one; returns its id as such."""
        if (problem := not_replayable(row)) is not None:
            raise Conflict(problem)
        if row["reason"] == SourceRefused.reason and not vouches:
            raise Conflict("it did not come from a listed address: an operator has to vouch for its source at /ops")
        known = row["env"] is not None
        subject = Subject(row["env"], row["merchant_id"], row["subject_id"]) if known else None
        body = row["original"].encode() if row["body_bytes"] is None else bytes(row["body_bytes"])
        kind = row["kind"] if known else self.kinds.of_body(row["kind"], body)
        incoming = Incoming(kind, None, body, row["source"], row["signature"])
        if not vouches:
            self._check_source(incoming, subject)
        is_signed = await self._check_signature(incoming, subject)
        arrival = await self._arrival(incoming, subject, is_signed=is_signed)
        if vouches:
            arrival = replace(arrival, is_listed=True)
        await self._keep(arrival, counts=False)
        kept = await self._db.fetchrow(tables.FIND_BY_FINGERPRINT, arrival.fingerprint)
        if kept is None:
            raise Conflict("it was not kept: look at the log")
        return str(kept["callback_id"])

    async def past(self, subject_ids: Collection[str], handles: Collection[str]) -> list[Moment]:
        """See the port."""
        rows = await self._db.fetch(tables.ABOUT, list(subject_ids), list(handles))
        return [
            Moment(
                at=row["received_at"],
                source=f"callback from {row['source']}",
                state=row["verdict"],
                text=f"{row['kind']}: result {row['result_code']}" + _repeated(row["repeats"]),
                body=laid_out(row["body"]),
                about=row["callback_id"],
            )
            for row in rows
        ]

    async def find(self, callback_id: str) -> Row:
        """One callback that was taken. Raises NotFound."""
        row = await self._db.fetchrow(tables.FIND, callback_id)
        if row is None:
            raise NotFound("there is no such callback")
        return row

    async def find_refused(self, refused_id: str) -> Row:
        """One callback that was refused. Raises NotFound."""
        row = await self._db.fetchrow(tables.FIND_REFUSED, refused_id)
        if row is None:
            raise NotFound("there is no such refused callback")
        return row

    async def count_unmatched(self, env: Env) -> int:
        """How many callbacks of ``env``, or of no env, nobody could use in all the time that they were kept waiting."""
        return int(await self._db.fetchval(tables.COUNT_UNMATCHED, env))

    async def count_refused(self, env: Env, within: timedelta) -> int:
        """How many callbacks of ``env``, or of no env, were refused of late and not replayed; 1,000 at most."""
        return int(await self._db.fetchval(tables.COUNT_REFUSED_SINCE, self._gateway.clock.now() - within, env))

    async def count_unread(self, env: Env, within: timedelta) -> int:
        """How many callbacks of ``env``, or of no env, at our own addresses could not be read; 1,000 at most."""
        return int(await self._db.fetchval(tables.COUNT_UNREAD, self._gateway.clock.now() - within, env))

    async def refused(self, env: Env, filters: RefusedQuery) -> Page[RefusedView]:
        """Refused callbacks of ``env``, or of no env, newest first. Raises Invalid for a bad cursor."""
        rows = await self._refused_rows(env, filters)
        return page_of(
            rows, filters.limit, env=env, view=refused_view, position=lambda row: (row["at"], row["refused_id"])
        )

    async def accepted(self, env: Env, filters: CallbackQuery) -> Page[CallbackView]:
        """Accepted callbacks of ``env``, or of no env, newest first. Raises Invalid for a bad cursor."""
        rows = await self._accepted_rows(env, filters)
        return page_of(
            rows,
            filters.limit,
            env=env,
            view=callback_view,
            position=lambda row: (row["received_at"], row["callback_id"]),
        )

    async def rows(self, env: Env, filters: CallbackQuery) -> tuple[list[Row], list[Row]]:
        """Accepted and refused callbacks of ``env``, or of no env, each newest first."""
        return await self._accepted_rows(env, filters), await self._refused_rows(env, filters)

    async def _accepted_rows(self, env: Env, filters: CallbackQuery) -> list[Row]:
        at, callback_id = decode_position(filters.cursor, env) if filters.cursor else (None, "")
        self.kinds.check(filters.kind)
        query = tables.ACCEPTED[filters.verdict or ("unread" if filters.unread else None)]
        return await self._reads.fetch(query, *_bounds(env, filters, at, callback_id))

    async def _refused_rows(self, env: Env, filters: RefusedQuery) -> list[Row]:
        at, refused_id = decode_position(filters.cursor, env) if filters.cursor else (None, "")
        self.kinds.check(filters.kind)
        return await self._reads.fetch(tables.REFUSED, *_bounds(env, filters, at, refused_id), filters.unread)


def _bounds(env: Env, filters: RefusedQuery, at: Any, after: Any) -> tuple[Any, ...]:
    return filters.limit + 1, at, after, env, filters.kind, filters.since, filters.until


def not_replayable(row: Row) -> str | None:
    """Why a refused callback cannot be replayed; None where it can."""
    if row["reason"] == TokenRefused.reason:
        return "its address was none of ours, so nothing proves what it is about"
    if row["cut_read"] is not None:
        return "it was not kept whole: it is larger than is taken"
    if row["original"] is None:
        return "it was not kept whole: it is too long, its number was erased, or it is from before it could be replayed"
    return None


def _check_env(row: Row, env: Env | None) -> None:
    """Raises NotFound for a callback of the other env, and Conflict in the sandbox for one that may be live."""
    if env is None or row["env"] == env:
        return
    if row["env"] is not None:
        raise NotFound("there is no such callback in this env")
    if env == "sandbox":
        raise Conflict("it names no env, so that it may be about live money: use a key of live")


def _repeated(repeats: int) -> str:
    return f", came {repeats} more {'time' if repeats == 1 else 'times'}" if repeats else ""


def _shown(body: bytes) -> str:
    return visible(decoded(body[: _SHOWN * 4]))[:_SHOWN]


def _fingerprint(kind: str, subject_id: str, report: Report) -> bytes:
    """What makes two callbacks the same: about the same request, and saying the same.

    A callback about the same request that says something else is another one: late proof of money counts. So is one
    at the address of its request after one without: the first may wait for what the second knows.
    """
    parts = (kind, report.handle, subject_id, *report.content)
    return hashlib.sha256("\x1f".join(parts).encode()).digest()
