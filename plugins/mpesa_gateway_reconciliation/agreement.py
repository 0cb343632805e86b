"""Comparison of today's statements with the gateway's payments."""

from collections.abc import Sequence
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
    SELECT kind, subject_kind, amount_cents,
        CASE WHEN note.transaction_id IS NULL THEN amount_cents ELSE note.amount * 100::bigint END AS shown_cents,
        subject_kind IS NULL AND set_aside_at IS NOT NULL AS is_dismissed,
        CASE WHEN subject_kind IS NOT NULL OR first_source <> 'pull' THEN true ELSE is_to_us END AS is_incoming
    FROM transaction LEFT JOIN statement_note AS note USING (transaction_id)
    WHERE direction = 'in' AND transaction_id = ANY (ARRAY(
        SELECT transaction_id FROM reconciliation_line WHERE run_id = ANY($1::uuid[])))
)
SELECT kind, is_incoming, coalesce(sum(shown_cents), 0)::bigint AS amount,
    count(*) FILTER (WHERE shown_cents IS NULL) AS unreadable,
    count(*) FILTER (WHERE subject_kind IS NULL AND NOT is_dismissed) AS unmatched,
    count(*) FILTER (WHERE is_dismissed) AS dismissed,
    coalesce(sum(shown_cents) FILTER (WHERE is_dismissed), 0)::bigint AS dismissed_amount,
    coalesce(sum(amount_cents) FILTER (WHERE subject_kind IS NOT NULL), 0)::bigint AS matched_amount,
    coalesce(sum(amount_cents) FILTER (WHERE subject_kind IS NOT NULL AND shown_cents IS NULL), 0)::bigint
        AS uncompared_amount
FROM line GROUP BY kind, is_incoming
"""
"""Lines by type. ``is_incoming`` is None if only the type can show the direction."""

MISSING_ON_STATEMENT = """
SELECT count(*) AS payments, coalesce(sum(cents), 0)::bigint / 100 AS amount
FROM (
    SELECT amount_cents AS cents
    FROM payment JOIN transaction ON subject_id = payment_id AND subject_kind = 'payment' AND direction = 'in'
    WHERE payment.merchant_id = $1 AND payment.env = $2 AND payment_id >= $3 AND receiver_id = $4
        AND occurred_at >= $5 AND occurred_at < $6
        AND NOT EXISTS (
            SELECT 1 FROM reconciliation_line AS line WHERE line.transaction_id = transaction.transaction_id)
    UNION ALL
    SELECT payment.amount * 100::bigint
    FROM payment JOIN shortcode USING (shortcode_id)
    WHERE payment.merchant_id = $1 AND payment.env = $2 AND payment_id >= $7 AND receiver_id = $4
        AND receipt IS NULL AND payment.status IN ('completed', 'reversed', 'partially_reversed')
        AND completed_at >= $5 AND completed_at < $6
) AS missing
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


async def read_agreements(db: Database, merchant_id: str, env: Env, now: datetime) -> list[Agreement]:
    """Return today's comparison (East Africa Time) for each shortcode with a completed run."""
    today = now.astimezone(EAT).replace(hour=0, minute=0, second=0, microsecond=0)
    runs: list[Found] = await db.run(
        RunRow.select()
        .where(
            RunRow.merchant_id == merchant_id,
            RunRow.env == env,
            RunRow.run_id >= Ids.least("run", today),
            RunRow.status.is_in(["completed", "failed"]),
        )
        .order_by(RunRow.window_start)
    )
    by_shortcode: dict[str, list[Found]] = {}
    for run in runs:
        by_shortcode.setdefault(run["shortcode"], []).append(run)
    found: list[Agreement] = []
    for each in by_shortcode.values():
        completed = [run for run in each if run["status"] == "completed"]
        if completed:
            last = max(each, key=_finished_at)
            found.append(await _compare(db, env, completed, last_failed=last["status"] == "failed"))
    return found


def _finished_at(run: Found) -> datetime:
    found: datetime = run["finished_at"]
    return found


async def _compare(db: Database, env: Env, runs: Sequence[Found], *, last_failed: bool) -> Agreement:
    first, since, until = runs[0], runs[0]["window_start"], max(run["window_end"] for run in runs)
    lines = await db.fetch(STATEMENT_SUMS, [run["run_id"] for run in runs])
    shown = [line for line in lines if _is_incoming(line)]
    missing = await db.fetchrow(
        MISSING_ON_STATEMENT,
        first["merchant_id"],
        env,
        Ids.least("pay", since - _LONGEST_PAYMENT),
        first["receiver_id"],
        since,
        until,
        Ids.least("pay", since - _LONGEST_QUERIED),
    )
    if missing is None:
        raise RuntimeError("an aggregate returned no row")
    return Agreement(
        merchant_id=first["merchant_id"],
        shortcode=first["shortcode"],
        since=since,
        until=until,
        read_at=max(map(_finished_at, runs)),
        statement=_sum(shown, "amount") // 100,
        gateway=_sum(shown, "matched_amount") // 100 + missing["amount"],
        unmatched=_sum(shown, "unmatched"),
        dismissed=_sum(lines, "dismissed"),
        dismissed_amount=_sum(shown, "dismissed_amount") // 100,
        unreadable=_sum(shown, "unreadable"),
        unproven=_sum([line for line in lines if not _is_incoming(line)], "unmatched"),
        uncompared=_sum(shown, "uncompared_amount") // 100,
        missing=missing["payments"],
        gaps=gaps_of([(run["window_start"], run["window_end"]) for run in runs]),
        last_failed=last_failed,
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
