"""Protects ``just chaos``: a short run passes, and its verifier finds every kind of error in the books."""

import asyncio
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import niquests
import pytest
from asyncpg.exceptions import DeadlockDetectedError
from saq import Job, Status

from bench.chaos.faults import FAULTS
from bench.chaos.merchant import Endpoint
from bench.chaos.queue import stuck_jobs
from bench.chaos.run import Options, Run
from bench.chaos.shoppers import Purchase, Shoppers
from bench.chaos.table import table
from bench.chaos.verify import AT_LAST, OUR_OWN, STILL_OPEN, Findings, verify
from mpesa_gateway.app import Gateway
from mpesa_gateway.standalone.process import launch
from mpesa_gateway.testing.serving import INITIATED, eventually, running_gateway, shop
from tests.forking import forks
from tests.identifiers import literal

pytestmark = pytest.mark.as_owner

LISTED = {
    "kill -9 of an API, a worker, Valkey with and without its data, Postgres": {
        "api_killed",
        "worker_killed",
        "valkey_killed",
        "valkey_lost",
        "postgres_killed",
    },
    "Valkey flushed": {"valkey_flushed"},
    "Postgres connections dropped and refused": {"postgres_backends_terminated", "postgres_refuses_connections"},
    "Daraja slow, 500, spike arrest, accepted-but-500, connection reset": {
        "daraja_slow",
        "daraja_answers_500",
        "daraja_spike_arrest",
        "accepted_but_500",
        "daraja_resets",
    },
    "callbacks duplicated, reordered, late, before the ack, lost, with a wrong amount": {
        "callbacks_doubled",
        "callbacks_reordered",
        "callbacks_late",
        "callbacks_before_ack",
        "callbacks_lost",
        "callbacks_with_wrong_amount",
    },
    "the endpoint down, slow, 500, redirecting, hanging": {
        "merchant_down",
        "merchant_slow",
        "merchant_answers_500",
        "merchant_redirects",
        "merchant_hangs",
    },
    "clock skew": {"api_clock_skewed", "worker_clock_skewed"},
    "disk full": {"valkey_disk_full"},
    "rolling restarts": {"api_replaced", "worker_replaced"},
    "two at once": {"two_sweepers_at_once", "two_reconciliations_at_once", "two_crons_at_once"},
    "spike arrest, quotas and firewalls in front of Daraja, and answers that cannot be read": {
        "proxies_refuse",
        "answers_cannot_be_read",
        "chunks_broken",
    },
    "tokens, acknowledgements, queries and posted bodies as they have been seen": {
        "answers_spelt_otherwise",
        "bodies_spelt_otherwise",
    },
}
"""The required faults, and the faults of the run that implement them."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that Postgres can traverse as another user."""
    found = Path(tempfile.mkdtemp(prefix="mpesa-gateway-tests-chaos-"))
    found.chmod(0o711)
    yield found
    shutil.rmtree(found, ignore_errors=True)


def test_chaos_faults_are_all_declared() -> None:
    assert {name for names in LISTED.values() for name in names} <= set(FAULTS)


def forked(command: list[str], *, output: IO[bytes], death_signal: signal.Signals, env: dict[str, str]) -> Any:
    """Start a process; our own command is forked from a process that has imported it."""
    interpreter, _, module, *arguments = command
    if module != "mpesa_gateway.cli":
        return launch(command, output=output, death_signal=death_signal, env=env)
    assert (interpreter, death_signal) == (sys.executable, signal.SIGKILL)
    return forks.start(arguments, folder=Path.cwd(), environ=env, log=output.fileno())


