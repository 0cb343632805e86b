"""Comparison of today's statements with the gateway's payments."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mpesa_gateway.clock import EAT
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.env import Env
from mpesa_gateway.ids import Ids
from mpesa_gateway_payments.api import Direction, read_kind
from mpesa_gateway_reconciliation.tables import RunRow

_LONGEST_PAYMENT = timedelta(hours=1)
"""Payers answer a prompt within minutes."""

_LONGEST_QUERIED = timedelta(days=3)
"""Expired payments are queried for two days by default."""

# raw SQL: aggregate
STATEMENT_SUMS = """
WITH line AS (
    SELECT number, kind, is_settled, amount_cents,
        CASE WHEN note.transaction_id IS NULL THEN amount_cents ELSE note.amount * 100::bigint END AS shown_cents,
        NOT is_settled AND dismissed_at IS NOT NULL AS is_dismissed,
        CASE WHEN is_settled OR first_source <> 'pull' THEN true ELSE is_to_us END AS is_incoming
    FROM (SELECT DISTINCT number, transaction_id FROM unnest($1::uuid[], $2::int[]) AS run (run_id, number)
            JOIN reconciliation_line USING (run_id)) AS listed
        JOIN transaction USING (transaction_id) LEFT JOIN statement_note AS note USING (transaction_id)
    WHERE direction = 'in'
)
SELECT number, kind, is_incoming, coalesce(sum(shown_cents), 0)::bigint AS amount,
    count(*) FILTER (WHERE shown_cents IS NULL) AS unreadable,
    count(*) FILTER (WHERE NOT is_settled AND NOT is_dismissed) AS unmatched,
    count(*) FILTER (WHERE is_dismissed) AS dismissed,
    coalesce(sum(shown_cents) FILTER (WHERE is_dismissed), 0)::bigint AS dismissed_amount,
    coalesce(sum(amount_cents) FILTER (WHERE is_settled), 0)::bigint AS matched_amount,
    coalesce(sum(amount_cents) FILTER (WHERE is_settled AND shown_cents IS NULL), 0)::bigint
        AS uncompared_amount
FROM line GROUP BY number, kind, is_incoming
"""
"""Lines by the number of their shortcode and by type.

``is_incoming`` is None if only the type can show the direction.
"""

MISSING_ON_STATEMENT = """
SELECT count(cents) AS payments, coalesce(sum(cents), 0)::bigint / 100 AS amount
FROM unnest($1::uuid[], $3::uuid[], $4::timestamptz[], $5::timestamptz[])
        WITH ORDINALITY AS asked (merchant_id, receiver_id, since, until, number)
    LEFT JOIN LATERAL (
        SELECT amount_cents AS cents
        FROM payment JOIN transaction ON subject_id = payment_id AND subject_kind = 'payment' AND direction = 'in'
        WHERE payment.merchant_id = asked.merchant_id AND payment.env = $2 AND payment_id >= $6
            AND transaction.receiver_id = asked.receiver_id AND occurred_at >= since AND occurred_at < until
            AND NOT EXISTS (
                SELECT 1 FROM reconciliation_line AS line WHERE line.transaction_id = transaction.transaction_id)
        UNION ALL
        SELECT payment.amount * 100::bigint
        FROM payment JOIN shortcode USING (shortcode_id)
        WHERE payment.merchant_id = asked.merchant_id AND payment.env = $2 AND payment_id >= $7
            AND shortcode.receiver_id = asked.receiver_id AND receipt IS NULL
            AND payment.status IN ('completed', 'reversed', 'partially_reversed')
            AND completed_at >= since AND completed_at < until
    ) AS missing ON true
