"""The inbox: stores each callback once, and publishes it in the same transaction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import asyncpg
import prometheus_client
import structlog
from opentelemetry.trace import Tracer

from mpesa_gateway.batching import Batcher
from mpesa_gateway.clock import Clock
from mpesa_gateway.correlation import current_context, use_context, use_job_contexts
from mpesa_gateway.db.deferred import ConcurrentUpdate, DeferredWrite
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE, Database, reserve
from mpesa_gateway.db.forms import BodyForms
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.ids import Ids
from mpesa_gateway.logs import trace
from mpesa_gateway.metrics.definitions import OTHER
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway.tracing import postgres_span
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.api import DifferentSubject
from mpesa_gateway_callbacks.callback_kinds import CallbackKinds
from mpesa_gateway_callbacks.dedup import Dedup, RepetitionCounter
from mpesa_gateway_callbacks.dispatcher import RETRY_PAUSES, CallbackDispatcher, Verdict
from mpesa_gateway_callbacks.errors import CallbackRejected, KindRejected, SizeRejected
from mpesa_gateway_callbacks.incoming import CallbackPost, VerifiedCallback, fingerprint_of, parse
from mpesa_gateway_callbacks.metrics import label_values
from mpesa_gateway_callbacks.refusals import RefusedCallbacks
from mpesa_gateway_callbacks.tokens import Subject
from mpesa_gateway_callbacks.verifier import CallbackVerifier

log = structlog.get_logger(__name__)

_STORED_ALONE: tuple[type[BaseException], ...] = (DifferentSubject, asyncpg.UniqueViolationError, *OVERLOADED)
"""After these errors of a batch each callback is stored alone."""


class CallbackInbox:
    """Stores and publishes callbacks; concurrent ones share a transaction."""

    def __init__(
        self,
        *,
        db: Database,
        outbox: Outbox,
        clock: Clock,
        ids: Ids,
        audit: Audit,
        tracer: Tracer,
        trace_links: TraceLinks,
        counter: prometheus_client.Counter,
        dedup: Dedup,
        verifier: CallbackVerifier,
        dispatcher: CallbackDispatcher,
        refusals: RefusedCallbacks,
        kinds: CallbackKinds,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._ids = ids
        self._audit = audit
        self._trace_links = trace_links
        self._counter = counter
        self._dedup = dedup
        self._verifier = verifier
        self._dispatcher = dispatcher
        self._refusals = refusals
        self._kinds = kinds
        self._forms = BodyForms(db)
        self._repetitions = RepetitionCounter(db)
        for values in label_values(kinds.names):
            counter.labels(*values)
        self._batches: dict[str, Batcher[VerifiedCallback, bool | None]] = {}
        """By kind; the empty name is for all kinds that share transactions."""
        self._new_batches = partial(
            Batcher[VerifiedCallback, bool | None],
            self._store_batch,
            span=partial(postgres_span, tracer, "store callback"),
        )

    async def start(self) -> None:
        await self._verifier.load_certificate()

    async def stop(self) -> None:
        await self._repetitions.stop()
        await self._dedup.settle()

    async def receive(self, incoming: CallbackPost) -> VerifiedCallback:
        """Verify and store a callback; returns it once committed, also a duplicate.

        Raises CallbackRejected, after storing the refused callback, and asyncpg's errors without Postgres.
        """
        subject: Subject | None = None
        try:
            if incoming.cut is not None:
                raise SizeRejected("the body is too large to be a callback: its beginning is kept for the operator")
            if self._kinds.get(incoming.kind) is None:
                raise KindRejected("there is nothing at this address")
            subject, kind = self._verifier.check_token(incoming)
            incoming = replace(incoming, kind=kind)
            if subject is not None:
                self._trace_links.link(subject.subject_id)
            self._verifier.check_source(incoming, subject)
            arrival = await self.check_body(incoming, subject)
            # A callback of ambiguous kind is published alone.
            is_new = None if arrival.parsed.alternatives else await self._batches_of(arrival).submit(arrival)
            if is_new is None:
                is_new = await self.store(arrival)
        except CallbackRejected as refusal:
            kind = OTHER if self._kinds.get(incoming.kind) is None else incoming.kind
            self._counter.labels(kind, "refused", refusal.reason).inc()
            await self._refusals.store(incoming, subject, refusal)
            raise
        self._counter.labels(incoming.kind, "accepted" if is_new else "repeated", "").inc()
        if not is_new:
            await self._audit_repeat(arrival)
        log.info(
            "callback_accepted",
            kind=incoming.kind,
            handle=arrival.parsed.handle,
            result_code=arrival.parsed.result_code,
        )
        return arrival

    async def check_body(self, incoming: CallbackPost, subject: Subject | None) -> VerifiedCallback:
        """Check the signature and parse the body. Raises CallbackRejected."""
        is_signed = await self._verifier.check_signature(incoming, subject)
        parsed, text, raw = await parse(incoming, self._kinds, has_token=subject is not None)
        return VerifiedCallback(
            callback_id=self._ids.new("cbk"),
            incoming=incoming,
            subject=subject,
            parsed=parsed,
            fingerprint=fingerprint_of(incoming.kind, subject.subject_id if subject else "", parsed),
            is_signed=is_signed,
            is_listed=self._verifier.is_listed(incoming.source),
            origin=current_context(),
            text=text,
            raw=raw,
        )

    async def store(self, arrival: VerifiedCallback, *, counts: bool = True) -> bool:
        """Store and publish one callback. Returns False for a duplicate, which is counted if ``counts``.

        The subject is locked first, as in a batch, so that duplicates cannot deadlock.
        """
        is_new = not await self._is_duplicate(arrival.fingerprint, counts=counts)
        if is_new:
            try:
                await self._store_new(arrival)
            except ConcurrentUpdate:
                # Only a concurrent duplicate causes this.
                if not await self._is_duplicate(arrival.fingerprint, counts=counts):
                    raise
                is_new = False
        self._dedup.remember([arrival.fingerprint])
        return is_new

    async def _store_new(self, arrival: VerifiedCallback) -> None:
        now = self._clock.now()
        verdicts: dict[str, Verdict] = {arrival.callback_id: "waiting"}
        with self._dispatcher.collect_verdicts(verdicts):
            async with self._db.transaction():
                await self._dispatcher.publish(arrival.parsed, arrival.event_fields(now))
                await self._write([arrival], verdicts, now)

    async def _is_duplicate(self, fingerprint: bytes, *, counts: bool) -> bool:
        if counts:
            return bool(await self._repetitions.count(Counter([fingerprint])))
        return await self._db.fetchrow(tables.FIND_BY_FINGERPRINT, fingerprint) is not None

    def _batches_of(self, arrival: VerifiedCallback) -> Batcher[VerifiedCallback, bool | None]:
        name = arrival.incoming.kind if arrival.parsed.is_apart else ""
        if name not in self._batches:
            self._batches[name] = self._new_batches()
        return self._batches[name]

    async def _store_batch(self, arrivals: Sequence[VerifiedCallback]) -> list[bool | None]:
        """Return for each callback: True if stored, False if duplicate, None if its caller has to store it alone.

        Callers store unusual callbacks, and ones that would wait for a lock.
        """
        seen = await self._dedup.find_known([arrival.fingerprint for arrival in arrivals])
        again = Counter(arrival.fingerprint for arrival in arrivals if arrival.fingerprint in seen)
        # Postgres decides between duplicates within the batch.
        fresh = {arrival.fingerprint: arrival for arrival in arrivals if arrival.fingerprint not in seen}
        # A batch runs outside its callers' contexts, and claims the reserve of connections itself.
        with reserve(), self._jobs_by_origin(arrivals):
            stored = await self._store_ordinary(list(fresh.values()))
            repeated = await self._repetitions.count_where_possible(again) if again else set[bytes]()
        self._dedup.remember([arrival.fingerprint for arrival in fresh.values() if arrival.callback_id in stored])
        return [
            True if arrival.callback_id in stored else False if arrival.fingerprint in repeated else None
            for arrival in arrivals
        ]

    def _jobs_by_origin(self, arrivals: Sequence[VerifiedCallback]) -> AbstractContextManager[None]:
        if len(arrivals) == 1:
            return use_context(arrivals[0].origin)
        return use_job_contexts({one.subject.subject_id: one.origin for one in arrivals if one.subject and one.origin})

    async def _store_ordinary(self, arrivals: Sequence[VerifiedCallback]) -> set[str]:
        """Publish and store callbacks in one transaction with two round trips, the inbox last.

        Returns their ids; none after a duplicate or if a subscriber rejects the batch.
        """
        if not arrivals:
            return set()
        now = self._clock.now()
        events = [
            arrival.parsed.event(arrival.event_fields(now)) for arrival in arrivals if arrival.parsed.event is not None
        ]
        verdicts: dict[str, Verdict] = {
            arrival.callback_id: "waiting" if arrival.parsed.event else "applied" for arrival in arrivals
        }
        try:
            with self._dispatcher.collect_verdicts(verdicts, is_batch=True):
                async with self._db.transaction():
                    await self._outbox.publish(events)
                    await self._write(arrivals, verdicts, now)
        except _STORED_ALONE:
            return set()
        except UNREACHABLE:
            raise
        except Exception as problem:  # noqa: BLE001 - each is then stored alone, and only a failing one waits
            log.error("callbacks_stored_singly", count=len(arrivals), exception=trace(problem))
            return set()
        return {arrival.callback_id for arrival in arrivals}

    async def _write(
        self, arrivals: Sequence[VerifiedCallback], verdicts: Mapping[str, Verdict], now: datetime
    ) -> None:
        """Defer writing these callbacks. The commit raises ConcurrentUpdate if one is a duplicate."""
        bodies = await self._forms.shorten([arrival.body(self._kinds) for arrival in arrivals])
        sql, *args = tables.KEEP.bind_rows(
            [
                arrival.columns()
                | {"body": body.text, "form_id": body.form_id, "body_values": body.values}
                | {"is_applied": verdicts[arrival.callback_id] == "applied"}
                for arrival, body in zip(arrivals, bodies, strict=True)
            ],
            received_at=now,
            due_at=now + timedelta(seconds=RETRY_PAUSES[0]),
        )
        await self._db.defer(DeferredWrite(sql, tuple(args), expects=len(arrivals)))

    async def _audit_repeat(self, arrival: VerifiedCallback) -> None:
        kind, subject, handle = arrival.incoming.kind, arrival.subject, arrival.parsed.handle
        log.info("callback_repeated", kind=kind, handle=handle)
        await self._audit.observe(
            "callback.repeated",
            merchant_id=(subject.merchant_id or None) if subject else None,
            actor="callback",
            subject_id=subject.subject_id if subject else None,
            env=subject.env if subject else None,
            detail={"kind": kind, "handle": handle},
        )
