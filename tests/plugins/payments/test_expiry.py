"""Protects expiry and the due STK queries: they run per shortcode and do not depend on Daraja's answers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.testing.serving import Api, running_gateway, shop
from mpesa_gateway_payments import due_sql
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.daraja import Daraja, fault, stk_result
from tests.identifiers import identifiers

pytestmark = pytest.mark.as_owner

PHONE = "254711000001"


@dataclass(frozen=True)
class Shops:
    """A gateway without a worker, and its merchants."""

    gateway: Gateway
    expiry: Expiry
    queries: StkQueries
    apis: list[Api]

    async def pay(self, count: int, api: int = 0) -> list[str]:
        """Create payments whose prompts were acknowledged; returns their ids."""
        made = [await self.apis[api].pay(PHONE, 500, key=f"{api}-{number}") for number in range(count)]
        return [one.data["id"] for one in made]

    async def statuses(self) -> list[tuple[str, str | None]]:
        """The status and failure reason of each payment."""
        rows = await self.gateway.db.fetch("SELECT status, failure_reason FROM payment ORDER BY payment_id")
        return [tuple(row) for row in rows]

    async def set(self, what: str, *args: Any) -> None:
        """Update all payments."""
        await self.gateway.db.execute(f"UPDATE payment SET {what}", *args)  # noqa: S608 - the test's own SQL


@pytest.fixture
async def shops(values: dict[str, Any], daraja: Daraja) -> AsyncGenerator[Shops]:
    """Three merchants."""
    values |= {
        "worker": {"in_process": False},
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200, "max_concurrent_queries": 2},
    }
    async with running_gateway(values) as (gateway, base), AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(shop(gateway, base)) for _ in range(3)]
        yield Shops(gateway, gateway.services.get(Expiry), gateway.services.get(StkQueries), apis)


PAST = "expires_at = now() - interval '1 second'"


async def test_end_due_while_every_query_hangs_expires_payments(shops: Shops, daraja: Daraja) -> None:
    await shops.pay(3)
    daraja.hold("stkquery")
    await shops.set("due_at = now() - interval '1 second'")
    (first, *_) = await shortcodes(shops)
    asking = asyncio.create_task(shops.queries.query_due(first))
    await daraja.wait_for_requests("stkquery", 2)
    await shops.set(PAST)
    assert await shops.expiry.end_due() == 3
    assert await shops.statuses() == [("failed", "expired")] * 3
    kinds = await shops.gateway.db.fetch("SELECT kind FROM payment_step ORDER BY number DESC LIMIT 3")
    assert [row["kind"] for row in kinds] == ["expired"] * 3
    events = "SELECT count(*) FROM event WHERE kind = 'payment.failed'"
    assert await shops.gateway.db.fetchval(events) == 3
    assert await shops.expiry.end_due() == 0
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


TEN_THOUSAND = """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency, phone,
    reference, reference_is_ours, description, idempotency_key, status, charge, checkout_request_id, expires_at, due_at,
    created_at, updated_at)
SELECT id, merchant_id, 'sandbox', 'mpesa', shortcode, shortcode_id, 500, 'KES',
    '2547' || (22000000 + i)::text, 'ROW' || i, false, 'Payment', 'fill-' || i, 'pending',
    CASE WHEN i % 3 = 0 THEN 'released' ELSE 'accepted' END, CASE WHEN i % 3 = 0 THEN NULL ELSE 'ws_CO_fill_' || i END,
    now() - interval '1 second', now() - interval '1 second', now() - interval '20 minutes', now()
