"""Protects write speed: each index is used by a statement of the product."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.keyset import Conditions, KeysetList
from mpesa_gateway.db.named import Named
from mpesa_gateway.db.outbox_admin import EVENTS
from mpesa_gateway.security.audit import ENTRIES
from mpesa_gateway_c2b.account_tables import ACCOUNTS
from mpesa_gateway_callbacks import tables as callbacks
from mpesa_gateway_payments.listing import PAYMENTS
from mpesa_gateway_payments.tables import NEEDS_REVIEW
from mpesa_gateway_reconciliation import tables as reconciliation
from mpesa_gateway_reconciliation.operator_service import LINES
from mpesa_gateway_refunds.listing import REFUNDS
from mpesa_gateway_transactions.listing import TRANSACTIONS
from mpesa_gateway_webhooks import tables as webhooks
from mpesa_gateway_webhooks.tables import DELIVERIES
from tests.house.tree import ROOT, parsed, shipped_modules

pytestmark = pytest.mark.as_owner

BUILT: dict[str, str] = {
    "merchant_live": "partial: whether any merchant has live credentials, which is its condition",
    "ops_note_created": "notes that have been kept long enough, by the builder",
    "payment_stats_counted": "the newest count, by the builder",
    "ops_session_person": "a person's sessions, by the builder",
    "transaction_returns": "whether money has been linked to its reversal, by the builder",
    "api_key_maker": "a person's keys, by the builder",
    "person_invitation_merchant": "the open invitations of a merchant, by the builder",
    "refused_callback_became": "foreign key: a callback is deleted once no refused one names it",
    "refused_callback_of_strangers": "partial: the rejected callbacks over the limit, in order",
    "shortcode_to_wipe": "retired shortcodes whose secrets are due to be wiped, by the builder",
    "sim_c2b_payment_created": "the simulator's newest payments without a prompt, by the builder",
    "sim_c2b_payment_phone": "a phone's payments without a prompt, by the builder",
    "sim_push_created": "the simulator's newest pushes, by the builder",
    "sim_result_confirmation": "the confirmation of a receipt, by the builder",
    "statement_note_payer": "answers with an erased payer, by the builder",
    "status_check_originator": "LOCK_CHECK_BY_HANDLE, planned with a known handle",
}
"""Indexes that no generic plan of a constant statement uses, and the statement built at run time that does."""

FILTERS: tuple[tuple[KeysetList, str], ...] = (
    (PAYMENTS, "status = ''"),
    (PAYMENTS, "shortcode = ''"),
    (PAYMENTS, "reverse(phone) = ''"),
    (PAYMENTS, "reference = '' AND NOT reference_is_ours"),
    (PAYMENTS, "amount = 1"),
    (PAYMENTS, "metadata <> '{{}}' AND payment_metadata(merchant_id, env, metadata) @> ARRAY[md5('')::uuid]"),
    (PAYMENTS, NEEDS_REVIEW),
    (ACCOUNTS, "is_active"),
    (REFUNDS, "status = ''"),
    (REFUNDS, "payment_id = gen_random_uuid()"),
    (REFUNDS, "transaction_id = gen_random_uuid()"),
    (REFUNDS, "attention IS NOT NULL"),
    (TRANSACTIONS, "direction = 'out'"),
    (TRANSACTIONS, "category = 'c2b'"),
    (TRANSACTIONS, "subject_id IS NULL"),
    (TRANSACTIONS, "receiver_id = gen_random_uuid()"),
    (TRANSACTIONS, "amount_cents = 1"),
    (TRANSACTIONS, "payer = ANY('{{}}')"),
    (TRANSACTIONS, "payer_digest = ''"),
    (TRANSACTIONS, "upper(account_number) = ''"),
    (DELIVERIES, "status = ''"),
    (DELIVERIES, "event_type = ''"),
    (DELIVERIES, webhooks.ABOUT.format("gen_random_uuid()")),
    (ENTRIES, "merchant_id = ''"),
    (ENTRIES, "action = ''"),
    (ENTRIES, "subject_id = ''"),
    (EVENTS, "is_public"),
    (EVENTS, "is_public AND kind = ''"),
    (callbacks.ACCEPTED, "verdict <> 'applied'"),
    (callbacks.REFUSED, callbacks.UNREAD),
    (LINES, reconciliation.UNRESOLVED),
    (reconciliation.RUN_LINES, "run_id = '' AND reconciliation_line.finding = ''"),
)
"""The filters of lists, one at a time."""

INDEXES = """
SELECT index.oid::regclass::text AS name, indrelid::regclass::text AS of_table
FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid
WHERE relnamespace = current_schema()::regnamespace AND NOT indisunique AND NOT relispartition
ORDER BY name
"""

OTHERS = """
SELECT indexrelid::regclass::text AS name FROM pg_index
WHERE indrelid = $1::text::regclass AND indexrelid <> $2::text::regclass
    AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid)
