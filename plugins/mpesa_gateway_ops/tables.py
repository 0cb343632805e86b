"""Operators and sessions as Piccolo knows them, and the named queries on them."""

from piccolo.columns import Boolean, Bytea, Text, Timestamptz
from piccolo.table import Table


class OperatorRow(Table, tablename="ops_operator"):
    """A person who may see the pages, known by a name and a password."""

    operator_id = Text(primary_key=True)
    name = Text()
    password_hash = Text()
    role = Text()
    is_active = Boolean()
    created_at = Timestamptz()
    last_login_at = Timestamptz(null=True, default=None)


class SessionRow(Table, tablename="ops_session"):
    """One login that still counts, known by the digest of what the cookie holds."""

    digest = Bytea(primary_key=True)
    operator_id = Text()
    created_at = Timestamptz()
    last_seen_at = Timestamptz()
    expires_at = Timestamptz()


class NoteRow(Table, tablename="ops_note"):
    """What an act came to, until it has been told."""

    note_id = Text(primary_key=True)
    owner = Text()
    sealed = Text()
    created_at = Timestamptz()


CREATE = """
INSERT INTO ops_operator (operator_id, name, password_hash, role, created_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (name) DO NOTHING RETURNING operator_id
"""

FIND = "SELECT operator_id, password_hash, is_active FROM ops_operator WHERE name = $1"

CHANGE = "UPDATE ops_operator SET password_hash = $2 WHERE name = $1 AND is_active RETURNING operator_id"

SET_ROLE = "UPDATE ops_operator SET role = $2 WHERE name = $1 AND is_active RETURNING operator_id"

DEACTIVATE = "UPDATE ops_operator SET is_active = false WHERE name = $1 AND is_active RETURNING operator_id"

NOTE_LOGIN = """
UPDATE ops_operator SET last_login_at = $3 WHERE operator_id = $1 AND password_hash = $2 AND is_active
RETURNING operator_id
"""

OPEN_SESSION = """
INSERT INTO ops_session (digest, operator_id, created_at, last_seen_at, expires_at) VALUES ($1, $2, $3, $3, $4)
"""

FIND_SESSION = """
SELECT operator_id, name, role, last_seen_at FROM ops_session JOIN ops_operator USING (operator_id)
WHERE digest = $1 AND is_active AND expires_at > $2 AND last_seen_at > $3
"""

TOUCH_SESSION = "UPDATE ops_session SET last_seen_at = $2 WHERE digest = $1"

CLOSE_SESSION = "DELETE FROM ops_session WHERE digest = $1 RETURNING operator_id"

CLOSE_SESSIONS_OF = "DELETE FROM ops_session WHERE operator_id = $1"

FORGET_ENDED = """
DELETE FROM ops_session WHERE digest IN (
    SELECT digest FROM ops_session WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

FORGET_SESSIONS = "DELETE FROM ops_session WHERE expires_at <= $1 OR last_seen_at <= $2"

LEAVE_NOTE = """
WITH old AS (DELETE FROM ops_note WHERE created_at < $5)
INSERT INTO ops_note (note_id, owner, sealed, created_at) VALUES ($1, $2, $3, $4)
"""

TAKE_NOTE = "DELETE FROM ops_note WHERE note_id = $1 AND owner = $2 AND created_at >= $3 RETURNING sealed"

COUNT_ACTIVE = "SELECT count(*) FROM ops_operator WHERE is_active"