GROUP BY number ORDER BY number
"""
"""Payments without a line on their window's statement, and paid ones without a receipt, which no line can name."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Today's statements of a shortcode compared with the gateway.

    Amounts are in KES. ``missing`` counts payments without a line; ``gaps`` are times between windows. ``unproven``
    counts lines that may not be incoming money, which no amount includes. ``uncompared`` is the gateway's amount of the
    payments whose lines are unreadable.
    """

    merchant_id: str
    shortcode: str
    since: datetime
    until: datetime
    read_at: datetime
    statement: int
    gateway: int
    unmatched: int
    dismissed: int
    dismissed_amount: int
    unreadable: int
    unproven: int
    uncompared: int
    missing: int
    gaps: Sequence[tuple[datetime, datetime]]
    last_failed: bool

    @property
    def state(self) -> str:
        """``agrees``: the same money, and nothing unknown.

        ``explained``: dismissed lines account for the difference.
        """
        is_other = self.statement - self.dismissed_amount != self.gateway - self.uncompared
        if self.unmatched or self.missing or is_other:
            return "differs"
        if self.unreadable or self.unproven or self.gaps or self.last_failed:
            return "not known"
        return "explained" if self.dismissed else "agrees"


async def read_agreements(
    db: Database, merchant_ids: Collection[str], env: Env, now: datetime
) -> dict[str, list[Agreement]]:
    """Return today's comparison (East Africa Time) for each shortcode with a completed run, by merchant.

    The number of statements sent to Postgres does not depend on the number of merchants.
    """
    found: dict[str, list[Agreement]] = {merchant_id: [] for merchant_id in merchant_ids}
    today = now.astimezone(EAT).replace(hour=0, minute=0, second=0, microsecond=0)
    statements = await _read_statements(db, merchant_ids, env, today)
    if not statements:
        return found
    runs = [(run["run_id"], number) for number, each in enumerate(statements) for run in each.completed]
    lines = await db.fetch(STATEMENT_SUMS, [run_id for run_id, _ in runs], [number for _, number in runs])
    since = min(each.since for each in statements)
    missing = await db.fetch_planned(
        MISSING_ON_STATEMENT,
        [each.merchant_id for each in statements],
        env,
        [each.completed[0]["receiver_id"] for each in statements],
        [each.since for each in statements],
        [each.until for each in statements],
        Ids.least("pay", since - _LONGEST_PAYMENT),
        Ids.least("pay", since - _LONGEST_QUERIED),
    )
    for number, (statement, row) in enumerate(zip(statements, missing, strict=True)):
        own = [line for line in lines if line["number"] == number]
        found[statement.merchant_id].append(_compare(statement, own, row))
    return found


@dataclass(frozen=True)
class _Statement:
    """Today's ended runs of one shortcode, by the start of their windows."""

    completed: Sequence[Found]
    last_failed: bool

    @property
    def merchant_id(self) -> str:
        return str(self.completed[0]["merchant_id"])

    @property
    def since(self) -> datetime:
        since: datetime = self.completed[0]["window_start"]
        return since

    @property
    def until(self) -> datetime:
        until: datetime = max(run["window_end"] for run in self.completed)
        return until


async def _read_statements(db: Database, merchant_ids: Collection[str], env: Env, today: datetime) -> list[_Statement]:
    runs: list[Found] = (
        await db.run(
            RunRow.select()
            .where(
                RunRow.merchant_id.is_in(list(merchant_ids)),
                RunRow.env == env,
                RunRow.run_id >= Ids.least("run", today),
                RunRow.status.is_in(["completed", "failed"]),
            )
            .order_by(RunRow.window_start)
        )
        if merchant_ids
        else []
    )
    by_shortcode: dict[tuple[str, str], list[Found]] = {}
    for run in runs:
        by_shortcode.setdefault((run["merchant_id"], run["shortcode"]), []).append(run)
    return [
        _Statement(completed, max(each, key=_finished_at)["status"] == "failed")
        for each in by_shortcode.values()
        if (completed := [run for run in each if run["status"] == "completed"])
    ]


def _finished_at(run: Found) -> datetime:
    found: datetime = run["finished_at"]
    return found


def _compare(statement: _Statement, lines: Sequence[Row], missing: Row) -> Agreement:
    shown = [line for line in lines if _is_incoming(line)]
    return Agreement(
        merchant_id=statement.merchant_id,
        shortcode=statement.completed[0]["shortcode"],
        since=statement.since,
        until=statement.until,
        read_at=max(map(_finished_at, statement.completed)),
        statement=_sum(shown, "amount") // 100,
        gateway=_sum(shown, "matched_amount") // 100 + missing["amount"],
        unmatched=_sum(shown, "unmatched"),
        dismissed=_sum(lines, "dismissed"),
        dismissed_amount=_sum(shown, "dismissed_amount") // 100,
        unreadable=_sum(shown, "unreadable"),
        unproven=_sum([line for line in lines if not _is_incoming(line)], "unmatched"),
        uncompared=_sum(shown, "uncompared_amount") // 100,
        missing=missing["payments"],
        gaps=gaps_of([(run["window_start"], run["window_end"]) for run in statement.completed]),
        last_failed=statement.last_failed,
    )


def _is_incoming(line: Row) -> bool:
    known: bool | None = line["is_incoming"]
    return read_kind(line["kind"])[0] is Direction.IN if known is None else known


def _sum(lines: Sequence[Row], name: str) -> int:
    return sum(line[name] for line in lines)


def gaps_of(windows: Sequence[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Return the times that no window covers; ``windows`` are ordered by start."""
    found: list[tuple[datetime, datetime]] = []
    reached = windows[0][1]
    for start, end in windows[1:]:
        if start > reached:
            found.append((reached, start))
        reached = max(reached, end)
    return found
