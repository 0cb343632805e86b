"""The model: merchants, payers, Daraja, workers and accidents in any order, and what must be so after each of them."""

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mpesa_gateway.db.idempotency import KeyInProgress, KeyMismatch
from mpesa_gateway.errors import Conflict, NotFound, ProviderRejected, ProviderUnavailable
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.security.vault import CALLBACK_TOKENS
from mpesa_gateway_callbacks.tokens import read_token
from mpesa_gateway_payments.api import PaymentRequest
from mpesa_gateway_payments.states import MOVES, Status
from mpesa_gateway_reconciliation.errors import LineSettled
from mpesa_gateway_refunds.schemas import CreateRefund, Resolution
from tests.model import books
from tests.model.choices import (
    INITIATORS,
    PHONES,
    PULL_HABITS,
    PUSH_FAULTS,
    RESULT_HABITS,
    Accident,
    plans,
    purchase,
    purchases,
    which,
)
from tests.model.stage import SWEEPS, Stage
from tests.model.wire import Act, Plan, ProcessDied, live

T = TypeVar("T")

_STATUS_OF = {
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
    "refused": Status.FAILED,
    "expired": Status.FAILED,
    "reversed": Status.REVERSED,
    "partially_reversed": Status.PARTIALLY_REVERSED,
}
"""Steps of a timeline that are moves, and where each leads."""

_SEEN = """
SELECT json_build_object(
    'payments', (SELECT json_agg(json_build_object('id', payment_id, 'key', idempotency_key, 'status', status,
        'receipt', receipt, 'steps', (SELECT json_agg(kind ORDER BY number) FROM payment_step s
            WHERE s.payment_id = payment.payment_id)) ORDER BY created_at, idempotency_key) FROM payment),
    'events', (SELECT json_agg(event_id ORDER BY occurred_at, event_id) FROM event),
    'refunds', (SELECT json_agg(refund_id ORDER BY created_at, refund_id) FROM refund),
    'open', (SELECT json_agg(checkout_request_id ORDER BY created_at, checkout_request_id) FROM sim_push
        WHERE state = 'open'),
    'pushes', (SELECT json_agg(checkout_request_id ORDER BY created_at, checkout_request_id) FROM sim_push),
    'ledger', (SELECT json_agg(receipt ORDER BY at, receipt) FROM sim_transaction),
    'owed', (SELECT json_agg(callback_id ORDER BY callback_id) FROM sim_callback WHERE due_at IS NOT NULL),
    'made', (SELECT json_agg(callback_id ORDER BY callback_id) FROM sim_callback WHERE due_at IS NULL),
    'results owed', (SELECT json_agg(result_id ORDER BY result_id) FROM sim_result WHERE due_at IS NOT NULL),
    'results sent', (SELECT json_agg(result_id ORDER BY result_id) FROM sim_result WHERE due_at IS NULL)
)::text
"""


_REACHED = """
SELECT DISTINCT 'payment ' || kind || ' by ' || cause FROM payment_step
UNION SELECT DISTINCT 'payment held for ' || mismatch FROM payment WHERE mismatch IS NOT NULL
UNION SELECT DISTINCT 'refund ' || status || ': ' || COALESCE(outcome, '') FROM refund
UNION SELECT 'refund decided by a person' FROM refund WHERE result_code = 'operator'
UNION SELECT DISTINCT 'line ' || finding FROM statement_line
UNION SELECT DISTINCT 'question ' || state || ': ' || COALESCE(finding, '') FROM status_check
UNION SELECT DISTINCT 'push ' || behaviour || ': ' || COALESCE(result_code, '') FROM sim_push
UNION SELECT 'callback repeated' FROM callback WHERE repeats > 0
UNION SELECT 'delivery sent again' FROM delivery WHERE tried > 1
"""

_PATIENCE = 30
"""Rounds in which everything has to settle once all is well."""


@dataclass
class Asked:
    """What the merchant asked for with a key, and the payment or refund that came of it, once one is known."""

    request: Any
    made: str | None = None


