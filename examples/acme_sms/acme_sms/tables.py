"""The table of texts. It has no phone number: that stays with the payment, which may be erased."""

from piccolo.columns import Integer, Text, Timestamptz
from piccolo.table import Table


class TextRow(Table, tablename="acme_sms_text"):
    """One text for one payment; the migration has its constraints."""

    payment_id = Text(primary_key=True)
    merchant_id = Text()
    env = Text()
    state = Text()
    attempts = Integer(default=0)
    due_at = Timestamptz()
    sent_at = Timestamptz(null=True, default=None)


CLAIM = """
UPDATE acme_sms_text SET attempts = attempts + 1, due_at = $3
WHERE payment_id = $1 AND state = 'owed' AND due_at <= $2
RETURNING merchant_id, attempts
"""
"""Claim a due text for the length of an attempt: a second worker finds none."""

END = "UPDATE acme_sms_text SET state = $2, sent_at = $3 WHERE payment_id = $1 AND state = 'owed'"

DUE = "SELECT payment_id FROM acme_sms_text WHERE state = 'owed' AND due_at <= $1 ORDER BY due_at LIMIT $2"
