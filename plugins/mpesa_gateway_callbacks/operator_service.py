"""Operators' use cases of callbacks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.db.keyset import Conditions, KeysetPage
from mpesa_gateway.errors import Conflict, NotFound, require_found
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.ids import Ids
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.callback_kinds import CallbackKinds
from mpesa_gateway_callbacks.dispatcher import RETRY_PAUSES, CallbackDispatcher
from mpesa_gateway_callbacks.errors import SourceRejected, TokenRejected
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.incoming import CallbackPost
from mpesa_gateway_callbacks.schemas import (
    CallbackQuery,
    CallbackView,
    RefusedQuery,
    RefusedView,
    callback_view,
    refused_view,
)
from mpesa_gateway_callbacks.tables import CallbackRow, RefusedRow
from mpesa_gateway_callbacks.tokens import Subject
from mpesa_gateway_callbacks.verifier import CallbackVerifier


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """``callback_id`` is the accepted callback; ``was_done`` is True if nothing changed."""

    id: str
    callback_id: str
    verdict: str
    was_done: bool


class CallbackOperatorService:
    """Reads, counts and replays callbacks."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        audit: Audit,
        verifier: CallbackVerifier,
        inbox: CallbackInbox,
        dispatcher: CallbackDispatcher,
        kinds: CallbackKinds,
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._verifier = verifier
        self._inbox = inbox
        self._dispatcher = dispatcher
        self._kinds = kinds

    async def replay(self, callback_id: str, *, actor: str, env: Env | None = None, vouches: bool = False) -> Replayed:
        """Process a stored callback again, accepted or refused.

        ``env`` restricts the search. With ``vouches`` a refused callback counts as sent by Safaricom; signature, shape
        and subject are still checked. Raises NotFound, CallbackRejected, and Conflict if a replay is impossible.
        """
        if callback_id.startswith("ref_"):
            return await self._replay_refused(callback_id, actor, env, vouches=vouches)
        row = await self.find(callback_id)
        _check_env(row, env)
        async with self._db.transaction():
            # Concurrent replays wait for the first.
            await self._db.execute(tables.ONE_AT_A_TIME, callback_id)
            is_applied = bool(await self._db.fetchval(tables.IS_APPLIED, callback_id))
            if not is_applied:
                # Every path locks the subject first, to avoid deadlocks.
                await self._dispatcher.publish_again(row)
                due = self._clock.now() + timedelta(seconds=RETRY_PAUSES[0])
                await self._db.run(
                    CallbackRow.update({CallbackRow.verdict: "waiting", CallbackRow.due_at: due}).where(
                        CallbackRow.callback_id == callback_id, CallbackRow.verdict != "applied"
                    )
                )
            await self._audit.record(
                "callback.offered",
                merchant_id=row["merchant_id"] or None,
                actor=actor,
                subject_id=callback_id,
                env=row["env"],
            )
        now = await self.find(callback_id)
        return Replayed(id=callback_id, callback_id=callback_id, verdict=now["verdict"], was_done=is_applied)

    async def _replay_refused(self, refused_id: str, actor: str, env: Env | None, *, vouches: bool) -> Replayed:
        row = await self.find_refused(refused_id)
        _check_env(row, env)
        accepted_id, was_done = row["callback_id"], row["callback_id"] is not None
        if accepted_id is None:
            accepted_id = await self._accept_refused(row, vouches=vouches)
        async with self._db.transaction():
            changed = await self._db.run(
                RefusedRow.update({RefusedRow.replayed_at: self._clock.now(), RefusedRow.callback_id: accepted_id})
                .where(RefusedRow.refused_id == refused_id, RefusedRow.callback_id.is_null())
                .returning(RefusedRow.refused_id)
            )
            await self._audit.record(
                "callback.replayed",
                merchant_id=row["merchant_id"],
                actor=actor,
                subject_id=refused_id,
                env=row["env"],
                detail={"kind": row["kind"], "reason": row["reason"], "callback_id": accepted_id}
                | ({} if changed else {"again": True}),
            )
        accepted = await self.find(accepted_id)
        return Replayed(id=refused_id, callback_id=accepted_id, verdict=accepted["verdict"], was_done=was_done)

    async def _accept_refused(self, row: Found, *, vouches: bool) -> str:
        if (problem := not_replayable(row)) is not None:
            raise Conflict(problem)
        if row["reason"] == SourceRejected.reason and not vouches:
            raise Conflict("it did not come from a listed address: an operator has to vouch for its source at /ops")
        has_token = row["env"] is not None
        subject = Subject(row["env"], row["merchant_id"] or "", row["subject_id"]) if has_token else None
        body = row["original"].encode() if row["body_bytes"] is None else bytes(row["body_bytes"])
        # A disabled plugin's callback is stored with its path as kind.
        named = self._kinds.at(row["kind"]) or row["kind"]
        kind = named if has_token else self._kinds.of_body(named, body)
        incoming = CallbackPost(kind, None, body, row["source"], row["signature"])
        if not vouches:
            self._verifier.check_source(incoming, subject)
        arrival = await self._inbox.check_body(incoming, subject)
        if vouches:
            arrival = replace(arrival, is_listed=True)
        await self._inbox.store(arrival, counts=False)
        accepted = await self._db.fetchrow(tables.FIND_BY_FINGERPRINT, arrival.fingerprint)
        if accepted is None:
            raise Conflict("it was not kept: look at the log")
        return str(accepted["callback_id"])

    async def find(self, callback_id: str) -> Found:
        """Raises NotFound."""
        row: Found = require_found(
            await self._db.run(
                CallbackRow.select(*CallbackRow.all_columns(), tables.BODY)
                .where(CallbackRow.callback_id == callback_id)
                .first()
            ),
            "there is no such callback",
        )
        return row

    async def find_refused(self, refused_id: str) -> Found:
        row: Found = require_found(
            await self._db.run(RefusedRow.select().where(RefusedRow.refused_id == refused_id).first()),
            "there is no such refused callback",
        )
        return row

    async def accepted(self, env: Env, filters: CallbackQuery) -> Page[CallbackView]:
        """Callbacks without an env are included. Raises InvalidFields for a bad filter."""
        return page_of((await self._accepted(env, filters)).map(callback_view))

    async def refused(self, env: Env, filters: RefusedQuery) -> Page[RefusedView]:
        """Callbacks without an env are included. Raises InvalidFields for a bad filter."""
        return page_of((await self._refused(env, filters)).map(refused_view))

    async def rows(self, env: Env, filters: CallbackQuery) -> tuple[Sequence[Row], Sequence[Row]]:
        return (await self._accepted(env, filters)).rows, (await self._refused(env, filters)).rows

    async def count_unmatched(self, env: Env) -> int:
        return int(await self._db.fetchval(tables.COUNT_UNMATCHED, env))

    async def count_refused(self, env: Env, within: timedelta) -> int:
        """Count callbacks refused and not replayed, of ``env`` or of no env; 1,000 at most."""
        return int(await self._db.fetchval(tables.COUNT_REFUSED_SINCE, self._refused_since(within), env))

    async def count_unread(self, env: Env, within: timedelta) -> int:
        """Count unreadable callbacks from trusted senders, of ``env`` or of no env; 1,000 at most."""
        return int(await self._db.fetchval(tables.COUNT_UNREAD, self._refused_since(within), env))

    def _refused_since(self, within: timedelta) -> str:
        return Ids.least("ref", self._clock.now() - within)

    async def _accepted(self, env: Env, filters: CallbackQuery) -> KeysetPage[Row]:
        found = self._conditions(env, filters)
        if filters.verdict is not None:
            found.add("verdict = {}", filters.verdict)
        if filters.unread or filters.verdict in {"waiting", "unmatched"}:
            # Matches the condition of the partial index.
            found.add("verdict <> 'applied'")
        return await tables.ACCEPTED.page(self._db, found, filters.cursor, filters.limit)

    async def _refused(self, env: Env, filters: RefusedQuery) -> KeysetPage[Row]:
        found = self._conditions(env, filters)
        if filters.unread:
            found.add(tables.UNREAD)
        return await tables.REFUSED.page(self._db, found, filters.cursor, filters.limit)

    def _conditions(self, env: Env, filters: RefusedQuery) -> Conditions:
        self._kinds.check(filters.kind)
        found = Conditions(env, since=filters.since, until=filters.until)
        found.equal(kind=filters.kind)
        return found


def not_replayable(row: Found) -> str | None:
    """Return the reason against a replay of a refused callback."""
    if row["reason"] == TokenRejected.reason:
        return "its address was none of ours, so nothing proves what it is about"
    if row["cut_read"] is not None:
        return "it was not kept whole: it is larger than is taken"
    if row["original"] is None:
        return "it was not kept whole: it is too long, its number was erased, or it is from before it could be replayed"
    return None


def _check_env(row: Found, env: Env | None) -> None:
    # A callback without env may be about live money.
    if env is None or row["env"] == env:
        return
    if row["env"] is not None:
        raise NotFound("there is no such callback in this env")
    if env == "sandbox":
        raise Conflict("it names no env, so that it may be about live money: use a key of live")
