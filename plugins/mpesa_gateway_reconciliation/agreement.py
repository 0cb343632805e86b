"""Comparison of today's statements with the gateway's payments."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mpesa_gateway.clock import EAT
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.env import Env
from mpesa_gateway.ids import Ids
from mpesa_gateway_reconciliation.tables import RunRow

_LONGEST_PAYMENT = timedelta(hours=1)
"""Payers answer a prompt within minutes."""

# raw SQL: aggregate
STATEMENT_SUMS = """
SELECT count(*) AS lines, coalesce(sum(amount_cents), 0)::bigint / 100 AS amount,
    count(*) FILTER (WHERE amount_cents IS NULL) AS unreadable,
    count(*) FILTER (WHERE subject_kind IS NULL AND set_aside_at IS NULL) AS unmatched,
    count(*) FILTER (WHERE subject_kind IS NULL AND set_aside_at IS NOT NULL) AS dismissed,
    coalesce(sum(amount_cents) FILTER (WHERE subject_kind IS NULL AND set_aside_at IS NOT NULL), 0)::bigint / 100
        AS dismissed_amount,
    coalesce(sum(amount_cents) FILTER (WHERE subject_kind IS NOT NULL), 0)::bigint / 100 AS matched_amount
FROM transaction LEFT JOIN statement_note USING (transaction_id) WHERE direction = 'in' AND transaction_id = ANY (ARRAY(
    SELECT transaction_id FROM reconciliation_line WHERE run_id = ANY($1::uuid[])))
"""

MISSING_ON_STATEMENT = """
SELECT count(*) AS payments, coalesce(sum(amount_cents), 0)::bigint / 100 AS amount
FROM payment JOIN transaction ON subject_id = payment_id AND direction = 'in'
WHERE payment.merchant_id = $1 AND payment.env = $2 AND payment_id >= $3 AND receiver_id = $4
    AND occurred_at >= $5 AND occurred_at < $6
    AND NOT EXISTS (SELECT 1 FROM reconciliation_line AS line WHERE line.transaction_id = transaction.transaction_id)
"""
"""Payments without a line on their window's statement."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Today's statements of a shortcode compared with the gateway.

    Amounts are in KES. ``missing`` counts payments without a line; ``gaps`` are times between windows.
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
    missing: int
    gaps: Sequence[tuple[datetime, datetime]]
    last_failed: bool

    @property
    def state(self) -> str:
        """``agrees``: the same money, and nothing unknown.

        ``explained``: dismissed lines account for the difference.
        """
        if self.unmatched or self.missing or self.statement - self.dismissed_amount != self.gateway:
            return "differs"
        if self.unreadable or self.gaps or self.last_failed:
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
    shown = await db.fetchrow(STATEMENT_SUMS, [run["run_id"] for run in runs])
    oldest = Ids.least("pay", since - _LONGEST_PAYMENT)
    missing = await db.fetchrow(
        MISSING_ON_STATEMENT, first["merchant_id"], env, oldest, first["receiver_id"], since, until
    )
    if shown is None or missing is None:
        raise RuntimeError("an aggregate returned no row")
    return Agreement(
        merchant_id=first["merchant_id"],
        shortcode=first["shortcode"],
        since=since,
        until=until,
        read_at=max(map(_finished_at, runs)),
        statement=shown["amount"],
        gateway=shown["matched_amount"] + missing["amount"],
        unmatched=shown["unmatched"],
        dismissed=shown["dismissed"],
        dismissed_amount=shown["dismissed_amount"],
        unreadable=shown["unreadable"],
        missing=missing["payments"],
        gaps=gaps_of([(run["window_start"], run["window_end"]) for run in runs]),
        last_failed=last_failed,
    )


def gaps_of(windows: Sequence[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Return the times that no window covers; ``windows`` are ordered by start."""
    found: list[tuple[datetime, datetime]] = []
    reached = windows[0][1]
    for start, end in windows[1:]:
        if start > reached:
            found.append((reached, start))
        reached = max(reached, end)
    return found
