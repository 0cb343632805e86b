"""Every path locks in one order: keys, refunds, payments, rows that are only inserted, the audit log."""

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from typing import Any, cast

import asyncpg
import pytest

from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_payments import tables, transition_sql
from mpesa_gateway_payments.desk import PaymentDesk
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.outside_reversal import OutsideReversals
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_refunds.queries import RefundQueries
from tests.conftest import Town
from tests.daraja import Daraja, fault, result, stk_callback
from tests.owner import as_owner
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line

RANKS = {
    "idempotency_key": 0,
    # What is about a payment, and is locked before it.
    "refund": 1,
    "status_check": 1,
    "payment": 2,
    "transaction": 3,
    "account_number": 4,
    # A line of a statement is a witness of money: its payment and its transaction are locked before.
    "transaction_witness": 5,
    "statement_note": 5,
    "reconciliation_line": 5,
    "outgoing_receipt": 5,
    "payment_step": 5,
    "event": 5,
    "event_task": 5,
    "delivery": 5,
    "callback": 5,
    "audit_entry": 6,
}
"""The place of each table in the order of tables.md; rows that are only inserted share one."""

_WRITES = re.compile(r"\b(?:UPDATE|INSERT INTO|DELETE FROM)\s+([a-z_]+)", re.IGNORECASE)
_NEW_REFUND = re.compile(r"\bINSERT INTO refund\b", re.IGNORECASE)
"""A new refund is written under the lock of its payment. Only another refund of the whole rest waits for its row, and
that one waits for the payment before; a row that is sent again was locked before the payment."""

_LOCKS = re.compile(r"\bFOR (?:NO KEY )?UPDATE\b(?:\s+OF\s+([a-z_]+))?", re.IGNORECASE)
_FROM = re.compile(r"\b(?:FROM|JOIN)\s+([a-z_]+)(?:\s+AS\s+([a-z_]+))?", re.IGNORECASE)


def locked(sql: str) -> list[str]:
    """The tables whose rows a statement locks, in the order in which they stand in it."""
    found: list[tuple[int, str]] = [(one.start(), one[1].lower()) for one in _WRITES.finditer(sql)]
    for lock in _LOCKS.finditer(sql):
        begins = sql.upper().rfind("SELECT", 0, lock.start())
        names = [(one[1].lower(), (one[2] or "").lower()) for one in _FROM.finditer(sql, begins, lock.start())]
        of = (lock[1] or "").lower()
        found += [(begins, name) for name, alias in names if not of or of in {name, alias}]
    return [name for _, name in sorted(found) if name in RANKS and not _NEW_REFUND.search(sql)]


def out_of_order(statements: list[str]) -> list[str]:
    """The locks of one transaction that come after a later one in the order."""
    held: list[str] = []
    wrong: list[str] = []
    for sql in statements:
        for name in locked(sql):
            if name in held:
                continue
            later = [one for one in held if RANKS[one] > RANKS[name]]
            if later:
                wrong.append(f"{name} after {', '.join(later)}: {' '.join(sql.split())[:200]}")
            held.append(name)
    return wrong