FROM payment CROSS JOIN unnest($1::uuid[], $2::integer[]) AS given(id, i)
WHERE idempotency_key = '0-0'
"""


async def test_end_due_of_500_payments_uses_as_many_statements_as_of_5(
    shops: Shops, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shops.pay(1)
    statements: list[str] = []
    for name in ("execute", "fetch", "fetchrow", "fetchval"):
        plain = getattr(asyncpg.Connection, name)

        async def run(connection: Any, query: str, *args: Any, _plain: Any = plain, **options: Any) -> Any:
            # The simulator runs at the same time and has tables of its own.
            if "payment" in query and "sim_" not in query:
                statements.append(query)
            return await _plain(connection, query, *args, **options)

        monkeypatch.setattr(asyncpg.Connection, name, run)
    counts: list[int] = []
    for begin, end in ((1, 5), (6, 504), (505, 10_504)):
        numbers = list(range(begin, end + 1))
        await shops.gateway.db.execute(TEN_THOUSAND, identifiers("pay", numbers), numbers)
        statements.clear()
        assert await shops.expiry.end_due() == end - begin + 1
        counts.append(len(statements))
    few, many, all_of_them = counts
    assert few == many
    # 500 payments in each transaction, and a last one that finds none.
    assert all_of_them <= 21 * few, counts
    found = await shops.gateway.db.fetch(
        """
        SELECT charge, payment.result_code, failure_reason, outcome_is_final, due_at - created_at AS again,
            count(*) AS payments, count(step.payment_id) AS steps, count(event_id) AS events
        FROM payment LEFT JOIN payment_step AS step ON step.payment_id = payment.payment_id AND kind = 'expired'
            AND step.result_code = payment.result_code
        LEFT JOIN event ON subject_id = payment.payment_id AND event.kind = 'payment.failed'
        WHERE status = 'failed' GROUP BY 1, 2, 3, 4, 5 ORDER BY charge
        """
    )
    assert [tuple(row) for row in found] == [
        ("accepted", "expired", "expired", False, timedelta(minutes=30), 7003, 7003, 7003),
        ("released", "unsent", "not_sent", True, None, 3501, 3501, 3501),
    ]


async def test_end_due_with_an_unconfirmed_success_marks_a_mismatch(shops: Shops) -> None:
    claimed, _ = await shops.pay(2)
    claim = 'claim = \'{"receipt": "TKN4A1B2C3"}\''
    await shops.gateway.db.execute(f"UPDATE payment SET {claim} WHERE payment_id = $1", claimed)  # noqa: S608 - the test's own SQL
    await shops.set(PAST)
    assert await shops.expiry.end_due() == 2
    rows = await shops.gateway.db.fetch("SELECT status, mismatch FROM payment ORDER BY payment_id")
    assert [tuple(row) for row in rows] == [("pending", "unconfirmed"), ("failed", None)]


async def test_end_due_skips_locked_payments_and_finds_them_later(shops: Shops) -> None:
    first, second = await shops.pay(2)
    await shops.set(PAST)
    held, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with shops.gateway.db.transaction():
            await shops.gateway.db.fetch("SELECT 1 FROM payment WHERE payment_id = $1 FOR UPDATE", first)
            held.set()
            await release.wait()

    holding = asyncio.create_task(hold())
    await held.wait()
    assert await shops.expiry.end_due() == 1
    assert await shops.gateway.db.fetchval("SELECT status FROM payment WHERE payment_id = $1", second) == "failed"
    release.set()
    await holding
    assert await shops.expiry.end_due() == 1


async def test_end_due_with_a_failing_payment_ends_the_others(shops: Shops) -> None:
    broken, *_ = await shops.pay(4)
    await shops.gateway.db.execute(
        f"ALTER TABLE payment ADD CONSTRAINT trap CHECK (status <> 'failed' OR payment_id <> id_uuid('{broken}'))"
    )
    await shops.set(PAST)
    await shops.expiry.end_due()
    assert await shops.statuses() == [("pending", None), *[("failed", "expired")] * 3]


async def test_end_due_of_an_unsent_payment_fails_it_as_not_sent(shops: Shops, daraja: Daraja) -> None:
    daraja.add_answers("stkpush", fault("500.003.02", "Error Occurred: Spike Arrest Violation"))
    unsent = await shops.apis[0].pay(PHONE, 500, key="k")
    assert (unsent.status, "Error Occurred: Spike Arrest Violation" in unsent.error["message"]) == (503, True)
    assert await shops.expiry.end_due() == 0
    await shops.set(f"due_at = now(), {PAST}")
    assert await shops.expiry.end_due() == 1
    row = await shops.gateway.db.fetchrow("SELECT payment_id, result_code, result_desc FROM payment")
    assert row is not None
    assert (row["result_code"], await shops.statuses()) == ("unsent", [("failed", "not_sent")])
    assert unsent.error["id"] == row["payment_id"]
    assert row["result_desc"].endswith("spike arrest: too many requests: Error Occurred: Spike Arrest Violation")


async def test_end_due_before_expiry_leaves_payments_pending(shops: Shops) -> None:
    await shops.pay(2)
    await shops.set("due_at = now() - interval '1 hour'")
    assert await shops.expiry.end_due() == 0
    assert await shops.statuses() == [("pending", None)] * 2


# -- due queries ----------------------------------------------------------------------------------------------------


async def shortcodes(shops: Shops) -> list[str]:
    """The ids of the merchants' shortcodes, in the order of their clients."""
    ids = [(await api.call("GET", "/v1/merchant/me")).data["id"] for api in shops.apis]
    rows = await shops.gateway.db.fetch("SELECT merchant_id, shortcode_id FROM shortcode")
    known = {row["merchant_id"]: row["shortcode_id"] for row in rows}
    return [known[merchant_id] for merchant_id in ids]


async def test_wake_due_enqueues_one_job_per_shortcode(shops: Shops) -> None:
    await shops.pay(12)
    await shops.pay(1, api=1)
    await shops.set("due_at = now() - interval '1 second'")
    for _ in range(3):
        assert await shops.queries.enqueue_due() == 2
    # The same shortcodes are enqueued once.
    assert await shops.gateway.jobs.queues["daraja"].count("queued") == 2


