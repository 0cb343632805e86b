"""Tables and queries of registered addresses."""

from typing import Any

from piccolo.columns import Bytea, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.named import Named


class AddressRow(Table, tablename="c2b_address"):
    """The addresses of a receiver, and what Safaricom answered to their registration."""

    receiver_id = Text(primary_key=True)
    merchant_id = Text()
    env = Text()
    token = Text()
    token_digest = Bytea()
    state = Text()
    version = Text(null=True, default=None)
    response_type = Text()
    validation = Text()
    attempt = Integer()
    attempted_at = Timestamptz(null=True, default=None)
    answered_at = Timestamptz(null=True, default=None)
    answer_code = Text(null=True, default=None)
    answer_text = Text(null=True, default=None)
    registered_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()


# raw SQL: upsert - decides between concurrent registrations of one receiver.
BEGIN = Named("""
INSERT INTO c2b_address AS known (receiver_id, merchant_id, env, token, token_digest, response_type, validation,
    attempt, attempted_at, created_at)
VALUES ($receiver_id, $merchant_id, $env, $token, $token_digest, $response_type, $validation, 1, $now, $now)
ON CONFLICT (receiver_id) DO UPDATE SET attempt = known.attempt + 1, attempted_at = excluded.attempted_at
    WHERE known.attempted_at IS NULL OR known.attempted_at < $lost_before
RETURNING *
""")
"""Returns no row while another registration is in flight."""

# raw SQL: expression
END = Named("""
UPDATE c2b_address SET attempted_at = NULL, merchant_id = $merchant_id, state = $state,
    version = COALESCE($version, version), response_type = $response_type, validation = $validation,
    answered_at = $now, answer_code = $answer_code, answer_text = $answer_text,
    registered_at = CASE WHEN $state::text = 'registered' THEN $now::timestamptz ELSE registered_at END
WHERE receiver_id = $receiver_id AND attempt = $attempt
RETURNING *
""")
"""Returns no row if a later attempt has begun."""

# raw SQL: join
# raw SQL: aggregate
ADDRESSES = """
SELECT receiver_id, receiver.env, token_digest,
    CASE WHEN COALESCE(owner_id, merchant_id) <> merchant_id THEN 'accept' ELSE validation END AS validation
FROM c2b_address JOIN receiver USING (receiver_id)
"""

ADDRESS_OF = f"{ADDRESSES} WHERE token_digest = $1"

_WITH_RECEIVER = """
SELECT c2b_address.*, receiver.number, receiver.kind, receiver.owner_id
FROM c2b_address JOIN receiver USING (receiver_id)
"""

OF_RECEIVER = f"{_WITH_RECEIVER} WHERE receiver_id = $1"

OF_RECEIVERS = f"{_WITH_RECEIVER} WHERE receiver_id = ANY($1::uuid[])"

OF_MERCHANT = """
SELECT c2b_address.*, receiver.number, receiver.owner_id FROM c2b_address JOIN receiver USING (receiver_id)
WHERE receiver.env = $2 AND COALESCE(receiver.owner_id, c2b_address.merchant_id) = $1
    AND EXISTS (SELECT 1 FROM shortcode WHERE shortcode.receiver_id = c2b_address.receiver_id
        AND shortcode.merchant_id = $1 AND retired_at IS NULL)
ORDER BY receiver.number
"""

OF_ENV = """
SELECT c2b_address.*, receiver.number, receiver.owner_id FROM c2b_address JOIN receiver USING (receiver_id)
WHERE receiver.env = $1 AND ($2::uuid IS NULL OR $2 = COALESCE(receiver.owner_id, c2b_address.merchant_id))
ORDER BY receiver.number LIMIT 500
"""

COUNT_UNCONFIRMED = """
SELECT address.env, count(*) AS count FROM c2b_address AS address CROSS JOIN LATERAL (
    SELECT 1 FROM transaction WHERE transaction.receiver_id = address.receiver_id AND direction = 'in'
        AND subject_id IS NULL AND conflict_id IS NULL AND first_source = 'pull'
        AND transaction_id >= id_least('txn', greatest($1::timestamptz, address.created_at))
        AND NOT EXISTS (SELECT 1 FROM transaction_witness AS witness
            WHERE witness.transaction_id = transaction.transaction_id AND witness.source = 'c2b')
    LIMIT 1000
) AS unconfirmed
WHERE state IN ('registered', 'already_registered') AND (address.receiver_id = $2 OR $2 IS NULL)
GROUP BY address.env
"""
"""Money that Pull alone has seen since a time, of one receiver or all."""


def validation_of(row: Any) -> Any:
    """Return the mode of a row of OF_RECEIVER or END. The rules of a former owner refuse no payer of the next one."""
    return "accept" if row.get("owner_id") not in {None, row["merchant_id"]} else row["validation"]