class Recorder:
    """The statements of each transaction, by connection."""

    def __init__(self) -> None:
        self.transactions: list[list[str]] = []
        self._open: dict[int, list[str]] = defaultdict(list)

    def note(self, connection: object, query: str) -> None:
        """One statement of a connection."""
        word = query.strip().upper()
        if word.startswith(("BEGIN", "COMMIT", "ROLLBACK;")):
            self.transactions.append(self._open.pop(id(connection), []))
        elif id(connection) in self._open or query:
            self._open[id(connection)].append(query)
            if not self._is_in_transaction(connection):
                self.transactions.append(self._open.pop(id(connection)))

    @staticmethod
    def _is_in_transaction(connection: object) -> bool:
        return bool(cast("Any", connection).is_in_transaction())


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records each statement of every connection of asyncpg's."""
    found = Recorder()

    def recording(name: str) -> None:
        plain = getattr(asyncpg.Connection, name)

        async def run(connection: Any, query: str, *args: Any, **options: Any) -> Any:
            done = await plain(connection, query, *args, **options)
            found.note(connection, query)
            return done

        monkeypatch.setattr(asyncpg.Connection, name, run)

    for name in ("execute", "fetch", "fetchrow", "fetchval"):
        recording(name)
    return found


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Nothing is asked about but on demand."""
    return values | {"daraja": {"sandbox_url": daraja.base}, "refunds": {"ask_after": [3600]}}


class Paths:
    """Everything that can happen to payments and refunds, one thing at a time."""

    def __init__(self, town: Town, daraja: Daraja) -> None:
        self.town, self.daraja = town, daraja
        self.number = 0
        self.merchant_id = ""

    async def call_back(self, kind: Any, subject_id: str, body: dict[str, Any]) -> None:
        """A callback to the address that was made for its subject."""
        dispatcher = self.town.gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for(kind, env="sandbox", merchant_id=self.merchant_id, subject_id=subject_id)
        answer = await self.town.api.call("POST", url.removeprefix(self.town.base), body)
        assert answer.status == 200, answer.body

    async def pay(self) -> dict[str, Any]:
        """A payment that Daraja has taken."""
        self.number += 1
        made: dict[str, Any] = (
            await self.town.api.pay(f"2547110{self.number % 100000:05}", 500, key=f"k{self.number}")
        ).data
        self.merchant_id = made["merchant_id"]
        return made

    async def paid(self, *, times: int = 1) -> dict[str, Any]:
        """One that was paid, and its callback repeated."""
        made = await self.pay()
        body = stk_callback(made["provider_ref"], receipt=f"TKN{self.number:07}")
        await asyncio.gather(*(self.call_back("stk", made["id"], body) for _ in range(times)))
        return made

    async def sent_again(self) -> None:
        """A push that was not sent, and then was."""
        self.daraja.say("stkpush", fault("500.003.02", "Spike arrest violation", 503))
        number = self.number = self.number + 1
        for status in (503, 201):
            assert (await self.town.api.pay("254711099999", 500, key=f"k{number}")).status == status

    async def expired(self) -> None:
        """One that M-Pesa never knew."""
        self.daraja.say("stkpush", (500, b"<html>"))
        made = await self.pay()
        await self.town.gateway.db.execute(
            "UPDATE payment SET due_at = now(), expires_at = now() WHERE payment_id = $1", made["id"]
        )
        await self.town.gateway.services.get(StkQueries).ask(made["id"])

    async def held(self) -> None:
        """One whose money is not what was asked for, and a person who sees to it."""
        made = await self.pay()
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], amount=5))
        desk = self.town.gateway.services.get(PaymentDesk)
        await desk.look_after(made["id"], "seen to", actor="a person")

    async def waiting(self) -> None:
        """A callback that came before we could know what it is about, offered by a person."""
        made = await self.pay()
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], 1032))
        callback_id = await self.town.gateway.db.fetchval("SELECT max(callback_id) FROM callback")
        await self.town.gateway.services.get(CallbackOperatorService).replay(callback_id, actor="a person")
        await self.town.gateway.services.get(CallbackDispatcher).sweep()

    async def refunded(self, *, code: int = 0) -> None:
        """One whose money goes back, in part and then the rest."""
        made = await self.paid()
        headers = {"Idempotency-Key": f"r{self.number}"}
        for body in ({"payment_id": made["id"], "amount": 200}, {"payment_id": made["id"]}):
            answer = await self.town.api.call("POST", "/v1/refunds", body, headers=headers if "amount" in body else {})
            says = {"OriginalTransactionID": answer.data["receipt"]}
            said = result(code, transaction_id=f"{answer.data['receipt'][:9]}{len(body)}", says=says)
            await self.call_back("reversal", answer.data["id"], said)

    async def refund_unsent(self) -> None:
        """A refund that was not sent, and then was."""
        made = await self.paid()
        self.daraja.say("reversal", fault("500.003.02", "Spike arrest violation", 503))
        body, headers = {"payment_id": made["id"]}, {"Idempotency-Key": f"u{self.number}"}
        await self.town.api.call("POST", "/v1/refunds", body, headers=headers)
        refund = (await self.town.api.call("POST", "/v1/refunds", body, headers=headers)).data
        await self.town.gateway.db.execute("UPDATE refund SET due_at = now() WHERE refund_id = $1", refund["id"])
        await self.town.gateway.services.get(RefundQueries).ask(refund["id"])

    async def checked(self) -> None:
        """One that M-Pesa is asked about, and calls reversed."""
        made = await self.paid()
        check = (await self.town.api.call("POST", f"/v1/payments/mpesa/check-status/{made['id']}")).data
        receipt = await self.town.gateway.db.fetchval("SELECT receipt FROM payment WHERE payment_id = $1", made["id"])
        says = {"ReceiptNo": receipt, "TransactionStatus": "Reversed", "Amount": "500.00"}
        await self.call_back("status", check["check_id"], result(0, says=says))

    async def reconciled(self) -> None:
        """Some that a statement names, one that the rule finds, one that a person assigns, and a reversal."""
        paid, own, known = await self.paid(), await self.pay(), await self.pay()
        twins = [await self.pay_at_table(f"t{number}") for number in range(2)]
        by_rule = await self.pay_at_table("alone", 700)
        receipt = await self.town.gateway.db.fetchval("SELECT receipt FROM payment WHERE payment_id = $1", paid["id"])
        lines = [
            line(receipt),
            line("OWN0000001", reference=own["reference"]),
            line("AMOUNT0001", 5, reference=known["reference"]),
            line("TWIN000001", 600, reference="table 4"),
            line("RULE000001", 700, reference="table 4"),
            line("REVERSED01", reference=receipt, transactiontype="c2b-pay-bill-reversal"),
        ]
        self.daraja.say("pullquery", page(*lines))
        run = (await self.town.api.call("POST", RUN, {})).data
        assert (run["status"], run["recovered"], run["ambiguous"]) == ("completed", 2, 1), run
        assert (await self.town.api.call("GET", f"/v1/payments/{by_rule['id']}")).data["status"] == "completed"
        line_id = await self.town.gateway.db.fetchval("SELECT line_id FROM noted_line WHERE receipt = 'TWIN000001'")
        path = f"/v1/payments/mpesa/statement-lines/{line_id}/assign"
        assert (await self.town.api.call("POST", path, {"payment_id": twins[0]["id"]})).status == 200

    async def pay_at_table(self, key: str, amount: int = 600) -> dict[str, Any]:
        """A payment with a reference of the merchant's."""
        made: dict[str, Any] = (
            await self.town.api.pay("254711000001", amount, key=f"{key}-{self.number}", reference="table 4")
        ).data
        return made

    async def called_reversed(self) -> None:
        """A receipt that M-Pesa calls reversed, and the callback of its payment after that."""
        made = await self.pay()
        check = (await self.town.api.call("POST", "/v1/payments/mpesa/check-status/GONE000001")).data
        says = {
            "ReceiptNo": "GONE000001",
            "TransactionStatus": "Reversed",
            "Amount": "500.00",
            "CreditPartyName": "174379 - SHOP",
        }
        await self.call_back("status", check["check_id"], result(0, says=says))
        await self.call_back("stk", made["id"], stk_callback(made["provider_ref"], receipt="GONE000001"))
        await self.town.gateway.services.get(OutsideReversals).take_noted()

    async def ended(self) -> None:
        """Some whose time is up."""
        made = await self.pay()
        await self.town.gateway.db.execute("UPDATE payment SET expires_at = now() WHERE payment_id = $1", made["id"])
        await self.town.gateway.services.get(Expiry).end_due()

    def all(self) -> Iterator[Any]:
        """Each once."""
        yield self.paid(times=3)
        yield self.sent_again()
        yield self.expired()
        yield self.held()
        yield self.waiting()
        yield self.refunded()
        yield self.refunded(code=1)
        yield self.refund_unsent()
        yield self.checked()
        yield self.reconciled()
        yield self.called_reversed()
        yield self.ended()