async def test_ask_due_with_a_hanging_shortcode_delays_no_other(shops: Shops, daraja: Daraja) -> None:
    first, second, _ = await shortcodes(shops)
    await shops.pay(6)
    await shops.pay(3, api=1)
    await shops.set("due_at = now() - interval '1 second'")
    go = daraja.hold("stkquery")
    hanging = asyncio.create_task(shops.queries.query_due(first))
    await daraja.wait_for_requests("stkquery", 2)
    # A second job of the same shortcode finds no free slot, claims nothing and leaves all payments due.
    assert await shops.queries.query_due(first) == 0
    still_due = "SELECT count(*) FROM payment WHERE shortcode_id = $1 AND due_at <= now()"
    assert await shops.gateway.db.fetchval(still_due, first) == 4
    del daraja.held["stkquery"]
    daraja.add_answers("stkquery", *[stk_result("1032")] * 3)
    assert await shops.queries.query_due(second) == 3
    ended = "SELECT count(*) FROM payment WHERE shortcode_id = $1 AND status = 'failed'"
    assert await shops.gateway.db.fetchval(ended, second) == 3
    go.set()
    assert await hanging == 6


async def test_ask_due_stops_after_a_query_without_an_answer(shops: Shops, daraja: Daraja) -> None:
    first, *_ = await shortcodes(shops)
    await shops.pay(6)
    await shops.set("due_at = now() - interval '1 second'")
    daraja.add_answers("stkquery", *[(503, b"")] * 6)
    assert await shops.queries.query_due(first) == 2
    assert await shops.gateway.db.fetchval("SELECT count(*) FROM payment WHERE due_at <= now()") == 4


async def test_ask_due_with_a_failing_payment_queries_the_others(shops: Shops, daraja: Daraja) -> None:
    first, *_ = await shortcodes(shops)
    broken, *_ = await shops.pay(5)
    await shops.gateway.db.execute(
        f"ALTER TABLE payment ADD CONSTRAINT trap CHECK (status <> 'failed' OR payment_id <> id_uuid('{broken}'))"
    )
    await shops.set("due_at = now() - interval '1 second'")
    daraja.add_answers("stkquery", *[stk_result("1032")] * 5)
    with pytest.raises(asyncpg.CheckViolationError):
        await shops.queries.query_due(first)
    assert await shops.statuses() == [("pending", None), *[("failed", "cancelled_by_user")] * 4]


async def test_ask_due_continues_after_refused_queries(shops: Shops, daraja: Daraja) -> None:
    first, *_ = await shortcodes(shops)
    await shops.pay(5)
    await shops.set("due_at = now() - interval '1 second'")
    daraja.add_answers("stkquery", *[fault("400.002.02", "Invalid CheckoutRequestID", 400)] * 5)
    assert await shops.queries.query_due(first) == 5


async def test_ask_due_with_an_unreadable_answer_leaves_the_payment_pending(shops: Shops, daraja: Daraja) -> None:
    first, *_ = await shortcodes(shops)
    await shops.pay(1)
    await shops.set("due_at = now() - interval '1 second'")
    daraja.add_answers("stkquery", (200, b"[" * 100_000))
    assert await shops.queries.query_due(first) == 1
    assert await shops.statuses() == [("pending", None)]
    await shops.set(PAST)
    assert await shops.expiry.end_due() == 1


def test_take_limits_the_total_each_account_and_silent_accounts() -> None:
    places = Bulkhead(4, each=2)
    with places.acquire("a") as one, places.acquire("a") as two, places.acquire("a") as three:
        assert (one, two, three) == (True, True, False)
        places.record_answer("b", answered=False)
        places.record_answer("c", answered=False)
        with places.acquire("b") as silent, places.acquire("c") as another, places.acquire("d") as fresh:
            # One slot in four is for accounts that do not answer.
            assert (silent, another, fresh) == (True, False, True)
            with places.acquire("e") as beyond:
                assert not beyond
        places.record_answer("c", answered=True)
        with places.acquire("c") as again:
            assert again


async def test_find_abandoned_with_a_generic_plan_uses_the_expiry_index(
    shops: Shops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generic plan does not know a parameter's value, so the predicate of the partial index stays in the text."""
    db, now = shops.gateway.db, shops.gateway.clock.now()
    texts: list[tuple[str, list[Any]]] = []

    async def note(query: Any) -> list[Any]:
        texts.append(query.querystrings[0].compile_string())
        return []

    with monkeypatch.context() as patch:
        patch.setattr(db, "run", note)
        assert await due_sql.find_abandoned(db, now, now, 5) == []
    ((sql, values),) = texts
    async with db.transaction():
        await db.execute("SET LOCAL enable_seqscan = off")
        await db.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await db.execute(f"PREPARE abandoned AS {sql}")
        rows = await db.fetch(f"EXPLAIN (COSTS OFF) EXECUTE abandoned ({', '.join(['NULL'] * len(values))})")
        await db.execute("DEALLOCATE abandoned")
    assert "Index Scan using payment_expiry" in "\n".join(row[0] for row in rows)
