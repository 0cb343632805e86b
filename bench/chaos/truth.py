"""The truth about money, from the simulator's ledger alone: which money was sent for which payment.

The model test, the chaos run and the soak share these queries. They are independent rules: no verifier calls the
product's matching code (tests/house/test_judges.py).
"""

FINAL = ("1", "2", "3", "4", "8", "17", "1001", "1025", "1031", "1032", "2001", "2028", "8006")
"""Result codes that are final about a push."""

OWN_REFERENCE = 12
"""Characters of a reference that only one payment has."""

_TRUTH = """
push AS (
    -- Tokens replace two letters, so that no address contains a word that M-Pesa filters.
    SELECT *,
        id_uuid('pay_' || translate(substring(callback_url FROM 'pay_([0-9a-z]{{26}})'), 'io', 'xm')) AS payment_id
    FROM sim_push
), paid AS (
    SELECT * FROM payment WHERE status IN ('completed', 'reversed', 'partially_reversed')
), made_for AS (
    -- The money of a payment's own push.
    SELECT push.payment_id, moved.receipt
    FROM sim_transaction moved JOIN push ON push.checkout_request_id = moved.checkout_request_id {same_world}
    UNION
    -- Money paid by hand, with an account number that no other push has.
    SELECT push.payment_id, moved.receipt
    FROM push JOIN sim_transaction moved ON moved.shortcode = push.receiver AND moved.amount = push.amount {same_world}
        AND upper(btrim(moved.reference)) = upper(btrim(push.reference))
    WHERE NOT moved.is_out AND moved.checkout_request_id IS NULL AND push.receiver = push.shortcode
        AND length(btrim(push.reference)) = {own_reference}
    UNION
    -- The same for a payment whose prompt never reached M-Pesa: the payer has its reference from the merchant.
    SELECT payment.payment_id, moved.receipt
    FROM payment JOIN sim_transaction moved ON moved.shortcode = payment.shortcode AND moved.amount = payment.amount
        {payment_world} AND upper(btrim(moved.reference)) = upper(btrim(payment.reference))
    WHERE NOT moved.is_out AND moved.checkout_request_id IS NULL AND length(btrim(payment.reference)) = {own_reference}
        AND NOT EXISTS (SELECT 1 FROM push WHERE push.payment_id = payment.payment_id)
    UNION
    -- Money of the same payer by hand, for the same amount and account, around the prompt: it cannot be distinguished
    -- from the prompted money, unless a final result said that the prompt was rejected.
    SELECT push.payment_id, moved.receipt
    FROM push JOIN payment ON payment.payment_id = push.payment_id
        JOIN sim_transaction moved ON moved.shortcode = push.receiver AND moved.phone = push.phone
            AND moved.amount = push.amount {same_world}
    WHERE NOT moved.is_out AND moved.checkout_request_id IS NULL
        AND moved.at BETWEEN push.created_at - interval '4 minutes' AND push.created_at + interval '17 minutes'
        AND (push.receiver <> push.shortcode OR upper(btrim(moved.reference)) = upper(btrim(push.reference)))
        AND NOT (push.result_code IN ({final}) AND EXISTS (
            SELECT 1 FROM sim_callback said WHERE said.checkout_request_id = push.checkout_request_id
                AND said.last_status = 200 AND said.answered_at < payment.completed_at))
), taken AS (
    -- Each receipt of a payment, and its true origin.
    SELECT paid.payment_id, paid.receipt, CASE
        WHEN EXISTS (SELECT 1 FROM made_for WHERE made_for.payment_id = paid.payment_id
            AND made_for.receipt = paid.receipt AND moved.amount = paid.amount) THEN 'right'
        WHEN EXISTS (SELECT 1 FROM sim_reversal back WHERE back.receipt = paid.receipt) THEN 'a reversal'
        WHEN moved.receipt IS NULL THEN 'nothing'
        WHEN {another_world} THEN 'the other world'
        WHEN moved.is_out THEN 'money that left'
        WHEN moved.checkout_request_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM push
            WHERE push.payment_id = paid.payment_id AND push.checkout_request_id = moved.checkout_request_id)
            THEN 'another payment'
        WHEN moved.amount <> paid.amount THEN 'another amount'
        ELSE 'a stranger' END AS is_of
    FROM paid LEFT JOIN sim_transaction moved ON moved.receipt = paid.receipt WHERE paid.receipt IS NOT NULL
)
"""

TAKEN: dict[str, str] = {
    "invented: paid with a receipt that M-Pesa never gave": "nothing",
    "invented: paid with a reversal": "a reversal",
    "invented: paid with money of the other world": "the other world",
    "invented: paid with money that left": "money that left",
    "invented: paid with another amount": "another amount",
    "doubled: paid with the money of another payment": "another payment",
    "invented: paid with money of another payer": "a stranger",
}
"""Each way in which money can be on the wrong payment, and its name in ``taken``."""

ONE_RECEIPT = "doubled: one receipt on two payments"

CHECKS: dict[str, str] = {
    sentence: f"SELECT payment_id FROM taken WHERE is_of = '{what}'"  # noqa: S608 - constants of this file
    for sentence, what in TAKEN.items()
} | {
    ONE_RECEIPT: """
        SELECT (array_agg(payment_id ORDER BY payment_id))[1] FROM payment WHERE receipt IS NOT NULL
        GROUP BY env, receipt HAVING count(*) > 1
    """
}
"""Queries that return no row at any moment, after `truth`."""


def truth(*, has_worlds: bool) -> str:
    """Return the common table expressions ``push``, ``paid``, ``made_for`` and ``taken``, without ``WITH``.

    ``has_worlds``: the simulator's tables have a column ``env``, as views over two simulators do.
    """
    return _TRUTH.format(
        same_world="AND moved.env = push.env" if has_worlds else "",
        payment_world="AND moved.env = payment.env" if has_worlds else "",
        another_world="moved.env <> paid.env" if has_worlds else "false",
        own_reference=OWN_REFERENCE,
        final=", ".join(f"'{code}'" for code in FINAL),
    )
