"""Piccolo tables and named queries of the simulator."""

from piccolo.columns import BigInt, BigSerial, Boolean, DoublePrecision, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.named import Named


class PushRow(Table, tablename="sim_push"):
    """One prompt on one phone."""

    checkout_request_id = Text(primary_key=True)
    merchant_request_id = Text()
    shortcode = Text()
    receiver = Text()
    phone = Text()
    amount = Integer()
    reference = Text()
    description = Text()
    callback_url = Text()
    behaviour = Text()
    state = Text()
    result_code = Text(null=True, default=None)
    receipt = Text(null=True, default=None)
    created_at = Timestamptz()
    ends_at = Timestamptz()
    ended_at = Timestamptz(null=True, default=None)


class CallbackRow(Table, tablename="sim_callback"):
    """A callback, due or posted."""

    callback_id = BigInt(primary_key=True)
    checkout_request_id = Text()
    body = Text()
    encoding = Text()
    due_at = Timestamptz(null=True, default=None)
    tries = Integer()
    last_status = Integer(null=True, default=None)
    answered_at = Timestamptz(null=True, default=None)


class ResultRow(Table, tablename="sim_result"):
    """A result of a status query or a reversal, due or posted."""

    result_id = BigSerial(primary_key=True)
    operation = Text()
    originator_conversation_id = Text()
    callback_url = Text()
    body = Text()
    encoding = Text()
    due_at = Timestamptz(null=True, default=None)
    tries = Integer()
    last_status = Integer(null=True, default=None)
    answered_at = Timestamptz(null=True, default=None)


class ReversalRow(Table, tablename="sim_reversal"):
    """Money that was returned."""

    receipt = Text(primary_key=True)
    original = Text()
    amount = Integer()
    originator_conversation_id = Text()
    at = Timestamptz()


class TransactionRow(Table, tablename="sim_transaction"):
    """Money that moved: the truth that tests compare the gateway with."""

    receipt = Text(primary_key=True)
    checkout_request_id = Text(null=True, default=None)
    phone = Text()
    amount = Integer()
    shortcode = Text()
    reference = Text()
    at = Timestamptz()
    kind = Text()
    party = Text()
    payer_shown = Text()
    time_shown = Text()
    skew = Integer()
    meant_for = Text(null=True, default=None)
    is_out = Boolean()


class C2bRegistrationRow(Table, tablename="sim_c2b_registration"):
    """The C2B addresses of a shortcode."""

    shortcode = Text(primary_key=True)
    version = Text()
    response_type = Text()
    confirmation_url = Text()
    validation_url = Text()
    registered_at = Timestamptz()


class C2bPaymentRow(Table, tablename="sim_c2b_payment"):
    """A payment without a prompt; ``manner`` is JSON."""

    receipt = Text(primary_key=True)
    phone = Text()
    amount = Integer()
    shortcode = Text()
    account_number = Text()
    kind = Text()
    manner = Text()
    state = Text()
    code = Text(null=True, default=None)
    created_at = Timestamptz()
    due_at = Timestamptz(null=True, default=None)
    ended_at = Timestamptz(null=True, default=None)


class FaultRow(Table, tablename="sim_fault"):
    """The fault for the next requests of an operation."""

    operation = Text(primary_key=True)
    fault = Text()
    remaining = Integer()


class KnobRow(Table, tablename="sim_knob"):
    """A changed delay or other number."""

    name = Text(primary_key=True)
    value = DoublePrecision()


class HabitRow(Table, tablename="sim_habit"):
    """The habit of an operation."""

    operation = Text(primary_key=True)
    habit = Text()


class HandRow(Table, tablename="sim_hand"):
    """A phone that is answered by hand. Its balance is ``opening`` less its payments."""

    phone = Text(primary_key=True)
    style = Text()
    opening = BigInt()


class RegistrationRow(Table, tablename="sim_registration"):
    """A shortcode with Pull enabled."""

    shortcode = Text(primary_key=True)
    registered_at = Timestamptz()


# raw SQL: lock - one process ends a prompt, reverses or calls back.
DUE_PUSHES = """
SELECT * FROM sim_push WHERE state = 'open' AND ends_at <= $1 ORDER BY ends_at LIMIT 200 FOR UPDATE SKIP LOCKED
"""

LOCK_PUSH = "SELECT * FROM sim_push WHERE checkout_request_id = $1 FOR UPDATE"

LOCK_TRANSACTION = "SELECT * FROM sim_transaction WHERE receipt = $1 FOR UPDATE"

