"""Piccolo tables and named queries of persons, memberships, sessions and flash messages."""

from piccolo.columns import BigInt, Boolean, Bytea, Integer, Text, Timestamptz
from piccolo.columns.combination import Where
from piccolo.table import Table

from mpesa_gateway.db.engine import Database


class PersonRow(Table, tablename="person"):
    """A person who signs in."""

    person_id = Text(primary_key=True)
    created_at = Timestamptz()
    last_login_at = Timestamptz(null=True, default=None)
    totp_step = BigInt(default=0)
    totp_failures = Integer(default=0)
    is_active = Boolean()
    email = Text()
    name = Text()
    password_hash = Text()
    host_role = Text(null=True, default=None)
    totp_sealed = Text(null=True, default=None)
    totp_offered = Text(null=True, default=None)


class MembershipRow(Table, tablename="membership"):
    """A person's role for one merchant. The key is (merchant_id, person_id)."""

    merchant_id = Text(primary_key=True)
    person_id = Text()
    created_at = Timestamptz()
    role = Text()


class InvitationRow(Table, tablename="person_invitation"):
    """An invitation or a password reset that was not used, identified by the digest of its token."""

    digest = Bytea(primary_key=True)
    merchant_id = Text(null=True, default=None)
    person_id = Text(null=True, default=None)
    created_at = Timestamptz()
    expires_at = Timestamptz()
    email = Text()
    role = Text(null=True, default=None)
    host_role = Text(null=True, default=None)
    invited_by = Text()


async def void_links(db: Database, *where: Where) -> None:
    """Delete unused invitations and password resets, so that their links no longer work."""
    await db.run(InvitationRow.delete().where(*where))


class RecoveryCodeRow(Table, tablename="person_recovery_code"):
    """An unused recovery code. The key is (person_id, digest)."""

    person_id = Text(primary_key=True)
    digest = Bytea()


class SessionRow(Table, tablename="ops_session"):
    """A session, identified by the digest of its token."""

    digest = Bytea(primary_key=True)
    person_id = Text()
    merchant_id = Text(null=True, default=None)
    created_at = Timestamptz()
    last_seen_at = Timestamptz()
    expires_at = Timestamptz()
    verified_at = Timestamptz(null=True, default=None)
    agent = Text()


class NoteRow(Table, tablename="ops_note"):
    """A flash message that was not shown yet."""

    note_id = Text(primary_key=True)
    owner = Text()
    sealed = Text()
    created_at = Timestamptz()


# raw SQL: join - a session with its person, read for every page.
FIND_SESSION = """
SELECT person_id, email, name, host_role, totp_sealed IS NOT NULL AS has_factor, merchant_id, verified_at, last_seen_at
FROM ops_session JOIN person USING (person_id)
WHERE digest = $1 AND is_active AND expires_at > $2 AND last_seen_at > $3
"""

# raw SQL: join - the memberships of a person, read for every page.
MEMBERSHIPS_OF_PERSON = """
SELECT merchant_id, role, merchant.name FROM membership JOIN merchant USING (merchant_id)
WHERE person_id = $1 AND merchant.is_active ORDER BY merchant_id
"""

# raw SQL: join - the members of a merchant.
MEMBERS = """
SELECT person_id, email, name, role, totp_sealed IS NOT NULL AS has_factor, membership.created_at, last_login_at
FROM membership JOIN person USING (person_id) WHERE merchant_id = $1 ORDER BY role, email
"""

# raw SQL: lock - changes of a merchant's members wait for each other, so that one owner stays.
LOCK_MERCHANT = "SELECT is_active FROM merchant WHERE merchant_id = $1 FOR NO KEY UPDATE"

# raw SQL: lock - in the order of merchants, so that two departures cannot wait for each other.
LOCK_MERCHANTS_OF_PERSON = """
SELECT merchant_id FROM merchant WHERE merchant_id IN (SELECT merchant_id FROM membership WHERE person_id = $1)
ORDER BY merchant_id FOR NO KEY UPDATE
"""

# raw SQL: join - merchants that would have no owner without this person.
ONLY_OWNER_OF = """
SELECT merchant.name FROM membership AS own JOIN merchant USING (merchant_id)
WHERE own.person_id = $1 AND own.role = 'owner' AND NOT EXISTS (
    SELECT FROM membership AS other
    WHERE other.merchant_id = own.merchant_id AND other.role = 'owner' AND other.person_id <> $1)
ORDER BY merchant.name
"""

# raw SQL: join - True if the person is one of the host's, or a member of a merchant that the other one does not own.
IS_BEYOND_OWNER = """
SELECT host_role IS NOT NULL OR EXISTS (
    SELECT FROM membership AS own WHERE own.person_id = $1 AND NOT EXISTS (
        SELECT FROM membership AS theirs
        WHERE theirs.merchant_id = own.merchant_id AND theirs.person_id = $2 AND theirs.role = 'owner'))
FROM person WHERE person_id = $1
"""

# raw SQL: lock - codes of one person are judged one after the other.
LOCK_PERSON = """
SELECT email, totp_sealed, totp_offered, totp_step, totp_failures FROM person
WHERE person_id = $1 AND is_active FOR NO KEY UPDATE
"""

# raw SQL: lock - several workers delete at once.
FORGET_ENDED = """
DELETE FROM ops_session WHERE digest IN (
    SELECT digest FROM ops_session WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

# raw SQL: lock - several workers delete at once.
FORGET_INVITATIONS = """
DELETE FROM person_invitation WHERE digest IN (
    SELECT digest FROM person_invitation WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""