@pytest.mark.usefixtures("initiated")
async def test_every_path_locks_in_the_order_of_the_tables(recorder: Recorder, town: Town, daraja: Daraja) -> None:
    recorder.transactions.clear()
    for path in Paths(town, daraja).all():
        await path
    seen = {name for statements in recorder.transactions for sql in statements for name in locked(sql)}
    assert {"idempotency_key", "refund", "payment", "payment_step", "event", "callback", "status_check"} <= seen
    assert {"transaction", "statement_note", "reconciliation_line", "outgoing_receipt"} <= seen
    wrong = {one for statements in recorder.transactions for one in out_of_order(statements)}
    assert wrong == set()


@pytest.mark.usefixtures("initiated")
async def test_all_paths_against_each_other_end_without_a_deadlock(
    town: Town, daraja: Daraja, database_url: str
) -> None:
    paths, chance = Paths(town, daraja), random.Random(7)  # noqa: S311 - a test's order
    payments = await asyncio.gather(*(paths.pay() for _ in range(4)))
    queries = town.gateway.services.get(StkQueries)
    dispatcher = town.gateway.services.get(CallbackDispatcher)
    operators = town.gateway.services.get(CallbackOperatorService)
    outcomes: list[Any] = []
    for number in range(30):
        made = chance.choice(payments)
        receipt = f"TKN{chance.randrange(6):07}"
        work: list[Coroutine[Any, Any, Any]] = [
            paths.call_back("stk", made["id"], stk_callback(made["provider_ref"], receipt=receipt)),
            paths.call_back("stk", made["id"], stk_callback(made["provider_ref"], 1032)),
            paths.call_back("stk", payments[0]["id"], stk_callback(payments[0]["provider_ref"], receipt=receipt)),
            queries.ask(made["id"], is_forced=True),
            dispatcher.sweep(),
            town.api.call("POST", "/v1/refunds", {"payment_id": made["id"]}),
            town.api.call(
                "POST",
                "/v1/refunds",
                {"payment_id": made["id"], "amount": 5},
                headers={"Idempotency-Key": f"p{number}"},
            ),
            town.api.pay("254711000001", 500, key=f"k{chance.randrange(5)}"),
        ]
        for row in await town.gateway.db.fetch(
            "SELECT refund_id, receipt FROM refund WHERE status = 'pending' LIMIT 2"
        ):
            said = result(chance.choice((0, 1)), transaction_id=f"REV{number:05}X", says={})
            work.append(paths.call_back("reversal", row["refund_id"], said))
        rows = await town.gateway.db.fetch("SELECT callback_id FROM callback ORDER BY random() LIMIT 2")
        work += [operators.replay(row["callback_id"], actor="a person") for row in rows]
        chance.shuffle(work)
        outcomes += await asyncio.gather(*work, return_exceptions=True)
    failed = [one for one in outcomes if isinstance(one, BaseException)]
    assert failed == []
    other = await asyncpg.connect(database_url)
    assert await other.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    await other.close()


