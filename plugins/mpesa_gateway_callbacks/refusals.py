"""Storage of refused callbacks."""

from dataclasses import replace

import structlog

from mpesa_gateway.client_ip import client_network
from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.wire import decode_text
from mpesa_gateway.db.engine import Database
from mpesa_gateway.ids import Ids
from mpesa_gateway.sampling import Sampler
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.errors import CallbackRejected
from mpesa_gateway_callbacks.incoming import CallbackPost, storable
from mpesa_gateway_callbacks.schemas import visible
from mpesa_gateway_callbacks.tokens import Subject
from mpesa_gateway_callbacks.verifier import CallbackVerifier

log = structlog.get_logger(__name__)

_SHOWN = 2048
"""Characters of a refused callback that are shown."""

_REPLAYABLE = 16_384
"""Bytes up to which an untrusted sender's callback is stored whole."""

_LOGGED_EVERY = 60.0
"""Seconds in which one refusal is logged per network and reason."""

_STORED_A_SECOND = 20
"""Untrusted senders' callbacks that one process stores per second."""


class RefusedCallbacks:
    """The store of refused callbacks."""

    def __init__(self, *, db: Database, clock: Clock, ids: Ids, audit: Audit, verifier: CallbackVerifier) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._audit = audit
        self._verifier = verifier
        self._logged = Sampler(_LOGGED_EVERY)
        self._stored_this_second = (0, 0)

    async def store(self, incoming: CallbackPost, subject: Subject | None, refusal: CallbackRejected) -> None:
        """Log, store and audit a refusal, within the limit for untrusted senders."""
        self._log(incoming, refusal)
        if subject is None and (found := self._verifier.open_token(incoming.kind, incoming.token)) is not None:
            # The operator sees the subject, the sender does not.
            subject, kind = found
            incoming = replace(incoming, kind=kind)
        is_trusted = subject is not None or self._verifier.is_listed(incoming.source)
        if not is_trusted and not self._admit_untrusted():
            return
        cut = incoming.cut
        is_whole = is_trusted or (cut is None and len(incoming.body) <= _REPLAYABLE)
        text, raw = await storable(incoming.body)
        now = self._clock.now()
        refused_id = self._ids.new("ref", now)
        await self._db.execute(
            *tables.REFUSE.bind(
                refused_id=refused_id,
                kind=incoming.kind,
                at=now,
                source=incoming.source,
                reason=refusal.reason,
                body=visible(decode_text(incoming.body[: _SHOWN * 4]))[:_SHOWN],
                merchant_id=(subject.merchant_id or None) if subject else None,
                subject_id=subject.subject_id if subject else None,
                env=subject.env if subject else None,
                original=text if is_whole else None,
                signature=incoming.signature,
                body_bytes=raw if is_whole else None,
                is_trusted=is_trusted,
                cut_length=cut and cut.length,
                cut_read=cut and cut.read,
                cut_sha256=cut and cut.sha256,
                was_forwarded=incoming.was_forwarded,
            )
        )
        await self._audit.observe(
            "callback.refused",
            merchant_id=(subject.merchant_id or None) if subject else None,
            actor="callback",
            subject_id=subject.subject_id if subject else refused_id,
            env=subject.env if subject else None,
            detail={"kind": incoming.kind, "reason": refusal.reason, "refused_id": refused_id}
            | ({} if cut is None else {"length": cut.length}),
        )

    def _admit_untrusted(self) -> bool:
        this_second = int(self._clock.now().timestamp())
        second, count = self._stored_this_second
        self._stored_this_second = (this_second, count + 1 if second == this_second else 1)
        return self._stored_this_second[1] <= _STORED_A_SECOND

    def _log(self, incoming: CallbackPost, refusal: CallbackRejected) -> None:
        left_out = self._logged.admit((client_network(incoming.source), refusal.reason))
        if left_out is not None:
            more = {"left_out": left_out} if left_out else {}
            log.warning("callback_refused", kind=incoming.kind, source=incoming.source, reason=refusal.reason, **more)