CLAIM_CALLBACKS = """
UPDATE sim_callback SET due_at = $2, tries = tries + 1
FROM sim_push
WHERE sim_push.checkout_request_id = sim_callback.checkout_request_id AND callback_id IN (
    SELECT callback_id FROM sim_callback WHERE due_at <= $1 ORDER BY due_at LIMIT 100 FOR UPDATE SKIP LOCKED
)
RETURNING sim_callback.callback_id, sim_callback.body, sim_callback.encoding, sim_callback.tries,
    sim_push.callback_url
"""

CLAIM_RESULTS = """
UPDATE sim_result SET due_at = CASE WHEN operation <> 'c2bconfirmation' THEN $2::timestamptz END, tries = tries + 1
WHERE result_id IN (
    SELECT result_id FROM sim_result WHERE due_at <= $1 ORDER BY due_at LIMIT 100 FOR UPDATE SKIP LOCKED
)
RETURNING result_id, operation, body, encoding, tries, callback_url
"""
"""A confirmation is sent once: a crash loses it."""

CLAIM_C2B = """
UPDATE sim_c2b_payment SET due_at = $2
WHERE receipt IN (
    SELECT receipt FROM sim_c2b_payment WHERE due_at <= $1 ORDER BY due_at LIMIT 50 FOR UPDATE SKIP LOCKED
)
RETURNING *
"""

# raw SQL: hot path - each request, push and callback of a benchmark.
PUT_TOKEN = """
WITH expired AS (DELETE FROM sim_token WHERE consumer_key = $1 AND expires_at <= $4)
INSERT INTO sim_token (consumer_key, token, expires_at) VALUES ($1, $2, $3)
"""  # noqa: S105 - a query

HAS_TOKEN = """
SELECT EXISTS (SELECT 1 FROM sim_token AS shown WHERE token = $1 AND expires_at > $2 AND NOT ($3 AND EXISTS (
    SELECT 1 FROM sim_token AS newer WHERE newer.consumer_key = shown.consumer_key AND newer.number > shown.number)))
"""  # noqa: S105 - a query
"""``$3``: a new token ends the others of its consumer key."""

TAKE_FAULT = """
UPDATE sim_fault SET remaining = remaining - 1 WHERE operation = $1 AND remaining > 0 RETURNING fault
"""

KNOB = "SELECT value FROM sim_knob WHERE name = $1"

HABIT = "SELECT habit FROM sim_habit WHERE operation = $1"

STYLE = "SELECT style FROM sim_hand WHERE phone = $1"

NEXT_RECEIPTS = """
SELECT seed, nextval(CASE WHEN seed IS NULL THEN 'sim_receipt' ELSE 'sim_chance' END::regclass) AS number
FROM (SELECT COALESCE((SELECT value FROM sim_knob WHERE name = 'seed'), $1::double precision) AS seed) AS chosen,
    generate_series(1, $2)
"""

HAS_OPEN = "SELECT EXISTS (SELECT 1 FROM sim_push WHERE phone = $1 AND state = 'open')"

INSERT_PUSH = Named("""
INSERT INTO sim_push (checkout_request_id, merchant_request_id, shortcode, receiver, phone, amount, reference,
    description, callback_url, behaviour, created_at, ends_at)
VALUES ($checkout_request_id, $merchant_request_id, $shortcode, $receiver, $phone, $amount, $reference, $description,
    $callback_url, $behaviour, $created_at, $ends_at)
ON CONFLICT (checkout_request_id) DO NOTHING
RETURNING true
""")

FIND = "SELECT * FROM sim_push WHERE checkout_request_id = $1"

END_PUSH = """
UPDATE sim_push SET state = 'ended', result_code = $2, receipt = $3, ended_at = $4
WHERE checkout_request_id = $1 AND state = 'open'
"""

INSERT_TRANSACTION = Named("""
INSERT INTO sim_transaction (receipt, checkout_request_id, phone, amount, shortcode, reference, at, kind, party,
    payer_shown, time_shown, skew, meant_for, is_out)
VALUES ($receipt, $checkout_request_id, $phone, $amount, $shortcode, $reference, $at, $kind, $party, $payer_shown,
    $time_shown, $skew, $meant_for, $is_out)
""")

INSERT_CALLBACK = (
    "INSERT INTO sim_callback (checkout_request_id, body, encoding, due_at) VALUES ($1, $2, $3, $4) "
    "RETURNING callback_id"
)

ANSWERED = "UPDATE sim_callback SET due_at = $2, last_status = $3, answered_at = $4 WHERE callback_id = $1"

