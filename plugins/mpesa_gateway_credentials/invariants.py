"""Invariants of merchants and shortcodes that constraints cannot express."""

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.
INVARIANTS = (
    Invariant(
        name="envs_are_the_shortcodes",
        sentence="A merchant has exactly the envs that it has credentials for",
        sql="""
            SELECT merchant_id FROM merchant
            WHERE envs <> ARRAY(SELECT DISTINCT env FROM shortcode
                WHERE shortcode.merchant_id = merchant.merchant_id AND wiped_at IS NULL ORDER BY env)
        """,
    ),
    Invariant(
        name="active_shortcodes_have_a_default",
        sentence="A merchant with an active shortcode in an env has one default there",
        sql="""
            SELECT merchant_id FROM shortcode WHERE retired_at IS NULL
            GROUP BY merchant_id, env HAVING count(*) FILTER (WHERE is_default) <> 1
        """,
    ),
    Invariant(
        name="store_numbers_are_kept",
        sentence="The store number of a till is in its history",
        sql="""
            SELECT shortcode_id FROM shortcode WHERE store_number IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM store_number AS kept WHERE kept.env = shortcode.env
                    AND kept.number = store_number AND kept.receiver_id = shortcode.receiver_id
                    AND kept.merchant_id = shortcode.merchant_id)
        """,
    ),
    Invariant(
        name="owners_have_credentials",
        sentence="The owner of a receiver has, or had, a shortcode there",
        sql="""
            SELECT receiver_id FROM receiver WHERE owner_id IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM shortcode WHERE shortcode.receiver_id = receiver.receiver_id
                    AND shortcode.merchant_id = owner_id)
        """,
    ),
)