"""

PARTS = """
SELECT $1::text AS name
UNION SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::text::regclass
"""

_STATEMENT = re.compile(r"\s*(SELECT|WITH|UPDATE|DELETE|INSERT)\b.*\b(FROM|INTO|SET)\b", re.DOTALL)


def written() -> Iterator[str]:
    """Yield every statement of the product: constants of its modules and texts in its functions."""
    for path in shipped_modules():
        values: list[Any] = [node.value for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant)]
        if "SELECT" in path.read_text(encoding="utf-8"):
            module = path.relative_to(ROOT / "plugins" if "plugins" in path.parts else ROOT).with_suffix("")
            values += vars(importlib.import_module(".".join(module.parts))).values()
        for value in values:
            text = value.sql if isinstance(value, Named) else value
            if isinstance(text, str) and _STATEMENT.match(text):
                yield text


def listed() -> Iterator[str]:
    """Yield every list, for one merchant and for all, without a filter and with each."""
    lists = dict.fromkeys(listing for listing, _ in FILTERS) | {reconciliation.RUNS: None}
    for listing, text in [*FILTERS, *((listing, "true") for listing in lists)]:
        for merchant_id in ("mer_1", None) if listing.of_merchants else (None,):
            found = Conditions("live", merchant_id)
            found.add(text)
            yield listing.select(found, 50)[0]


EXPLAINED = """
CREATE FUNCTION pg_temp.explained(statement text) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (GENERIC_PLAN, FORMAT JSON) ' || statement INTO plan;
    RETURN plan;
EXCEPTION WHEN others THEN
    RETURN NULL;
END
$$
"""
"""The plan of a statement with parameters; asyncpg would require their values."""


async def used_by(connection: "asyncpg.Connection[Any]", sql: str) -> set[str] | None:
    """Return the indexes in a statement's plan, or None for an incomplete statement."""
    plan = await connection.fetchval("SELECT pg_temp.explained($1)", sql)
    return None if plan is None else set(_indexes(json.loads(plan)[0]["Plan"]))


def _indexes(node: dict[str, Any], *, is_limited: bool = False) -> Iterator[str]:
    """Yield indexes used for a condition or in order up to a limit, without full index scans."""
    if "Index Name" in node and ("Index Cond" in node or is_limited):
        yield node["Index Name"]
    for inner in node.get("Plans", ()):
        yield from _indexes(inner, is_limited=node["Node Type"] == "Limit")


async def can_be_used(connection: "asyncpg.Connection[Any]", name: str, table: str, statements: list[str]) -> bool:
    """Return True if a statement is planned with the index while the table has no other except its constraints'."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        for other in await connection.fetch(OTHERS, table, name):
            await connection.execute(f"DROP INDEX {other['name']}")
        # Plans on a partitioned table name the indexes of its partitions.
        names = {row["name"] for row in await connection.fetch(PARTS, name)}
        for sql in statements:
            if re.search(rf"\b{table}\b", sql) and names & (await used_by(connection, sql) or set()):
                return True
        return False
    finally:
        await transaction.rollback()


async def test_indexes_are_each_used_by_a_statement(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        connection = await gateway.db.connect()
        try:
            await connection.execute(EXPLAINED)
            # Postgres reads small tables whole.
            await connection.execute("SET enable_seqscan = off")
            plans = {sql: await used_by(connection, sql) for sql in sorted({*written(), *listed()})}
            statements = [sql for sql, used in plans.items() if used is not None]
            assert len(statements) > 150
            used = {name for names in plans.values() for name in names or ()}
            unused = {
                row["name"]
                for row in await connection.fetch(INDEXES)
                if not used & {part["name"] for part in await connection.fetch(PARTS, row["name"])}
                and not await can_be_used(connection, row["name"], row["of_table"], statements)
            }
            surprising = sorted(unused ^ set(BUILT))
            assert not surprising, " ".join(surprising)
            # Counter-test: an index without a statement is found.
            await connection.execute("CREATE INDEX payment_useless ON payment (description)")
            assert not await can_be_used(connection, "payment_useless", "payment", statements)
        finally:
            await connection.close()


WITHOUT_STATISTICS = {
    "payment_metadata_value": "an array: Postgres has no statistics of what it contains, and the search says it twice",
    "payment_step_change": "a unique index: no query compares the expression",
    "reconciliation_run_one_at_a_time": "a unique index: no query compares the expression",
    "statement_note_unresolved": "an order: no query compares the expression",
}
"""Expressions of partial indexes that need no statistics, and why."""

GUESSED = """
SELECT indexrelid::regclass::text AS name FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
WHERE relnamespace = current_schema()::regnamespace AND indexprs IS NOT NULL AND indpred IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM pg_statistic_ext WHERE stxrelid = indrelid
        AND pg_get_expr(indexprs, indrelid) = ANY(pg_get_statisticsobjdef_expressions(pg_statistic_ext.oid)))
ORDER BY 1
"""


async def test_expressions_of_partial_indexes_have_statistics(values: dict[str, Any]) -> None:
    """Postgres takes none from a partial index: it expects 0.5 % of all rows and prefers to read the whole table."""
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        found = {row["name"] for row in await gateway.db.fetch(GUESSED)}
    assert found == set(WITHOUT_STATISTICS)