class Money(RuleBasedStateMachine):
    """Payments, callbacks, queries, refunds and reconciliation, with the simulator's ledger as the truth."""

    stage: ClassVar[Stage]
    reached: ClassVar[Counter[str]] = Counter()
    """How many examples came to each kind of end: what the model does not reach, it does not test."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = False
        self.confirm = "never"
        self.payments: dict[str, Asked] = {}
        self.refunds: dict[str, Asked] = {}
        self.under_way: tuple[str, str] | None = None
        self.forged: set[str] = set()
        self.by_hand = 0
        self.reconciled_at = self.stage.clock.now()
        self.seen: dict[str, list[Any]] = {}
        self.timelines: dict[str, list[str]] = {}

    def run(self, work: Awaitable[Any]) -> None:
        """One step: let the loop turn until this is done, and look at the books."""

        async def do() -> None:
            await work
            await self._look()

        self.stage.run(do())

    @initialize(seed=st.integers(0, 1000), confirm=st.sampled_from(("never", "mismatch", "always")), bought=purchases)
    def begin(self, seed: int, confirm: str, bought: list[tuple[int, str, bool]]) -> None:
        """A new shop with its first customers, and a Daraja that has never heard of anybody."""
        self.confirm = confirm
        self.stage.run(self.stage.begin(seed, confirm))
        self.wire = self.stage.connect(self._perform, self._arrived)
        self.reconciled_at = self.stage.clock.now()
        self.stage.run(self._look())
        self.has_begun = True
        for amount, phone, is_told in bought:
            self.somebody_buys(amount, phone, is_told=is_told)

    # -- merchants ------------------------------------------------------------------------------------------------

    @rule(
        amount=st.sampled_from((70, 500)),
        phone=st.sampled_from(PHONES),
        reference=st.sampled_from((None, None, "RENT")),
        plan=plans,
        fault=st.none() | st.sampled_from(PUSH_FAULTS),
    )
    def request_a_payment(self, amount: int, phone: str, reference: str | None, plan: Plan, fault: str | None) -> None:
        key = f"k{len(self.payments)}"
        self.payments[key] = Asked(PaymentRequest(amount=Kes(amount), phone=Msisdn(phone), reference=reference))
        self.run(self._with_fault("stkpush", fault, plan, self._request(key)))

    @rule(purchase=purchase)
    def another_buys(self, purchase: tuple[int, str, bool]) -> None:
        amount, phone, is_told = purchase
        self.somebody_buys(amount, phone, is_told=is_told)

    def somebody_buys(self, amount: int, phone: str, *, is_told: bool) -> None:
        """All goes well, to the payer's PIN or to the callback."""
        key = f"k{len(self.payments)}"
        self.payments[key] = Asked(PaymentRequest(amount=Kes(amount), phone=Msisdn(phone)))
        self.run(self._buy(key, is_told))

    @precondition(lambda self: self.payments)
    @rule(nth=which, plan=plans, fault=st.none() | st.sampled_from(PUSH_FAULTS))
    def repeat_a_request(self, nth: int, plan: Plan, fault: str | None) -> None:
        self.run(self._with_fault("stkpush", fault, plan, self._request(_pick(list(self.payments), nth))))

    @precondition(lambda self: self.payments)
    @rule(nth=which)
    def repeat_a_key_with_another_body(self, nth: int) -> None:
        key = _pick(list(self.payments), nth)
        request: PaymentRequest = self.payments[key].request
        other = PaymentRequest(amount=Kes(request.amount + 1), phone=request.phone, reference=request.reference)

        async def work() -> None:
            try:
                await self.stage.payments.request(self.stage.caller.merchant_id, "sandbox", other, idempotency_key=key)
            except KeyMismatch:
                return
            raise AssertionError("a key was taken for another payment")

        self.run(work())

    @rule(nth=which, is_new=st.booleans(), plan=plans)
    def request_three_times_at_once(self, nth: int, is_new: bool, plan: Plan) -> None:
        if is_new or not self.payments:
            key = f"k{len(self.payments)}"
            self.payments[key] = Asked(PaymentRequest(amount=Kes(70), phone=Msisdn(PHONES[0])))
        else:
            key = _pick(list(self.payments), nth)
        self.wire.plan("stkpush", plan)
        self.run(_at_once(self._request(key) for _ in range(3)))

    @precondition(lambda self: self.payments)
    @rule(nth=which, plan=plans, is_by_receipt=st.booleans(), habit=st.sampled_from(RESULT_HABITS))
    def ask_for_a_status(self, nth: int, plan: Plan, is_by_receipt: bool, habit: str) -> None:
        names = self.seen["ledger"] if is_by_receipt else [payment["id"] for payment in self.seen["payments"]]
        if names:
            self.run(self._check(_pick(names, nth), habit, plan))

    @precondition(lambda self: self.seen["payments"])
    @rule(nth=which, plan=plans, fault=st.none() | st.sampled_from(("500.003.02", "500.003.1001", "404.001.03")))
    def ask_about_a_payment(self, nth: int, plan: Plan, fault: str | None) -> None:
        payment_id = _pick(self.seen["payments"], nth)["id"]
        self.run(
            self._with_fault(
                "stkquery",
                fault,
                plan,
                _refusable(self.stage.payments.ask_now(self.stage.caller.merchant_id, "sandbox", payment_id)),
            )
        )

    @precondition(lambda self: any(_is_paid(payment) for payment in self.seen["payments"]))
    @rule(
        nth=which,
        amount=st.sampled_from((None, 30, 40, 70, 500)),
        has_key=st.booleans(),
        habit=st.sampled_from(RESULT_HABITS),
        initiator=st.sampled_from(INITIATORS),
        plan=plans,
        times=st.sampled_from((1, 1, 3)),
    )
    def refund(
        self, nth: int, amount: int | None, has_key: bool, habit: str, initiator: str, plan: Plan, times: int
    ) -> None:
        payment = _pick([payment for payment in self.seen["payments"] if _is_paid(payment)], nth)
        body = CreateRefund(payment_id=payment["id"], amount=msgspec.Raw(b"null" if amount is None else b"%d" % amount))
        key = None
        if has_key or amount is not None:
            key = f"r{len(self.refunds)}"
            self.refunds[key] = Asked(body)
        self.run(self._reverse(body, key, habit, initiator, plan, times))

    @precondition(lambda self: self.refunds)
    @rule(nth=which, plan=plans, habit=st.sampled_from(RESULT_HABITS))
    def repeat_a_refund(self, nth: int, plan: Plan, habit: str) -> None:
        key = _pick(list(self.refunds), nth)
        self.run(self._reverse(self.refunds[key].request, key, habit, "testapi", plan, 1))

    @precondition(lambda self: self.seen["refunds"])
    @rule(nth=which, plan=plans, habit=st.sampled_from(RESULT_HABITS))
    def ask_about_a_refund(self, nth: int, plan: Plan, habit: str) -> None:
        refund_id = _pick(self.seen["refunds"], nth)
        ask = _refusable(self.stage.refunds.ask_now(self.stage.caller.merchant_id, "sandbox", refund_id))
        self.run(self._with_habit("transactionstatus", habit, plan, ask))

    # -- payers and Daraja ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.seen["open"])
    @rule(nth=which, answer=st.sampled_from(("pay", "pay", "cancel", "wrong_pin", "no_funds", "ignore")))
    def answer_a_prompt(self, nth: int, answer: str) -> None:
        self.run(self.stage.simulator.answer(_pick(self.seen["open"], nth), answer))

    @precondition(lambda self: self.seen["owed"])
    @rule(nth=which, times=st.sampled_from((1, 1, 3)))
    def call_back(self, nth: int, times: int) -> None:
        callback_id = _pick(self.seen["owed"], nth)
        self.run(self._call_back(callback_id, times))

    @precondition(lambda self: self.seen["owed"])
    @rule(nth=which)
    def lose_a_callback(self, nth: int) -> None:
        self.run(
            self.stage.db.execute(
                "UPDATE sim_callback SET due_at = NULL WHERE callback_id = $1", _pick(self.seen["owed"], nth)
            )
        )

    @precondition(lambda self: self.seen["made"])
    @rule(nth=which)
    def call_back_late_or_again(self, nth: int) -> None:
        self.run(self._call_back(_pick(self.seen["made"], nth), 1))

    @precondition(lambda self: self.seen["results owed"])
    @rule(nth=which, times=st.sampled_from((1, 1, 3)))
    def send_a_result(self, nth: int, times: int) -> None:
        self.run(self._send_result(_pick(self.seen["results owed"], nth), times))

    @precondition(lambda self: self.seen["results owed"])
    @rule(nth=which)
    def lose_a_result(self, nth: int) -> None:
        self.run(
            self.stage.db.execute(
                "UPDATE sim_result SET due_at = NULL WHERE result_id = $1", _pick(self.seen["results owed"], nth)
            )
        )

    @precondition(lambda self: self.seen["results sent"])
    @rule(nth=which)
    def send_a_result_late_or_again(self, nth: int) -> None:
        self.run(self._send_result(_pick(self.seen["results sent"], nth), 1))

    @rule(
        nth=which,
        amount=st.sampled_from((70, 500)),
        phone=st.sampled_from(PHONES[:2]),
        reference=st.sampled_from(("own", "RENT", "")),
        minutes=st.sampled_from((0, 8)),
    )
    def pay_at_the_counter(self, nth: int, amount: int, phone: str, reference: str, minutes: int) -> None:
        self.run(self._walk_in(nth, amount, phone, reference, minutes))

    @precondition(lambda self: self.seen["ledger"])
    @rule(nth=which, amount=st.sampled_from((30, 70, 500)))
    def reverse_on_the_portal(self, nth: int, amount: int) -> None:
        self.by_hand += 1
        self.run(self.stage.reverse_on_the_portal(_pick(self.seen["ledger"], nth), amount, self.by_hand))

    @precondition(lambda self: self.seen["pushes"])
    @rule(nth=which)
    def forge_a_callback(self, nth: int) -> None:
        """Somebody who has learned a callback's address lies: about the amount, or where it is asked back, at all."""
        self.run(self._forge(_pick(self.seen["pushes"], nth)))

    # -- reconciliation -------------------------------------------------------------------------------------------

    @rule(habit=st.sampled_from(PULL_HABITS), plan=plans, nth=which, hides=st.booleans())
    def reconcile(self, habit: str, plan: Plan, nth: int, hides: bool) -> None:
        ledger = self.seen["ledger"]
        self.wire.hidden = frozenset({_pick(ledger, nth)} if hides and ledger else ())
        self.run(self._reconcile(habit, plan))
        self.wire.hidden = frozenset()

    # -- time, workers, accidents ---------------------------------------------------------------------------------

    @precondition(lambda self: self.stage.clock.now() - self.reconciled_at < timedelta(hours=30))
    @rule(seconds=st.sampled_from((1, 30, 61, 155, 320, 901, 3600, 6 * 3600)))
    def time_passes(self, seconds: int) -> None:
        self.run(self.stage.pass_time(seconds))

    @rule(name=st.sampled_from(SWEEPS))
    def a_cron_fires(self, name: str) -> None:
        self.run(self.stage.cron(name))

    @rule(stkquery=plans, status=plans, habit=st.sampled_from(RESULT_HABITS))
    def workers_work(self, stkquery: Plan, status: Plan, habit: str) -> None:
        async def work() -> None:
            for name in SWEEPS:
                await self.stage.cron(name)
            await self.stage.work()

        self.wire.plan("stkquery", stkquery)
        self.run(self._with_habit("transactionstatus", habit, status, _mortal(work())))
        self.wire.mend()

    @rule(accident=st.sampled_from(Accident), status=st.sampled_from((200, 302, 404, 410, 500)))
    def it_happens(self, accident: Accident, status: int) -> None:
        self.run(self._happen(accident, status))

    # -- after every step -----------------------------------------------------------------------------------------

    async def _look(self) -> None:
        stage = self.stage
        wrong = await books.wrong(stage.db, stage.clock.now(), sorted(self.forged))
        assert not wrong, f"the books are wrong: {wrong}"
        assert not stage.swallowed, f"an error was logged and passed over: {stage.swallowed}"
        assert await stage.count_failed() == 0, "a job failed"
        found: dict[str, list[Any] | None] = msgspec.json.decode(await stage.db.fetchval(_SEEN))
        self.seen = {name: rows or [] for name, rows in found.items()}
        for payment in self.seen["payments"]:
            self._check_moves(payment)

    def _check_moves(self, payment: dict[str, Any]) -> None:
        steps: list[str] = payment["steps"]
        before = self.timelines.get(payment["id"], [])
        assert steps[: len(before)] == before, "what happened has been changed"
        self.timelines[payment["id"]] = steps
        now = Status.PENDING
        for step in steps:
            if step in _STATUS_OF:
                assert (now, _STATUS_OF[step]) in MOVES, f"{payment['id']} went {now} -> {step}"
                now = _STATUS_OF[step]
        assert now == payment["status"], f"{payment['id']} is {payment['status']}, and its steps say {now}"

    def teardown(self) -> None:
        """All is well again: everything settles, and the books are those of M-Pesa."""
        if self.has_begun and sys.exception() is None:
            self.stage.run(self._settle())

    async def _settle(self) -> None:
        stage = self.stage
        self.wire.mend()
        await stage.db.execute("DELETE FROM sim_fault")
        await stage.db.execute("DELETE FROM sim_habit")
        stage.receiver.status, stage.receiver.answer = 200, None
        await stage.become("testapi")
        for number in range(_PATIENCE):
            if number % 3 == 0:
                await stage.cron("reconciliation.reconcile_all")
            await stage.pass_time(301 if number else 61)
            await stage.call_back_all()
            for name in SWEEPS:
                await stage.cron(name)
            await stage.work()
            await self._decide()
            # The last reconciliation has to come after the last prompt has ended.
            is_due = number >= 3 and number % 3 == 0
            if is_due and not await books.wrong(stage.db, stage.clock.now(), sorted(self.forged), has_settled=True):
                break
        await self._look()
        wrong = await books.wrong(stage.db, stage.clock.now(), sorted(self.forged), has_settled=True)
        assert not wrong, f"all is well again, and the books are not: {wrong}"
        await self._check_webhooks()
        self.reached.update(row[0] for row in await stage.db.fetch(_REACHED))

    async def _decide(self) -> None:
        """What is left to people, who look at M-Pesa's portal."""
        stage = self.stage
        for row in await stage.db.fetch(
            "SELECT refund_id FROM refund WHERE status = 'pending' AND attention IS NOT NULL"
        ):
            went = row["refund_id"] in stage.reversals.values()
            resolution = Resolution(outcome="completed" if went else "failed", confirm=row["refund_id"], note="seen")
            await stage.refunds.resolve("sandbox", row["refund_id"], resolution, "model")
        lines = await stage.db.fetch(
            "SELECT l.line_id, s.callback_url FROM statement_line l JOIN sim_transaction t USING (receipt) "
            "JOIN sim_push s USING (checkout_request_id) WHERE l.finding = 'ambiguous'"
        )
        for row in lines:
            try:
                await stage.reconciliation.assign(stage.caller, row["line_id"], self._subject(row["callback_url"]))
            except LineSettled:
                continue
        await stage.replay_everything() if await self._is_dead() else None

    async def _is_dead(self) -> bool:
        return bool(await self.stage.db.fetchval("SELECT EXISTS (SELECT 1 FROM delivery WHERE status = 'dead')"))

    async def _check_webhooks(self) -> None:
        stage = self.stage
        events = {
            row["event_id"]: row["body"]
            for row in await stage.db.fetch("SELECT event_id, body FROM event WHERE is_public")
        }
        told: set[str] = set()
        for one in stage.receiver.received:
            event_id = one.headers["webhook-id"]
            assert events[event_id].encode() == one.body, "one event was told in two ways"
            told.add(event_id)
        assert told == set(events)
        paid = {payment["id"] for payment in self.seen["payments"] if "completed" in payment["steps"]}
        assert set(stage.fulfilled) == paid
        for payment in self.seen["payments"]:
            known = self.payments[payment["key"]].made
            assert known in {None, payment["id"]}

    # -- how it is done -------------------------------------------------------------------------------------------

    async def _request(self, key: str) -> None:
        asked, stage = self.payments[key], self.stage
        self.under_way = ("payment", key)
        try:
            made = await stage.payments.request(stage.caller.merchant_id, "sandbox", asked.request, idempotency_key=key)
        except ProcessDied:
            live()
            return
        except (KeyInProgress, ProviderRejected, ProviderUnavailable):
            return
        finally:
            self.under_way = None
        assert made.payment.idempotency_key == key
        assert (made.payment.amount, made.payment.phone) == (asked.request.amount.wire, asked.request.phone)
        assert asked.made in {None, made.payment.id}, "one key, two payments"
        asked.made = made.payment.id

    async def _buy(self, key: str, is_told: bool) -> None:
        stage = self.stage
        await self._request(key)
        row = await stage.db.fetchrow(
            "SELECT checkout_request_id FROM payment WHERE idempotency_key = $1 AND status = 'pending' "
            "AND checkout_request_id IS NOT NULL",
            key,
        )
        if row is None:
            # The token was no longer valid, and no new one was to be had.
            return
        await stage.simulator.answer(row["checkout_request_id"], "pay")
        if is_told:
            await stage.call_back_all()

    async def _happen(self, accident: Accident, status: int) -> None:
        stage = self.stage
        if accident is Accident.WORKER:
            await self._deliver_and_die()
        elif accident is Accident.ENDPOINT:
            stage.receiver.status = status
        elif accident is Accident.VALKEY:
            await stage.gateway.valkey.flushdb()
        elif accident is Accident.REPLAY:
            await stage.replay_everything()
        else:
            await stage.db.execute("UPDATE sim_token SET token = 'another'")
            if accident is Accident.NO_TOKEN:
                await stage.simulator.set_fault("oauth", "500.003.02", 1)

    async def _reverse(
        self, body: CreateRefund, key: str | None, habit: str, initiator: str, plan: Plan, times: int
    ) -> None:
        await self.stage.become(initiator)
        ask = _at_once(self._ask_back(body, key) for _ in range(times))
        await self._with_habit("reversal", habit, plan, ask)
        await self.stage.become("testapi")

    async def _ask_back(self, body: CreateRefund, key: str | None) -> None:
        if key is not None:
            self.under_way = ("refund", key)
        try:
            made, _ = await self.stage.refunds.request(self.stage.caller, body, key)
        except ProcessDied:
            live()
            return
        except (Conflict, ProviderRejected, ProviderUnavailable):
            return
        finally:
            self.under_way = None
        if key is not None:
            asked = self.refunds[key]
            assert asked.made in {None, made.id}, "one key, two refunds"
            asked.made = made.id

    async def _check(self, name: str, habit: str, plan: Plan) -> None:
        ask = _refusable(self.stage.checks.ask(self.stage.caller.merchant_id, "sandbox", name))
        await self._with_habit("transactionstatus", habit, plan, ask)

    async def _reconcile(self, habit: str, plan: Plan) -> None:
        began = self.stage.clock.now()
        shortcode_id = self.stage.shortcode_id
        await self._with_habit("pullquery", habit, plan, _mortal(self.stage.reconciliation.run_due(shortcode_id)))
        reached = await self.stage.db.fetchval(
            "SELECT max(window_end) FROM reconciliation_run WHERE status = 'completed' AND window_end >= $1", began
        )
        self.reconciled_at = reached or self.reconciled_at

    async def _with_habit(self, operation: str, habit: str, plan: Plan, work: Awaitable[Any]) -> None:
        await self.stage.simulator.set_habit(operation, habit)
        self.wire.plan(operation, plan)
        await work
        await self.stage.simulator.set_habit(operation, "normal")
        self.wire.plan(operation, Plan())

    async def _with_fault(self, operation: str, fault: str | None, plan: Plan, work: Awaitable[Any]) -> None:
        if fault is not None:
            await self.stage.simulator.set_fault(operation, fault, 1)
        self.wire.plan(operation, plan)
        await work
        self.wire.plan(operation, Plan())

    async def _call_back(self, callback_id: int, times: int) -> None:
        statuses = await asyncio.gather(*(self.stage.call_back(callback_id) for _ in range(times)))
        assert set(statuses) == {200}

    async def _send_result(self, result_id: int, times: int) -> None:
        statuses = await asyncio.gather(*(self.stage.send_result(result_id) for _ in range(times)))
        assert set(statuses) == {200}

    async def _walk_in(self, nth: int, amount: int, phone: str, reference: str, minutes: int) -> None:
        stage = self.stage
        if reference == "own":
            row = await stage.db.fetchrow(
                "SELECT amount, phone, reference FROM payment ORDER BY created_at DESC, idempotency_key DESC "
                "OFFSET $1 LIMIT 1",
                nth % max(1, len(self.seen["payments"])),
            )
            if row is None:
                return
            phone, reference = row["phone"], row["reference"]
        shortcode = await stage.db.fetchval("SELECT shortcode FROM sim_registration")
        at = stage.clock.now() - timedelta(minutes=minutes)
        await stage.simulator.add_money(phone, amount, shortcode, reference, at)

    async def _forge(self, checkout_request_id: str) -> None:
        push = await self.stage.simulator.find(checkout_request_id)
        self.forged.add(self._subject(push["callback_url"]))
        amount = push["amount"] if self.confirm == "always" else push["amount"] + 7
        assert await self.stage.simulator.forge(checkout_request_id, checkout_request_id, amount, None) == 200

    async def _deliver_and_die(self) -> None:
        """A worker is killed between the merchant's answer and its own note of it."""
        stage = self.stage
        due = [
            row["delivery_id"]
            for row in await stage.db.fetch(
                "SELECT delivery_id FROM delivery WHERE status = 'pending' AND due_at <= $1 ORDER BY 1",
                stage.clock.now(),
            )
        ]
        task = asyncio.ensure_future(stage.deliveries.deliver(due))

        def kill(_: Any, __: int) -> int:
            task.cancel()
            return stage.receiver.status

        stage.receiver.answer = kill
        await asyncio.gather(task, return_exceptions=True)
        stage.receiver.answer = None

    async def _perform(self, act: Act) -> None:
        """What happens while a call is under way."""
        stage = self.stage
        if act in {Act.PAY, Act.CANCEL}:
            row = await stage.db.fetchrow(
                "SELECT checkout_request_id FROM sim_push WHERE state = 'open' "
                "ORDER BY created_at DESC, checkout_request_id LIMIT 1"
            )
            if row is not None:
                await stage.simulator.answer(row["checkout_request_id"], "pay" if act is Act.PAY else "cancel")
            await stage.call_back_all()
        elif act is Act.CALL_BACK:
            await stage.call_back_all()
        elif act is Act.WAIT:
            await stage.pass_time(200)
        elif act is Act.FLUSH:
            await stage.gateway.valkey.flushdb()
        elif act is Act.ASK:
            await stage.ask_due()
        elif self.under_way is not None:
            what, key = self.under_way
            await (self._request(key) if what == "payment" else self._ask_back(self.refunds[key].request, key))

    async def _arrived(self, operation: str, body: Any) -> None:
        """Note which refund a reversal was sent for, as M-Pesa's people would find it in their own records."""
        if operation != "reversal":
            return
        refund_id = self._subject(body["ResultURL"])
        rows = await self.stage.db.fetch(
            "SELECT receipt FROM sim_reversal WHERE originator_conversation_id NOT LIKE 'portal-%'"
        )
        for row in rows:
            self.stage.reversals.setdefault(row["receipt"], refund_id)

    def _subject(self, address: str) -> str:
        """What an address that we handed to Daraja is about."""
        kind, _, token = address.partition("/v1/cb/")[2].partition("/")
        subject = read_token(self.stage.gateway.vault.secret(CALLBACK_TOKENS), kind, token)
        assert subject is not None
        return subject.subject_id


def _pick(some: Sequence[T], nth: int) -> T:
    return some[-1 - nth % len(some)]


def _is_paid(payment: dict[str, Any]) -> bool:
    return payment["status"] in {"completed", "partially_reversed", "reversed"}


async def _at_once(works: Iterable[Awaitable[Any]]) -> None:
    """Do all of this side by side."""
    await asyncio.gather(*works)


async def _mortal(work: Awaitable[Any]) -> None:
    """Do this, unless the process dies."""
    try:
        await work
    except ProcessDied:
        live()


async def _refusable(work: Awaitable[Any]) -> None:
    """Do this; being refused for what the object is, or by Daraja, is fine, and so is the process's death."""
    try:
        await _mortal(work)
    except (Conflict, NotFound, ProviderRejected, ProviderUnavailable):
        return
