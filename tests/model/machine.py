"""The model: merchants, payers, Daraja, workers and faults in any order, with invariants checked after each step."""

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

from mpesa_gateway.security.scopes import Env
from tests.model import books
from tests.model.choices import (
    ACK_HABITS,
    CALLBACK_HABITS,
    INITIATORS,
    OAUTH_HABITS,
    PHONES,
    PULL_HABITS,
    PUSH_FAULTS,
    QUERY_FAULTS,
    QUERY_HABITS,
    REFERENCES,
    REVERSAL_HABITS,
    SILENT,
    STATUS_HABITS,
    Accident,
    plans,
    purchase,
    purchases,
    which,
)
from tests.model.product import NO_PAYMENT, POSTGRES_AWAY, RECONCILE, REFUSED, SWEEPS, NotConfigured, OtherBody
from tests.model.stage import DAWN, ENVS, MOVED, REFUSED_BODY, Shop, Stage
from tests.model.wire import Act, Plan, ProcessDied, start_process

T = TypeVar("T")

_STATUS_OF = {
    "completed": "completed",
    "failed": "failed",
    "refused": "failed",
    "expired": "failed",
    "reversed": "reversed",
    "partially_reversed": "partially_reversed",
}
"""Timeline steps that change the status, with the new status."""

_MOVES = {
    "pending": {"completed", "failed"},
    "failed": {"completed"},
    "completed": {"reversed", "partially_reversed"},
    "partially_reversed": {"partially_reversed", "reversed"},
}
"""The allowed status changes of a payment."""

_SEEN = """
SELECT json_build_object(
    'payments', (SELECT json_agg(json_build_object('id', id_text(payment_id), 'key', idempotency_key, 'status', status,
        'merchant', id_text(merchant_id), 'env', env, 'due', due_at,
        'receipt', receipt, 'steps', (SELECT json_agg(kind ORDER BY at, rank, number) FROM payment_timeline s
            WHERE s.payment_id = payment.payment_id)) ORDER BY created_at, idempotency_key) FROM payment),
    'events', (SELECT json_agg(id_text(event_id) ORDER BY occurred_at, event_id) FROM event),
    'refunds', (SELECT json_agg(json_build_object('id', id_text(refund_id), 'merchant', id_text(merchant_id),
        'env', env) ORDER BY created_at, refund_id) FROM refund),
    'lines', (SELECT json_agg(json_build_object('id', id_text(line_id), 'receipt', receipt,
        'merchant', id_text(merchant), 'env', env) ORDER BY receipt, line_id, merchant) FROM (
            SELECT DISTINCT transaction_id AS line_id, t.receipt, r.merchant_id AS merchant, r.env
            FROM reconciliation_line JOIN reconciliation_run r USING (run_id) JOIN transaction t USING (transaction_id)
                LEFT JOIN payment p ON p.payment_id = t.subject_id
            WHERE p.merchant_id IS DISTINCT FROM r.merchant_id) loose),
    'open', (SELECT json_agg(checkout_request_id ORDER BY created_at, checkout_request_id) FROM sim_push
        WHERE state = 'open'),
    'pushes', (SELECT json_agg(checkout_request_id ORDER BY created_at, checkout_request_id) FROM sim_push),
    'ledger', (SELECT json_agg(receipt ORDER BY at, receipt) FROM (
        SELECT receipt, at FROM sim_transaction UNION ALL SELECT receipt, at FROM sim_reversal) moved),
    'paid', (SELECT json_agg(receipt ORDER BY at, receipt) FROM sim_transaction
        WHERE NOT is_out AND party = ''),
    'owed', (SELECT json_agg(callback_id ORDER BY callback_id) FROM sim_callback WHERE due_at IS NOT NULL),
    'made', (SELECT json_agg(callback_id ORDER BY callback_id) FROM sim_callback WHERE due_at IS NULL),
    'results owed', (SELECT json_agg(result_id ORDER BY result_id) FROM sim_result WHERE due_at IS NOT NULL),
    'results sent', (SELECT json_agg(result_id ORDER BY result_id) FROM sim_result WHERE due_at IS NULL)
)::text
"""


_REACHED = """
SELECT DISTINCT 'payment ' || kind || ' by ' || cause FROM payment_timeline
UNION SELECT DISTINCT 'payment held for ' || mismatch FROM payment WHERE mismatch IS NOT NULL
UNION SELECT DISTINCT 'refund ' || status || ': ' || COALESCE(outcome, '') FROM refund
UNION SELECT 'refund decided by a person' FROM refund WHERE result_code = 'operator'
UNION SELECT DISTINCT 'line ' || finding FROM noted_line
UNION SELECT DISTINCT 'question ' || state || ': ' || COALESCE(finding, '') FROM status_check
UNION SELECT DISTINCT 'push ' || behaviour || ': ' || COALESCE(result_code, '') FROM sim_push
UNION SELECT 'callback repeated' FROM callback WHERE repeats > 0
UNION SELECT 'delivery sent again' FROM delivery WHERE tried > 1
UNION SELECT DISTINCT 'money: ' || kind FROM sim_transaction
"""