SLOWLY = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$;
CREATE TRIGGER a_slow_one BEFORE UPDATE ON payment FOR EACH ROW EXECUTE FUNCTION slowly();
"""
"""Two statements that update two payments each are in the middle of it at the same time."""


async def test_two_batches_with_the_same_receipts_in_opposite_order_end_without_a_deadlock(
    town: Town, daraja: Daraja
) -> None:
    """The payments of each batch are others: only the receipts, which are unique, make one wait for the other."""
    paths, db = Paths(town, daraja), town.gateway.db
    ids = [(await paths.pay())["id"] for _ in range(4)]
    async with as_owner(town.gateway) as owner:
        await owner.execute(SLOWLY)

    async def end(payments: list[str], receipts: list[str]) -> None:
        now = town.gateway.clock.now()
        async with db.transaction():
            rows = {row["payment_id"]: dict(row) for row in await db.fetch(tables.READ, payments)}
            paid = {"status": "completed", "completed_at": now, "completed_by": "callback", "due_at": None}
            changed = [rows[one] | paid | {"receipt": receipt} for one, receipt in zip(payments, receipts, strict=True)]
            columns = ([row[name] for row in changed] for name in transition_sql.WRITTEN)
            await db.fetch(transition_sql.CHANGE, *columns)

    receipts = ["SAME000001", "SAME000002"]
    found = await asyncio.gather(end(ids[:2], receipts), end(ids[2:], receipts[::-1]), return_exceptions=True)
    # One of them is first, and the other one's receipts have been used.
    assert [type(one) for one in found if one is not None] == [asyncpg.UniqueViolationError]
    assert await db.fetchval("SELECT count(*) FROM payment WHERE receipt IS NOT NULL") == 2


@pytest.mark.parametrize(
    ("statements", "count"),
    [
        (["SELECT * FROM payment WHERE payment_id = $1 FOR UPDATE", "UPDATE refund SET x = 1"], 1),
        (["SELECT * FROM refund FOR UPDATE", "UPDATE payment SET x = 1", "INSERT INTO callback VALUES (1)"], 0),
        (["UPDATE payment SET x = 1", "UPDATE idempotency_key SET y = 1", "UPDATE payment SET x = 2"], 1),
        (["WITH a AS (UPDATE idempotency_key SET x = 1), b AS (INSERT INTO payment VALUES (1)) SELECT 1"], 0),
        (["SELECT 1 FROM payment JOIN refund USING (payment_id) FOR UPDATE OF refund"], 0),
        (["INSERT INTO event VALUES (1)", "SELECT * FROM payment FOR UPDATE"], 1),
    ],
)
def test_a_lock_out_of_order_is_found(statements: list[str], count: int) -> None:
    assert len(out_of_order(statements)) == count