async def test_chaos_faults_lose_double_or_invent_no_payment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.chaos.site.launch", forked)
    progress: list[str] = []
    options = Options(seed=7, seconds=12, rate=3.0, pace=0.3, at_once=3, settle=240)
    result = await Run(folder, options, progress.append).play()
    assert result.wrong == {}, progress
    assert result.counts == {}
    assert result.figures["payments"] > 0
    assert result.figures["completed"] > 0
    assert result.figures["deliveries received"] >= result.figures["events"] > 0
    assert result.faults
    report = {"command": "just chaos", "commit": "none", "python": "3", "runs": [result.as_dict()]}
    shown = table([report])
    assert "| **lost** | **0** |" in shown
    assert all(f"| `{name}` | {times} |" in shown for name, times in result.faults.items())


# -- the verifier -------------------------------------------------------------------------------------------------


@dataclass
class Books:
    """All input of the verifier, from a run without errors."""

    gateway: Gateway
    endpoint: Endpoint
    shop: Shoppers

    async def judged(self, *changes: str) -> Findings:
        """Return the verifier's complaints after manual changes with constraints and triggers disabled."""
        findings = Findings()
        with suppress(RolledBack):
            async with self.gateway.db.transaction():
                await self._unguard()
                for change in changes:
                    sql = change.format_map(NAMES)
                    tag = await self.gateway.db.execute(sql)
                    assert not tag.endswith(" 0"), f"changed nothing: {sql}"
                findings = await verify(self.gateway, self.endpoint, self.shop)
                raise RolledBack
        return findings

    async def _unguard(self) -> None:
        """Disable constraints and triggers; retry deadlocks with the running gateway, which locks in other orders."""
        for _ in range(10):
            try:
                async with self.gateway.db.savepoint():
                    await self.gateway.db.execute(UNGUARD)
            except DeadlockDetectedError:
                continue
            return
        raise AssertionError("ten deadlocks in a row")


SAYS_NO = "254700000001"
"""A simulated phone whose owner cancels."""


class RolledBack(Exception):
    """Rolls back a change."""


UNGUARD = """
DO $$
DECLARE guard record;
BEGIN
    FOR guard IN
        SELECT conrelid::regclass AS of, conname FROM pg_constraint
        WHERE connamespace = 'mpesa'::regnamespace AND contype IN ('c', 'f', 'u', 'x') AND coninhcount = 0
        ORDER BY contype <> 'f'
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', guard.of, guard.conname);
    END LOOP;
    FOR guard IN
        SELECT indexrelid::regclass AS of FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
        WHERE relnamespace = 'mpesa'::regnamespace AND indisunique AND NOT indisprimary
    LOOP
        EXECUTE format('DROP INDEX %s', guard.of);
    END LOOP;
    FOR guard IN SELECT oid::regclass AS of FROM pg_class WHERE relnamespace = 'mpesa'::regnamespace AND relkind = 'r'
    LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', guard.of);
    END LOOP;
END
$$
"""