_PATIENCE = 30
"""Rounds within which everything settles once all parts are healthy."""

_SOON = 250
"""Polls, 20 ms apart, within which a webhook arrives while Daraja hangs."""


@dataclass
class ShopRequest:
    """A shop's request with an idempotency key, and the resulting payment or refund once known.

    ``amount`` is in KES, None for a whole refund; ``of`` is the payment that a refund is of.
    """

    key: str
    shop: int
    env: Env
    amount: int | None
    phone: str = ""
    reference: str | None = None
    of: str = ""
    made: str | None = None


class Money(RuleBasedStateMachine):
    """Payments, callbacks, queries, refunds and reconciliation, with the simulator's ledger as the truth."""

    stage: ClassVar[Stage]
    reached: ClassVar[Counter[str]] = Counter()
    """The number of examples that reached each kind of end: unreached ends are untested."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = self.is_live = False
        self.confirm = "never"
        self.payments: list[ShopRequest] = []
        self.refunds: list[ShopRequest] = []
        self.under_way: tuple[str, ShopRequest] | None = None
        self.known = books.Known()
        self.by_hand = 0
        self.reconciled_at = self.stage.clock.now()
        self.seen: dict[str, list[Any]] = {}
        self.timelines: dict[str, list[str]] = {}

    def run(self, work: Awaitable[Any]) -> None:
        """Run one step to its end and check the books."""

        async def do() -> None:
            await work
            await self._check_books()

        self.stage.run(do())

    @initialize(
        seed=st.integers(0, 1000),
        confirm=st.sampled_from(("never", "mismatch", "always")),
        other=st.sampled_from(("neighbour", "till")),
        strangers=st.sampled_from((4, 4, 0)),
        bought=purchases,
    )
    def begin(self, seed: int, confirm: str, other: str, strangers: int, bought: list[tuple[int, str, bool]]) -> None:
        """Two new shops with their first payments, and an empty Daraja."""
        self.confirm = confirm
        self.stage.run(self.stage.begin(seed, confirm, strangers, other))
        self.wire = self.stage.connect(self._perform, self._arrived)
        self.known.acknowledged = self.wire.acknowledged
        self.reconciled_at = self.stage.clock.now()
        self.stage.run(self._check_books())
        self.has_begun = True
        for amount, phone, is_delivered in bought:
            self.complete_a_payment(0, amount, phone, is_delivered=is_delivered)

    # -- merchants ------------------------------------------------------------------------------------------------

    @rule(
        shop=st.integers(0, 1),
        wants_live=st.booleans(),
        amount=st.sampled_from((70, 500)),
        phone=st.sampled_from(PHONES),
        reference=st.sampled_from(REFERENCES),
        plan=plans,
        fault=st.none() | st.sampled_from(PUSH_FAULTS),
        ack=st.just("normal") | st.sampled_from(ACK_HABITS),
    )
    def request_a_payment(
        self,
        amount: int,
        phone: str,
        reference: str | None,
        plan: Plan,
        fault: str | None,
        *,
        shop: int = 0,
        wants_live: bool = False,
        ack: str = "normal",
    ) -> None:
        request = self._new(shop, amount, phone, reference, "live" if wants_live and shop == 0 else "sandbox")
        self.run(self._with_ack(ack, self._with_fault("stkpush", fault, plan, self._request(request))))

    @rule(shop=st.integers(0, 1), purchase=purchase)
    def request_a_payment_by_another_payer(self, shop: int, purchase: tuple[int, str, bool]) -> None:
        amount, phone, is_delivered = purchase
        self.complete_a_payment(shop, amount, phone, is_delivered=is_delivered)

    def complete_a_payment(self, shop: int, amount: int, phone: str, *, is_delivered: bool) -> None:
        """A payment succeeds, up to the payer's PIN or the callback."""
        self.run(self._buy(self._new(shop, amount, phone), is_delivered))

    @precondition(lambda self: self.payments)
    @rule(nth=which, plan=plans, fault=st.none() | st.sampled_from(PUSH_FAULTS))
    def repeat_a_request(self, nth: int, plan: Plan, fault: str | None) -> None:
        self.run(self._with_fault("stkpush", fault, plan, self._request(_pick(self.payments, nth))))

    @precondition(lambda self: not self.is_live)
    @rule()
    def go_live(self) -> None:
        """The first shop gets a live env and keeps its sandbox."""
        self.is_live = True
        self.run(self.stage.go_live(self.stage.shops[0]))

    @precondition(lambda self: self.is_live and self.payments)
    @rule(nth=which)
    def repeat_a_request_in_the_other_env(self, nth: int) -> None:
        """The same key and body with the API key of the other env: another payment."""
        first = _pick(self.payments, nth)
        other: Env = "live" if first.env == "sandbox" else "sandbox"
        if first.shop == 0 and not any((one.key, one.env) == (first.key, other) for one in self.payments):
            request = ShopRequest(first.key, 0, other, first.amount, first.phone, first.reference)
            self.payments.append(request)
            self.run(self._request(request))

    @rule(shop=st.integers(0, 1), wants_live=st.booleans())
    def list_payments(self, shop: int, wants_live: bool) -> None:
        env: Env = "live" if wants_live and self.is_live and shop == 0 else "sandbox"
        self.run(self._list(shop, env))

    @precondition(lambda self: self.payments)
    @rule()
    def move_to_another_shortcode(self) -> None:
        """The first shop stores another paybill while payments of the old one are pending."""
        changes = {"shortcode": MOVED}
        self.run(_refusable(self.stage.configure(self.stage.shops[0], "sandbox", changes)))

    @precondition(lambda self: self.seen["lines"] and self.seen["payments"])
    @rule(nth=which, other=which)
    def assign_a_line(self, nth: int, other: int) -> None:
        """A merchant assigns an unmatched line to one of its payments."""
        line = _pick(self.seen["lines"], nth)
        own = [one for one in self.seen["payments"] if (one["merchant"], one["env"]) == (line["merchant"], line["env"])]
        if own:
            self.run(self._assign(line, _pick(own, other)))

    @precondition(lambda self: self.payments)
    @rule(nth=which)
    def repeat_a_key_with_another_body(self, nth: int) -> None:
        request = _pick(self.payments, nth)
        if request.env == "live" and not self.is_live:
            return
        other = ShopRequest(
            request.key, request.shop, request.env, (request.amount or 0) + 1, request.phone, request.reference
        )

        async def work() -> None:
            try:
                await self._call_request(other)
            except OtherBody:
                return
            raise AssertionError("a key was taken for another payment")

        if request.made is not None:
            self.run(work())

    @rule(nth=which, is_new=st.booleans(), plan=plans)
    def request_three_times_at_once(self, nth: int, is_new: bool, plan: Plan) -> None:
        request = self._new(0, 70, PHONES[0]) if is_new or not self.payments else _pick(self.payments, nth)
        self.wire.plan("stkpush", plan)
        self.run(_at_once(self._request(request) for _ in range(3)))

    @rule(shop=st.integers(0, 1), plan=plans)
    def request_three_payments_at_once(self, shop: int, plan: Plan) -> None:
        """Three payments with concurrent acknowledgements; a fault of one must not affect the others."""
        three = [self._new(shop, 70, phone) for phone in (PHONES[0], PHONES[1], SILENT)]
        self.wire.plan("stkpush", plan)
        self.run(_at_once(self._request(request) for request in three))

    @precondition(lambda self: self.seen["payments"])
    @rule(
        nth=which,
        which_payment=which,
        plan=plans,
        is_by_receipt=st.booleans(),
        habit=st.sampled_from(STATUS_HABITS),
    )
    def query_a_receipt(self, nth: int, which_payment: int, plan: Plan, is_by_receipt: bool, habit: str) -> None:
        payment = _pick(self.seen["payments"], which_payment)
        ledger = self.seen["ledger"]
        if not is_by_receipt or ledger:
            # Any receipt: of another payer, a payout, a reversal, another shop.
            what = ledger[nth * 5 % len(ledger)] if is_by_receipt else payment["id"]
            self.run(self._check(payment, what, habit, plan))

    @precondition(lambda self: self.seen["payments"])
    @rule(
        nth=which,
        plan=plans,
        fault=st.none() | st.sampled_from(QUERY_FAULTS),
        habit=st.just("normal") | st.sampled_from(QUERY_HABITS),
    )
    def query_a_payment(self, nth: int, plan: Plan, fault: str | None, habit: str = "normal") -> None:
        payment = _pick(self.seen["payments"], nth)
        ask = _refusable(self.stage.product.query_payment(self._caller(payment), payment["id"]))
        self.run(self._with_habit("stkquery", habit, plan, self._with_fault("stkquery", fault, plan, ask)))

    @precondition(lambda self: any(_is_paid(payment) for payment in self.seen["payments"]))
    @rule(
        nth=which,
        amount=st.sampled_from((None, 30, 40, 70, 500)),
        has_key=st.booleans(),
        habit=st.sampled_from(REVERSAL_HABITS),
        initiator=st.sampled_from(INITIATORS),
        plan=plans,
        times=st.sampled_from((1, 1, 3)),
    )
    def refund(
        self, nth: int, amount: int | None, has_key: bool, habit: str, initiator: str, plan: Plan, times: int
    ) -> None:
        payment = _pick([payment for payment in self.seen["payments"] if _is_paid(payment)], nth)
        shop = self.stage.shop_of(payment["merchant"]).number
        # Without an idempotency key each call with an amount is one more refund.
        key = f"r{len(self.refunds)}" if has_key or amount is not None else ""
        request = ShopRequest(key, shop, payment["env"], amount, of=payment["id"])
        if key:
            self.refunds.append(request)
        self.run(self._reverse(request, habit, initiator, plan, times))

    @precondition(lambda self: self.refunds)
    @rule(nth=which, plan=plans, habit=st.sampled_from(REVERSAL_HABITS))
    def repeat_a_refund(self, nth: int, plan: Plan, habit: str) -> None:
        self.run(self._reverse(_pick(self.refunds, nth), habit, "testapi", plan, 1))

    @precondition(lambda self: self.seen["refunds"])
    @rule(nth=which, plan=plans, habit=st.sampled_from(STATUS_HABITS))
    def query_a_refund(self, nth: int, plan: Plan, habit: str) -> None:
        refund = _pick(self.seen["refunds"], nth)
        ask = _refusable(self.stage.product.query_refund(self._caller(refund), refund["id"]))
        self.run(self._with_habit("transactionstatus", habit, plan, ask))

    # -- payers and Daraja ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.seen["open"])
    @rule(nth=which, answer=st.sampled_from(("pay", "pay", "cancel", "wrong_pin", "no_funds", "ignore")))
    def answer_a_prompt(self, nth: int, answer: str) -> None:
        self.run(self.stage.answer(_pick(self.seen["open"], nth), answer))

    @precondition(lambda self: self.seen["owed"])
    @rule(nth=which, times=st.sampled_from((1, 1, 3)))
    def call_back(self, nth: int, times: int) -> None:
        callback_id = _pick(self.seen["owed"], nth)
        self.run(self._call_back(callback_id, times))

    @precondition(lambda self: self.seen["owed"])
    @rule(nth=which)
    def lose_a_callback(self, nth: int) -> None:
        self.run(
            self.stage.in_each_env(
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
            self.stage.in_each_env(
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

    @rule(habit=st.sampled_from(CALLBACK_HABITS), token=st.sampled_from(OAUTH_HABITS))
    def change_daraja_formats(self, habit: str, token: str) -> None:
        """From now on Daraja's callbacks and token answers have this variant."""

        async def work() -> None:
            await self.stage.set_habit("callback", habit)
            await self.stage.set_habit("oauth", token)

        self.run(work())

    @precondition(lambda self: self.seen["paid"])
    @rule(nth=which, amount=st.sampled_from((30, 70, 500)))
    def reverse_on_the_portal(self, nth: int, amount: int) -> None:
        self.by_hand += 1
        self.run(self.stage.reverse_on_the_portal(_pick(self.seen["paid"], nth), amount, self.by_hand))

    @precondition(lambda self: self.seen["pushes"])
    @rule(nth=which)
    def forge_a_callback(self, nth: int) -> None:
        """A forged callback at a leaked address, with a wrong amount or, if confirmed by query, any content."""
        self.run(self._forge(_pick(self.seen["pushes"], nth)))

    # -- reconciliation -------------------------------------------------------------------------------------------

    @rule(
        habit=st.sampled_from(PULL_HABITS),
        plan=plans,
        nth=which,
        hides=st.booleans(),
        shop=st.sampled_from((None, 0, 1)),
    )
    def reconcile(self, habit: str, plan: Plan, nth: int, hides: bool, shop: int | None = None) -> None:
        """One shop or both run a reconciliation; one receipt may be missing from all statements."""
        paid = self.seen["paid"]
        self.wire.hidden = frozenset({_pick(paid, nth)} if hides and paid else ())
        self.run(self._reconcile(habit, plan, self.stage.shops if shop is None else [self.stage.shops[shop]]))
        self.wire.hidden = frozenset()

    # -- time, workers, faults ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.stage.clock.now() - self.reconciled_at < timedelta(hours=30))
    @rule(seconds=st.sampled_from((1, 30, 61, 155, 320, 901, 3600, 6 * 3600)))
    def time_passes(self, seconds: int) -> None:
        self.run(self.stage.pass_time(seconds))

    @rule(name=st.sampled_from(SWEEPS))
    def run_a_cron(self, name: str) -> None:
        self.run(self.stage.product.cron(name))

    @rule(
        stkquery=plans,
        status=plans,
        habit=st.sampled_from(STATUS_HABITS),
        query=st.just("normal") | st.sampled_from(QUERY_HABITS),
    )
    def run_workers(self, stkquery: Plan, status: Plan, habit: str, query: str = "normal") -> None:
        async def work() -> None:
            await self._sweep()
            await self.stage.product.work()

        self.wire.plan("stkquery", stkquery)
        work_all = self._with_habit("transactionstatus", habit, status, _mortal(work()))
        self.run(self._with_habit("stkquery", query, stkquery, work_all))
        self.wire.remove_faults()

    @rule()
    def daraja_hangs(self) -> None:
        """Queries to Daraja hang, and more are due than a worker has slots."""
        self.run(self._hang())

    @rule(accident=st.sampled_from(Accident), status=st.sampled_from((200, 302, 404, 410, 500)))
    def inject_an_accident(self, accident: Accident, status: int) -> None:
        self.run(self._happen(accident, status))

    # -- after every step -----------------------------------------------------------------------------------------

    async def _check_books(self) -> None:
        stage = self.stage
        wrong = await books.wrong(stage.db, stage.clock.now(), self.known)
        assert not wrong, f"the books are wrong: {wrong}"
        assert not stage.swallowed, f"an error was logged and passed over: {stage.swallowed}"
        assert await stage.product.count_failed() == 0, "a job failed"
        found: dict[str, list[Any] | None] = msgspec.json.decode(await stage.db.fetchval(_SEEN))
        self.seen = {name: rows or [] for name, rows in found.items()}
        for payment in self.seen["payments"]:
            self._check_moves(payment)

    def _check_moves(self, payment: dict[str, Any]) -> None:
        steps: list[str] = payment["steps"]
        before = self.timelines.get(payment["id"], [])
        # An acknowledgement recorded late is listed before the steps that followed it.
        rest = iter(steps)
        assert all(step in rest for step in before), "what happened has been changed"
        self.timelines[payment["id"]] = steps
        now = "pending"
        for step in steps:
            if step in _STATUS_OF:
                assert _STATUS_OF[step] in _MOVES.get(now, set()), f"{payment['id']} went {now} -> {step}"
                now = _STATUS_OF[step]
        assert now == payment["status"], f"{payment['id']} is {payment['status']}, and its steps say {now}"

    def teardown(self) -> None:
        """All parts are healthy again: everything settles, and the books equal M-Pesa's."""
        if self.has_begun and sys.exception() is None:
            self.stage.run(self._settle())

    async def _settle(self) -> None:
        stage = self.stage
        self.wire.remove_faults()
        await stage.in_each_env("DELETE FROM sim_fault; DELETE FROM sim_habit")
        stage.receiver.status, stage.receiver.answer = 200, None
        for shop in stage.shops:
            for env in shop.fields:
                await stage.store_initiator(shop, env, "testapi")
                await stage.product.register(shop.callers[env])
        for number in range(_PATIENCE):
            if number % 3 == 0:
                await stage.product.cron(RECONCILE)
            await stage.pass_time(301 if number else 61)
            await stage.call_back_all()
            await self._sweep()
            await stage.product.work()
            await self._decide()
            # The last reconciliation must follow the end of the last prompt.
            is_due = number >= 3 and number % 3 == 0
            if is_due and not await books.wrong(stage.db, stage.clock.now(), self.known, has_settled=True):
                break
        await self._check_books()
        wrong = await books.wrong(stage.db, stage.clock.now(), self.known, has_settled=True)
        assert not wrong, f"all parts are healthy again, and the books are not: {wrong}"
        await self._check_webhooks()
        self.reached.update(row[0] for row in await stage.db.fetch(_REACHED))

    async def _sweep(self) -> None:
        for name in SWEEPS:
            await self.stage.product.cron(name)

    async def _decide(self) -> None:
        """Decide the cases left to operators, from M-Pesa's portal."""
        stage = self.stage
        for row in await stage.db.fetch(
            "SELECT refund_id, env FROM refund WHERE status = 'pending' AND attention IS NOT NULL"
        ):
            went = row["refund_id"] in stage.reversals.values()
            await stage.product.decide_refund(row["env"], row["refund_id"], went_back=went)
        for row in await stage.db.fetch(books.LEFT_TO_A_PERSON):
            caller = stage.caller(row["merchant_id"], row["env"])
            await _refusable(stage.product.decide_line(caller, row["line_id"], row["payment_id"]))
        for row in await stage.db.fetch(books.HELD_WITH_A_RECEIPT):
            caller = stage.caller(row["merchant_id"], row["env"])
            await _refusable(stage.product.check(caller, row["received_receipt"]))
        if await self._is_dead():
            await self._replay()

    async def _replay(self) -> None:
        for shop in self.stage.shops:
            for env in shop.fields:
                await self.stage.product.replay(shop.callers[env], DAWN)

    async def _is_dead(self) -> bool:
        return bool(await self.stage.db.fetchval("SELECT EXISTS (SELECT 1 FROM delivery WHERE status = 'dead')"))

    async def _check_webhooks(self) -> None:
        stage = self.stage
        rows = await stage.db.fetch(
            "SELECT e.event_id, e.body, e.merchant_id, COALESCE(p.env, r.env, 'sandbox') AS env FROM event e "
            "LEFT JOIN payment p ON p.payment_id = e.subject_id LEFT JOIN refund r ON r.refund_id = e.subject_id "
            "WHERE e.is_public"
        )
        events = {row["event_id"]: row for row in rows}
        delivered: set[str] = set()
        for one in stage.receiver.received:
            event = events[one.headers["webhook-id"]]
            assert event["body"].encode() == one.body, "one event has two bodies"
            path = f"/{stage.shop_of(event['merchant_id']).number}/{event['env']}"
            assert one.path.endswith(path), f"untold: an event of {path} was told at {one.path}"
            delivered.add(event["event_id"])
        assert delivered == set(events), "untold: an event that no endpoint took"
        paid = {payment["id"] for payment in self.seen["payments"] if "completed" in payment["steps"]}
        assert set(stage.fulfilled) == paid
        for request in self.payments:
            ids = {one["id"] for one in self.seen["payments"] if (one["key"], one["env"]) == (request.key, request.env)}
            assert request.made is None or request.made in ids, "lost: a payment that a merchant got as an answer"

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _new(
        self, shop: int, amount: int, phone: str, reference: str | None = None, env: Env = "sandbox"
    ) -> ShopRequest:
        request = ShopRequest(
            f"k{len(self.payments)}", shop, env if self.is_live else "sandbox", amount, phone, reference
        )
        self.payments.append(request)
        return request

    def _caller(self, row: dict[str, Any]) -> Any:
        return self.stage.caller(row["merchant"], row["env"])

    async def _call_request(self, request: ShopRequest) -> tuple[str, int, str]:
        body: dict[str, Any] = {"amount": request.amount, "phone": request.phone}
        if request.reference is not None:
            body["reference"] = request.reference
        caller = self.stage.shops[request.shop].callers[request.env]
        return await self.stage.product.request(caller, body, request.key)

    async def _request(self, request: ShopRequest) -> None:
        self.under_way = ("payment", request)
        try:
            made, amount, phone = await self._call_request(request)
        except ProcessDied:
            start_process()
            return
        except NotConfigured as problem:
            raise AssertionError(f"a world that is configured is not: {problem}") from None
        except NO_PAYMENT:
            return
        finally:
            self.under_way = None
        assert (amount, phone) == (request.amount, request.phone)
        assert request.made in {None, made}, "doubled: one key, two payments"
        others = [one for one in self.payments if one.made == made and one.env != request.env]
        assert not others, "one payment for two worlds"
        request.made = made

    async def _list(self, shop: int, env: Env) -> None:
        listed = await self.stage.product.listed(self.stage.shops[shop].callers[env])
        strangers = {one.made for one in self.payments if (one.shop, one.env) != (shop, env)} & set(listed)
        assert not strangers, f"a list of {env} shows payments of the other env, or of another merchant: {strangers}"

    async def _assign(self, line: dict[str, Any], payment: dict[str, Any]) -> None:
        """Assign a line: a rejection is accepted, a success only without evidence against it."""
        stage = self.stage
        before = payment["status"], payment["receipt"]
        may_be = await stage.db.fetchval(books.MAY_BE_ASSIGNED, payment["id"], line["receipt"])
        if may_be:
            self.known.assigned.add(payment["id"])
        await _refusable(stage.product.assign(self._caller(line), line["id"], payment["id"]))
        row = await stage.db.fetchrow("SELECT status, receipt FROM payment WHERE payment_id = $1", payment["id"])
        assert row is not None
        is_taken = row["receipt"] == line["receipt"] and tuple(row) != before
        assert may_be or not is_taken, "invented: a merchant was believed against the evidence"

    async def _hang(self) -> None:
        """A new payment's webhook is sent, and due payments expire, while every query to Daraja hangs."""
        stage = self.stage
        for phone in PHONES[:3]:
            await self._request(self._new(0, 70, phone))
        await stage.pass_time(61)
        stage.receiver.status, stage.receiver.answer = 200, None
        await self._sweep()
        await stage.product.cron(RECONCILE)
        self.wire.hang("stkquery", "pullquery")
        try:
            async with stage.product.running_workers():
                request = self._new(0, 500, PHONES[0])
                await self._buy(request, is_delivered=True)
                row = await stage.db.fetchrow("SELECT status FROM payment WHERE payment_id = $1", request.made)
                if row is not None and row["status"] == "completed":
                    await self._sweep()
                    await self._wait_for_webhook(request.made or "")
                self.wire.remove_faults()
        finally:
            self.wire.remove_faults()
        await stage.product.work()

    async def _wait_for_webhook(self, payment_id: str) -> None:
        """Wait for the webhook about a completed payment. Raises AssertionError."""
        for _ in range(_SOON):
            if any(payment_id.encode() in one.body for one in self.stage.receiver.received):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("stuck: a webhook waits behind a question to Daraja that hangs")

    async def _buy(self, request: ShopRequest, is_delivered: bool) -> None:
        stage = self.stage
        await self._request(request)
        row = await stage.db.fetchrow(
            "SELECT checkout_request_id FROM payment WHERE payment_id = $1 AND status = 'pending' "
            "AND checkout_request_id IS NOT NULL",
            request.made,
        )
        if row is None:
            # The token had expired, and no new one was available.
            return
        await stage.answer(row["checkout_request_id"], "pay")
        if is_delivered:
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
            await self._replay()
        elif accident is Accident.ENDPOINT_REMOVED:
            caller = stage.shops[0].callers["sandbox"]
            await stage.product.remove_endpoint(caller)
            await self._sweep()
            await stage.product.work()
            await stage.product.set_endpoint(caller, stage.endpoint_of(0, "sandbox"))
        else:
            await stage.in_each_env("UPDATE sim_token SET token = 'another-' || number || consumer_key")
            if accident is Accident.NO_TOKEN:
                await stage.set_fault("oauth", "500.003.02")

    async def _reverse(self, request: ShopRequest, habit: str, initiator: str, plan: Plan, times: int) -> None:
        shop = self.stage.shops[request.shop]
        await self.stage.store_initiator(shop, request.env, initiator)
        ask = _at_once(self._request_refund(request) for _ in range(times))
        await self._with_habit("reversal", habit, plan, ask)
        await self.stage.store_initiator(shop, request.env, "testapi")

    async def _request_refund(self, request: ShopRequest) -> None:
        if request.key:
            self.under_way = ("refund", request)
        caller = self.stage.shops[request.shop].callers[request.env]
        try:
            made = await self.stage.product.refund(caller, request.of, request.amount, request.key or None)
        except ProcessDied:
            start_process()
            return
        except REFUSED:
            return
        finally:
            self.under_way = None
        if request.key:
            assert request.made in {None, made}, "doubled: one key, two refunds"
            request.made = made

    async def _check(self, payment: dict[str, Any], what: str, habit: str, plan: Plan) -> None:
        ask = _refusable(self.stage.product.check(self._caller(payment), what))
        await self._with_habit("transactionstatus", habit, plan, ask)

    async def _reconcile(self, habit: str, plan: Plan, shops: Sequence[Shop]) -> None:
        began = self.stage.clock.now()

        async def work() -> None:
            for shop in shops:
                for env in shop.fields:
                    await _mortal(self.stage.product.reconcile(shop.callers[env]))

        await self._with_habit("pullquery", habit, plan, work())
        reached = await self.stage.db.fetchval(
            "SELECT max(window_end) FROM reconciliation_run WHERE status = 'completed' AND window_end >= $1", began
        )
        self.reconciled_at = reached or self.reconciled_at

    async def _with_habit(self, operation: str, habit: str, plan: Plan, work: Awaitable[Any]) -> None:
        await self.stage.set_habit(operation, habit)
        self.wire.plan(operation, plan)
        await work
        await self.stage.set_habit(operation, "normal")
        self.wire.plan(operation, Plan())

    async def _with_ack(self, habit: str, work: Awaitable[Any]) -> None:
        await self.stage.set_habit("stkack", habit)
        await work
        await self.stage.set_habit("stkack", "normal")

    async def _with_fault(self, operation: str, fault: str | None, plan: Plan, work: Awaitable[Any]) -> None:
        if fault is not None:
            await self.stage.set_fault(operation, fault)
        self.wire.plan(operation, plan)
        await work
        self.wire.plan(operation, Plan())
        await self.stage.in_each_env("DELETE FROM sim_fault WHERE operation = $1", operation)

    async def _call_back(self, callback_id: int, times: int) -> None:
        statuses = await asyncio.gather(*(self.stage.call_back(callback_id) for _ in range(times)))
        assert set(statuses) == {200}, REFUSED_BODY

    async def _send_result(self, result_id: int, times: int) -> None:
        statuses = await asyncio.gather(*(self.stage.send_result(result_id) for _ in range(times)))
        assert set(statuses) == {200}, REFUSED_BODY

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
        env: Env = ENVS[nth % 2] if self.is_live else "sandbox"
        receivers = await stage.db.fetch("SELECT shortcode FROM sim_registration WHERE env = $1 ORDER BY 1", env)
        await stage.pay_by_hand(
            env,
            phone=phone,
            amount=amount,
            shortcode=receivers[nth % len(receivers)]["shortcode"],
            reference=reference,
            at=stage.clock.now() - timedelta(minutes=minutes),
        )

    async def _forge(self, checkout_request_id: str) -> None:
        simulated = await self.stage.env_with_push(checkout_request_id)
        push = await simulated.prompts.find(checkout_request_id)
        self.known.forged.add(self.stage.product.subject(push["callback_url"]))
        amount = push["amount"] if self.confirm == "always" else push["amount"] + 7
        assert await simulated.caller.forge(checkout_request_id, checkout_request_id, amount, None) == 200

    async def _deliver_and_die(self) -> None:
        """Kill a worker between the merchant's answer and its record."""
        stage = self.stage
        due = [
            row["delivery_id"]
            for row in await stage.db.fetch(
                "SELECT delivery_id FROM delivery WHERE status = 'pending' AND due_at <= $1 ORDER BY 1",
                stage.clock.now(),
            )
        ]
        task = asyncio.ensure_future(stage.product.deliver(due))

        def kill(_: Any, __: int) -> int:
            task.cancel()
            return stage.receiver.status

        stage.receiver.answer = kill
        await asyncio.gather(task, return_exceptions=True)
        stage.receiver.answer = None

    async def _perform(self, act: Act) -> None:
        """Perform an act during a call."""
        stage = self.stage
        if act in {Act.PAY, Act.CANCEL}:
            row = await stage.db.fetchrow(
                "SELECT checkout_request_id FROM sim_push WHERE state = 'open' "
                "ORDER BY created_at DESC, checkout_request_id LIMIT 1"
            )
            if row is not None:
                await stage.answer(row["checkout_request_id"], "pay" if act is Act.PAY else "cancel")
            await stage.call_back_all()
        elif act is Act.CALL_BACK:
            await stage.call_back_all()
        elif act is Act.WAIT:
            await stage.pass_time(200)
        elif act is Act.FLUSH:
            await stage.gateway.valkey.flushdb()
        elif act is Act.ASK:
            await stage.product.run_due_work(stage.clock.now())
        elif self.under_way is not None:
            what, request = self.under_way
            await (self._request(request) if what == "payment" else self._request_refund(request))

    async def _arrived(self, operation: str, body: Any) -> None:
        """Record the refund of a reversal, as M-Pesa's own records show it."""
        if operation != "reversal":
            return
        refund_id = self.stage.product.subject(body["ResultURL"])
        rows = await self.stage.db.fetch(
            "SELECT receipt FROM sim_reversal WHERE originator_conversation_id NOT LIKE 'portal-%'"
        )
        for row in rows:
            self.stage.reversals.setdefault(row["receipt"], refund_id)


def _pick(some: Sequence[T], nth: int) -> T:
    return some[-1 - nth % len(some)]


def _is_paid(payment: dict[str, Any]) -> bool:
    return payment["status"] in {"completed", "partially_reversed", "reversed"}


async def _at_once(works: Iterable[Awaitable[Any]]) -> None:
    """Run these concurrently."""
    await asyncio.gather(*works)


async def _mortal(work: Awaitable[Any]) -> None:
    """Run this unless the process dies or Postgres is unavailable."""
    try:
        await work
    except ProcessDied:
        start_process()
    except POSTGRES_AWAY:
        return


async def _refusable(work: Awaitable[Any]) -> None:
    """Run this; a rejection by state or by Daraja is accepted, and so is the process's death."""
    try:
        await _mortal(work)
    except NotConfigured:
        return
    except REFUSED:
        return
