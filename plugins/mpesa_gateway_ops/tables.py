"""Piccolo tables and named queries of operators, sessions and flash messages."""

from piccolo.columns import Boolean, Bytea, Text, Timestamptz
from piccolo.table import Table


class OperatorRow(Table, tablename="ops_operator"):
    """A person with access to the pages."""

    operator_id = Text(primary_key=True)
    name = Text()
    password_hash = Text()
    role = Text()
    is_active = Boolean()
    created_at = Timestamptz()
    last_login_at = Timestamptz(null=True, default=None)


class SessionRow(Table, tablename="ops_session"):
    """A session, identified by the digest of its token."""

    digest = Bytea(primary_key=True)
    operator_id = Text()
    created_at = Timestamptz()
    last_seen_at = Timestamptz()
    expires_at = Timestamptz()


class NoteRow(Table, tablename="ops_note"):
    """A flash message that was not shown yet."""

    note_id = Text(primary_key=True)
    owner = Text()
    sealed = Text()
    created_at = Timestamptz()


# raw SQL: join - a session with its operator, read for every page.
FIND_SESSION = """
SELECT operator_id, name, role, last_seen_at FROM ops_session JOIN ops_operator USING (operator_id)
WHERE digest = $1 AND is_active AND expires_at > $2 AND last_seen_at > $3
"""

# raw SQL: lock - several workers delete at once.
FORGET_ENDED = """
DELETE FROM ops_session WHERE digest IN (
    SELECT digest FROM ops_session WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""