@asynccontextmanager
async def kept_books(values: dict[str, Any]) -> AsyncGenerator[Books]:
    """Books of a quiet run: payments, rejections and refunds, with every webhook delivered."""
    rng = random.Random(1)  # noqa: S311 - a fixed seed, not a secret
    endpoint = Endpoint(rng)
    await endpoint.start()
    values |= {"simulator": {"callback_delay": 0.05, "chaos": 0.3, "late_delay": 1.0, "seed": 3}}
    values |= {"payments": {"query_after": [1], "expire_after": 5}, "webhooks": {"retry_after": [1.0] * 20}}
    try:
        async with (
            running_gateway(values) as (gateway, base),
            shop(gateway, base) as api,
            niquests.AsyncSession() as http,
        ):
            assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
            assert (await api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
            set_up = await api.call("PUT", "/v1/merchant/webhook", {"webhook_url": endpoint.url})
            endpoint.secrets.append(set_up.data["webhook_secret"])
            http.trust_env = False
            buyers = Shoppers(base, (api.key or "",), rng, http, pace=0.2)
            # A fixed number of payments: a time limit would produce too few on a busy machine.
            await buyers.flow(12.0, lambda: len(buyers.payments) >= 48)
            # One payer who cancels: otherwise only chance makes a payment fail.
            buyers.purchases["no"] = Purchase(SAYS_NO, 1)

            async def has_asked() -> Any:
                answer = await api.pay(SAYS_NO, 1, key="no")
                return answer.data["id"] if answer.status in {200, 201} else None

            buyers.payments["no"] = await eventually(has_asked, 60)

            async def has_settled() -> bool:
                await api.call("POST", "/v1/payments/mpesa/reconcile", {})
                return bool(await gateway.db.fetchval(STILL_OPEN) == 0)

            await eventually(has_settled, 120)
            yield Books(gateway, endpoint, buyers)
    finally:
        await endpoint.stop()


NAMES = {
    "one": "(SELECT payment_id FROM payment WHERE status = 'completed' ORDER BY payment_id LIMIT 1)",
    "another": "(SELECT payment_id FROM payment WHERE status = 'completed' ORDER BY payment_id DESC LIMIT 1)",
    "failed": "(SELECT payment_id FROM payment WHERE status = 'failed' ORDER BY payment_id LIMIT 1)",
    "refund": "(SELECT refund_id FROM refund WHERE status = 'completed' ORDER BY refund_id LIMIT 1)",
    "receipt": "(SELECT receipt FROM payment WHERE status = 'completed' ORDER BY payment_id LIMIT 1)",
    "told": """(SELECT event_id FROM event WHERE kind = 'payment.completed' AND subject_id =
        (SELECT payment_id FROM payment WHERE status = 'completed' ORDER BY payment_id LIMIT 1))""",
    "push": "(SELECT min(checkout_request_id) FROM sim_push)",
    "callback": "(SELECT callback_id FROM callback ORDER BY callback_id LIMIT 1)",
    "run": "(SELECT run_id FROM reconciliation_run ORDER BY run_id LIMIT 1)",
}
"""Subqueries for the rows that the forgeries below change."""


def copy(of: str, condition: str, **changes: str) -> str:
    """Return SQL that copies a row with changes."""
    columns = ", ".join(f"'{name}', {value}" for name, value in changes.items())
    return f"{_COPY.format(of=of, given=columns)} WHERE {condition}"


_COPY = (
    "INSERT INTO {of} OVERRIDING SYSTEM VALUE SELECT copied.* FROM {of} kept, "
    "jsonb_populate_record(kept, jsonb_build_object({given})) copied"
)

FORGERIES: dict[str, tuple[list[str], set[str]]] = {
    "a completed payment without its money": (
        ["DELETE FROM sim_transaction WHERE receipt = {receipt}"],
        {
            "invented: paid with a receipt that M-Pesa never gave",
            "invented: a payment that is completed and no money moved",
        },
    ),
    "money whose payment failed": (
        ["UPDATE payment SET status = 'failed', receipt = NULL WHERE payment_id = {one}"],
        {"lost: money that moved and no payment is completed with it"},
    ),
    "money without a record": (
        [copy("sim_transaction", "kept.receipt = {receipt}", receipt="'NEW0000001'")],
        {"lost: money that moved and no payment is completed with it"},
    ),
    "another amount": (
        ["UPDATE payment SET amount = amount + 1 WHERE payment_id = {one}"],
        {
            "invented: paid with another amount",
            "untold: an event with another amount or receipt than the payment",
        },
    ),
    "a receipt on the wrong payment": (
        [
            "UPDATE payment SET receipt = {receipt} WHERE payment_id = {another}",
            "UPDATE payment SET receipt = NULL WHERE payment_id = {one}",
        ],
        {
            "doubled: paid with the money of another payment",
            "invented: a payment that is completed and no money moved",
            "lost: money that moved and no payment is completed with it",
            "untold: an event with another amount or receipt than the payment",
        },
    ),
    "one receipt for two payments": (
        ["UPDATE payment SET receipt = {receipt} WHERE payment_id = {another}"],
        {"doubled: A receipt pays for one payment, not so", "doubled: one receipt on two payments"},
    ),
    "a payment that is paid with another payer's money": (
        [
            """UPDATE sim_transaction SET checkout_request_id = NULL, kind = 'pay_bill', phone = '254799000001',
            reference = 'ANOTHER' WHERE receipt = {receipt}""",
        ],
        {"invented: paid with money of another payer"},
    ),
    "a payment that is paid with a payout": (
        [
            """UPDATE sim_transaction SET checkout_request_id = NULL, kind = 'payout', is_out = true
            WHERE receipt = {receipt}""",
        ],
        {"invented: paid with money that left"},
    ),
    "a payment that is paid with a reversal": (
        [
            "INSERT INTO sim_reversal VALUES ('BACK000003', {receipt}, 1, 'copy-3', now())",
            "UPDATE payment SET receipt = 'BACK000003' WHERE payment_id = {another}",
        ],
        {"invented: paid with a reversal"},
    ),
    "a second payment for one key": (
        [copy("payment", "kept.payment_id = {failed}", payment_id=literal("pay"))],
        {"doubled: two payments for one Idempotency-Key"},
    ),
    "a second prompt": (
        [
            copy(
                "sim_push", "kept.receipt = {receipt}", checkout_request_id="'ws_CO_copy'", merchant_request_id="'copy'"
            )
        ],
        {"doubled: two prompts for one payment", "doubled: two prompts for one Idempotency-Key"},
    ),
    "a second prompt under another reference": (
        [copy("sim_push", "kept.receipt = {receipt}", checkout_request_id="'ws_CO_copy'", reference="'ANOTHER'")],
        {"doubled: two prompts for one Idempotency-Key"},
    ),
    "a prompt on another phone": (
        ["UPDATE sim_push SET phone = '254799999999' WHERE checkout_request_id = {push}"],
        {"invented: a prompt without a request"},
    ),
    "a prompt for more": (
        ["UPDATE sim_push SET amount = amount + 1 WHERE receipt = {receipt}"],
        {"invented: a prompt without a request"},
    ),
    "a reversal too many": (
        [
            "INSERT INTO sim_reversal VALUES ('BACK000001', {receipt}, 1, 'copy-1', now())",
            "INSERT INTO sim_reversal VALUES ('BACK000002', {receipt}, 250000, 'copy-2', now())",
        ],
        {
            "doubled: more went back than came in",
            "lost: the reversed amount differs from the payment's",
            "doubled: completed refunds and reversals differ in number",
        },
    ),
    "a refund too many": (
        [copy("refund", "kept.refund_id = {refund}", refund_id=literal("rfd"), amount="300000")],
        {
            "lost: The refunded and reserved amounts of a payment are the sums of its refunds, not so",
            "doubled: completed refunds and reversals differ in number",
            "untold: A refund that went through has exactly one event payment.reversed or transaction.refunded, not so",
        },
    ),
    "money reserved for nothing": (
        ["UPDATE payment SET refund_reserved = 1 WHERE payment_id = {one}"],
        {"lost: The refunded and reserved amounts of a payment are the sums of its refunds, not so"},
    ),
    "a deleted event": (
        [
            "DELETE FROM delivery WHERE event_id = {told}",
            "DELETE FROM event WHERE event_id = {told}",
        ],
        {
            "untold: Every change of a payment's status has exactly one event, and every such event its change, not so",
            "invented: a webhook about an event that does not exist",
        },
    ),
    "an event too many": (
        [copy("event", "kept.event_id = {told}", event_id=literal("evt"))],
        {
            "untold: Every change of a payment's status has exactly one event, and every such event its change, not so",
            "untold: an event without its delivery",
            "untold: an event that the merchant never took",
        },
    ),
    "an event that was changed": (
        [
            """
            UPDATE event SET form_id = NULL, stored_body = replace(event.body, '"amount"', '"Amount"')
            WHERE event_id = {told}
            """
        ],
        {"untold: a webhook that differs from its event"},
    ),
    "a payment with another status": (
        ["UPDATE payment SET status = 'failed' WHERE payment_id = {one}"],
        {
            "untold: A payment's status agrees with its timeline, not so",
            "lost: money that moved and no payment is completed with it",
        },
    ),
    "money held in silence": (
        ["UPDATE payment SET mismatch = 'amount' WHERE payment_id = {one}"],
        {"untold: Every mismatch of a payment was published to its merchant, not so"},
    ),
    "a refund without a webhook": (
        [
            """
            DELETE FROM event WHERE kind = 'payment.reversed'
                AND event.body::jsonb->'data'->>'refund_id' = id_text({refund})
            """
        ],
        {"untold: A refund that went through has exactly one event payment.reversed or transaction.refunded, not so"},
    ),
    "rows that no job processes": (
        [
            "UPDATE payment SET status = 'pending', due_at = NULL WHERE payment_id = {failed}",
            "UPDATE refund SET status = 'pending', due_at = NULL, attention = NULL WHERE refund_id = {refund}",
            "UPDATE delivery SET status = 'pending', due_at = NULL WHERE event_id = {told}",
            "UPDATE callback SET verdict = 'waiting', due_at = NULL WHERE callback_id = {callback}",
            "UPDATE payment SET claim = '{{}}' WHERE payment_id = {one}",
        ],
        {
            "stuck: a row that no job will process",
            "stuck: a payment that is still pending",
            "stuck: a refund that is still pending",
            "stuck: a delivery that was not taken",
            "stuck: a claim that nothing decided",
            "stuck: a callback that no handler has processed",
        },
    ),
    "a subscriber that has not run": (
        ["INSERT INTO event_task (event_id, subscriber, due_at) VALUES ({told}, 'nobody', now())"],
        {"stuck: a subscriber that has not run"},
    ),
    "a reconciliation that has not ended": (
        ["UPDATE reconciliation_run SET status = 'running' WHERE run_id = {run}"],
        {"stuck: a reconciliation that has not ended"},
    ),
    "an altered audit entry": (
        ["UPDATE audit_entry SET actor = 'nobody' WHERE number = 2"],
        {"altered: the audit log's chain is broken"},
    ),
    "a removed audit entry": (
        ["DELETE FROM audit_entry WHERE number = 2"],
        {"altered: the audit log's chain is broken"},
    ),
}
"""Changes to the books by a person or a bug, and the minimum set of complaints about each."""


def sentences(findings: Findings) -> set[str]:
    """Return the complaints without their counts."""
    return {sentence.rpartition(" (")[0] for sentence in findings.wrong}


def changed(deliveries: list[Any], **changes: Any) -> list[Any]:
    """Return the deliveries with changes to the first."""
    return [replace(deliveries[0], **changes), *deliveries[1:]]


MISHEARD: dict[str, tuple[Callable[[Books], None], str]] = {
    "an event that never arrived": (
        lambda books: books.endpoint.deliveries.__delitem__(slice(0, 1)),
        "untold: an event that the merchant never took",
    ),
    "an event that was refused each time": (
        lambda books: setattr(books.endpoint, "deliveries", changed(books.endpoint.deliveries, is_taken=False)),
        "untold: an event that the merchant never took",
    ),
    "another webhook-id": (
        lambda books: setattr(books.endpoint, "deliveries", changed(books.endpoint.deliveries, webhook_id="evt_x")),
        "untold: a webhook-id that is not its event's",
    ),
    "other words": (
        lambda books: setattr(books.endpoint, "deliveries", changed(books.endpoint.deliveries, body=b"{}")),
        "untold: a webhook that differs from its event",
    ),
    "no signature": (
        lambda books: setattr(books.endpoint, "deliveries", changed(books.endpoint.deliveries, is_signed=False)),
        "untold: a webhook that is not signed",
    ),
    "a redirect that was followed": (
        lambda books: books.endpoint.other_requests.append("GET /elsewhere HTTP/1.1"),
        "unexplained: a request at another address of the merchant's",
    ),
    "a payment that is not there": (
        lambda books: books.shop.payments.update({"buy-0": "pay_gone"}),
        "lost: a payment that a merchant got as an answer",
    ),
    "a refund that is not there": (
        lambda books: books.shop.refunds.update({"refund-x": "rfd_gone"}),
        "lost: a refund that a merchant got as an answer",
    ),
    "two answers for one key": (
        lambda books: books.shop.conflicts.append("buy-0"),
        "doubled: one key was answered with two objects",
    ),
    "an answer out of nowhere": (
        lambda books: books.shop.unexplained.append("500 /v1/payments"),
        "unexplained: an answer that nothing broken explains",
    ),
    "a prompt that was not wished for": (
        lambda books: books.shop.purchases.update({"buy-0": Purchase("254700000000", 1)}),
        "invented: a prompt without a request",
    ),
}
"""Errors seen by the merchant or its buyers, and the expected complaint."""


async def test_verifier_accepts_correct_books_and_finds_every_forgery(values: dict[str, Any]) -> None:
    async with kept_books(values) as books:
        good = await verify(books.gateway, books.endpoint, books.shop)
        assert good.wrong == {}
        assert good.figures["refunds completed"] > 0
        assert good.figures["failed"] > 0
        missed: dict[str, set[str]] = {}
        seen: set[str] = set()
        for forgery, (changes, expected) in FORGERIES.items():
            found = sentences(await books.judged(*changes))
            seen |= found
            if not expected <= found:
                missed[forgery] = expected - found
        assert missed == {}
        # Each check must be able to fail; the ledger's invariants have counter-tests of their own.
        assert set(OUR_OWN | AT_LAST) - seen == {"invented: paid with money of the other world"}
        for forgery, (mishear, sentence) in MISHEARD.items():
            changed_books = Books(
                books.gateway,
                replace(books.endpoint, deliveries=list(books.endpoint.deliveries), other_requests=[]),
                replace(
                    books.shop,
                    payments=dict(books.shop.payments),
                    refunds=dict(books.shop.refunds),
                    purchases=dict(books.shop.purchases),
                    conflicts=[],
                    unexplained=[],
                ),
            )
            mishear(changed_books)
            found = sentences(await verify(changed_books.gateway, changed_books.endpoint, changed_books.shop))
            assert sentence in found, forgery
        assert (await verify(books.gateway, books.endpoint, books.shop)).wrong == {}


async def test_stuck_jobs_are_found_and_progressing_jobs_are_not(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        queue = gateway.jobs.queues["maintenance"]
        assert await stuck_jobs(gateway, 1.0) == []
        active = Job("payments.sweep", queue=queue, key="stuck", status=Status.ACTIVE, started=5)
        moving = Job("payments.sweep", queue=queue, key="moving", status=Status.ACTIVE, started=5)
        incomplete = Job("payments.sweep", queue=queue, key="cron:payments.sweep", status=Status.QUEUED)
        redis: Any = queue.redis
        for job in (active, moving, incomplete):
            await redis.set(job.id, queue.serialize(job))
        await redis.lpush(queue.namespace("active"), active.id, moving.id)
        # Present in the list of due jobs, and in no list that a worker claims from.
        await redis.zadd(queue.namespace("incomplete"), {incomplete.id: 0})
        looking = asyncio.create_task(stuck_jobs(gateway, 2.0))
        await asyncio.sleep(0.6)
        moving.started = 6
        await redis.set(moving.id, queue.serialize(moving))
        assert await looking == sorted([active.id, incomplete.id])
