"""What always holds between merchants and their credentials, besides what Postgres itself refuses."""

from mpesa_gateway.doctor.invariant import Invariant

INVARIANTS = (
    Invariant(
        name="env_is_the_merchants",
        sentence="A merchant is of the environment that its stored credentials are for",
        sql="""
            SELECT merchant_id FROM merchant LEFT JOIN provider_credentials USING (merchant_id)
            WHERE merchant.env <> COALESCE(provider_credentials.env, 'sandbox')
        """,
    ),
)
