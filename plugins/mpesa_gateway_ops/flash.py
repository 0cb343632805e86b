"""Flash messages: the result of an action, shown once on the next page and stored sealed."""

from datetime import timedelta

import msgspec

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database
from mpesa_gateway.ids import Ids
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import Sealer, UnsealError
from mpesa_gateway_ops.tables import NoteRow

_KEEP = timedelta(minutes=10)


class FlashMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``problem``: the action failed; ``warning``: its result needs review; ``secret`` is shown once."""

    text: str
    problem: bool = False
    warning: bool = False
    secret: str | None = None


class FlashMessages:
    """Stores and deletes the messages of a session."""

    def __init__(self, *, db: Database, clock: Clock, ids: Ids, sealer: Sealer) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._sealer = sealer

    async def store(
        self, owner: str, text: str, *, problem: bool = False, warning: bool = False, secret: Secret | None = None
    ) -> str:
        """Return the id of the stored message, for the next page's address."""
        note_id, now = self._ids.token(16).hex(), self._clock.now()
        revealed = None if secret is None else secret.reveal()
        note = FlashMessage(text=text, problem=problem, warning=warning, secret=revealed)
        sealed = self._sealer.seal(msgspec.json.encode(note).decode(), aad=_aad(note_id, owner))
        await self._db.run(NoteRow.delete().where(NoteRow.created_at < now - _KEEP))
        await self._db.run(NoteRow.insert(NoteRow(note_id=note_id, owner=owner, sealed=sealed, created_at=now)))
        return note_id

    async def take(self, owner: str, note_id: str) -> FlashMessage | None:
        """Delete and return a message of this owner; None if it is unknown or expired."""
        taken = await self._db.run(
            NoteRow.delete()
            .where(
                NoteRow.note_id == note_id,
                NoteRow.owner == owner,
                NoteRow.created_at >= self._clock.now() - _KEEP,
            )
            .returning(NoteRow.sealed)
        )
        if not taken:
            return None
        try:
            return msgspec.json.decode(
                self._sealer.open(taken[0]["sealed"], aad=_aad(note_id, owner)), type=FlashMessage
            )
        except UnsealError:
            # The master key that sealed it was removed: the page is shown without it.
            return None


def _aad(note_id: str, owner: str) -> tuple[str, ...]:
    return ("ops", note_id, owner)