NEXT_DUE = """
SELECT LEAST((SELECT min(ends_at) FROM sim_push WHERE state = 'open'),
             (SELECT min(due_at) FROM sim_callback WHERE due_at IS NOT NULL),
             (SELECT min(due_at) FROM sim_result WHERE due_at IS NOT NULL),
             (SELECT min(due_at) FROM sim_c2b_payment WHERE due_at IS NOT NULL))
"""

# raw SQL: aggregate - sums of money.
SPENT = """
SELECT COALESCE((SELECT sum(amount) FROM sim_transaction WHERE phone = $1 AND NOT is_out), 0)
    - COALESCE((SELECT sum(sim_reversal.amount) FROM sim_reversal
        JOIN sim_transaction ON sim_transaction.receipt = sim_reversal.original WHERE phone = $1), 0)
"""

RETURNED = "SELECT COALESCE(sum(amount), 0) FROM sim_reversal WHERE original = $1"

HELD = """
SELECT COALESCE(sum(CASE WHEN is_out THEN -amount ELSE amount END), 0)
    - (SELECT COALESCE(sum(back.amount), 0) FROM sim_reversal AS back
        JOIN sim_transaction AS came ON came.receipt = back.original WHERE came.shortcode = $1 AND back.at <= $2)
FROM sim_transaction WHERE shortcode = $1 AND at <= $2
"""
"""The money of a shortcode at a time, in KES."""

LEDGER = """
SELECT receipt, checkout_request_id, phone, amount, shortcode, reference, at, kind,
    (SELECT COALESCE(sum(amount), 0) FROM sim_reversal WHERE original = sim_transaction.receipt) AS returned
FROM sim_transaction WHERE ($1::text IS NULL OR phone = $1) AND at <= $3 ORDER BY at DESC LIMIT $2
"""

# raw SQL: join - Piccolo joins by foreign keys only.
FIND_CALLBACK = """
SELECT sim_callback.callback_id, body, encoding, tries, callback_url
FROM sim_callback JOIN sim_push USING (checkout_request_id)
WHERE checkout_request_id = $1 ORDER BY callback_id LIMIT 1
"""

FIND_REVERSAL = """
SELECT back.*, came.phone, came.shortcode FROM sim_reversal AS back
JOIN sim_transaction AS came ON came.receipt = back.original
WHERE back.originator_conversation_id = $1 OR back.receipt = $2
"""

MESSAGES = """
(SELECT at, '0' AS result_code, receipt, amount, shortcode AS receiver, reference, NULL AS original
    FROM sim_transaction WHERE phone = $1 AND NOT is_out ORDER BY at DESC LIMIT $2)
UNION ALL
(SELECT ended_at, result_code, NULL, amount, receiver, reference, NULL
    FROM sim_push WHERE phone = $1 AND state = 'ended' AND result_code <> '0' ORDER BY ended_at DESC LIMIT $2)
UNION ALL
(SELECT ended_at, 'C2B:' || code, NULL, amount, shortcode, account_number, NULL
    FROM sim_c2b_payment WHERE phone = $1 AND state = 'refused' ORDER BY created_at DESC LIMIT $2)
UNION ALL
(SELECT sim_reversal.at, 'reversed', sim_reversal.receipt, sim_reversal.amount, shortcode, reference, original
    FROM sim_reversal JOIN sim_transaction ON sim_transaction.receipt = original WHERE phone = $1
    ORDER BY sim_reversal.at DESC LIMIT $2)
ORDER BY at DESC LIMIT $2
"""

STATEMENT = """
SELECT * FROM (
    SELECT moved.receipt, moved.phone, moved.amount, moved.reference, moved.at, moved.kind, moved.party,
        moved.payer_shown, moved.time_shown, moved.skew,
        moved.kind = 'buy_goods' OR COALESCE(push.receiver <> push.shortcode, false) AS is_till
    FROM sim_transaction AS moved LEFT JOIN sim_push AS push USING (checkout_request_id)
    WHERE moved.shortcode = $1 AND moved.at BETWEEN $2 AND $3
    UNION ALL
    SELECT back.receipt, came.phone, back.amount, came.reference, back.at, 'reversal', '', came.payer_shown,
        came.time_shown, 0, came.kind = 'buy_goods'
    FROM sim_reversal AS back JOIN sim_transaction AS came ON came.receipt = back.original
    WHERE came.shortcode = $1 AND back.at BETWEEN $2 AND $3 AND $6
) AS line
ORDER BY at, receipt OFFSET $4 LIMIT $5
"""
"""``$6``: reversals through the API are shown."""
