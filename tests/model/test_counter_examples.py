"""Protects against regressions of the model's findings: the shortest failing examples, replayed step by step."""

from collections.abc import Callable, Iterator

import pytest

from tests.model.choices import SILENT, Accident
from tests.model.machine import Money
from tests.model.stage import Stage
from tests.model.wire import Act, Fate, Plan

PAYER, ASKS, PAYS_UNSEEN, NEVER = "254711000101", "254700000020", "254700000021", "254700000006"

pytestmark = pytest.mark.as_owner
"""The stage changes the sequences of a simulator, which requires the owner of its tables."""


@pytest.fixture
def stage(database_url: str, valkey_url: str) -> Iterator[Stage]:
    """The environment of the model."""
    with Stage(database_url, valkey_url) as stage:
        Money.stage = stage
        yield stage


def _begin(other: str = "neighbour", strangers: int = 0) -> Money:
    money = Money()
    money.begin(seed=3, confirm="never", other=other, strangers=strangers, bought=[])
    return money


def _asks(
    money: Money,
    phone: str,
    *,
    shop: int = 0,
    fate: Fate = Fate.FINE,
    fault: str | None = None,
    reference: str | None = None,
) -> None:
    money.request_a_payment(amount=70, phone=phone, reference=reference, plan=Plan(fate), fault=fault, shop=shop)


def _reconciles(money: Money, shop: int | None = None) -> None:
    money.reconcile(habit="normal", plan=Plan(), nth=0, hides=False, shop=shop)


def key_used_again_in_live() -> Money:
    """A1: the idempotency key of a sandbox payment, repeated with the live API key."""
    money = _begin()
    money.complete_a_payment(0, 70, PAYER, is_delivered=True)
    money.go_live()
    money.repeat_a_request_in_the_other_env(nth=0)
    money.list_payments(shop=0, wants_live=True)
    return money


def sandbox_events_after_going_live() -> Money:
    """A2, A4: both envs have an endpoint, and each receives its own events."""
    money = _begin()
    money.go_live()
    money.complete_a_payment(0, 70, PAYER, is_delivered=True)
    return money


def queried_reversal() -> Money:
    """B3: a status query about the receipt of a refund's reversal, while another payment of the amount is pending."""
    money = _begin()
    money.complete_a_payment(0, 70, PAYER, is_delivered=True)
    money.refund(nth=0, amount=None, has_key=True, habit="before_ack", initiator="testapi", plan=Plan(), times=1)
    _asks(money, ASKS)
    for nth in range(2):
        money.query_a_receipt(nth=nth, which_payment=0, plan=Plan(), is_by_receipt=True, habit="before_ack")
    return money


def unrelated_payers_at_a_till() -> Money:
    """B4, B7: masked and similar payers, payouts and portal reversals on a till's statement."""
    money = _begin("till", strangers=4)
    for _ in range(6):
        _asks(money, PAYER, shop=1)
        money.answer_a_prompt(nth=0, answer="cancel")
    money.time_passes(seconds=320)
    _reconciles(money)
    return money


def same_payer_hours_later() -> Money:
    """B6: the push was cancelled, and the payer pays at the till hours later."""
    money = _begin("till")
    _asks(money, PAYER, shop=1)
    money.answer_a_prompt(nth=0, answer="cancel")
    money.run(money.stage.call_back_all())
    money.time_passes(seconds=6 * 3600)
    money.pay_at_the_counter(nth=1, amount=70, phone=PAYER, reference="", minutes=0)
    _reconciles(money)
    return money


def reference_with_outer_spaces() -> Money:
    """B8: M-Pesa echoes the reference unchanged, or without its spaces."""
    money = _begin()
    _asks(money, PAYS_UNSEEN, reference="x9 ")
    return money


def paid_by_hand_without_a_prompt() -> Money:
    """The prompt did not reach M-Pesa, and the payer types the payment's reference: the money is the payment's."""
    money = _begin()
    _asks(money, PAYER, fate=Fate.NEVER_ARRIVED)
    money.time_passes(seconds=2 * 3600)
    money.pay_at_the_counter(nth=0, amount=70, phone=PAYER, reference="own", minutes=0)
    _reconciles(money)
    return money


def query_about_another_push() -> Money:
    """B9: the answer to an STK query names another CheckoutRequestID."""
    money = _begin()
    _asks(money, PAYER)
    money.answer_a_prompt(nth=0, answer="cancel")
    money.query_a_payment(nth=0, plan=Plan(), fault=None, habit="other_handle")
    return money


def neighbours_line_assigned() -> Money:
    """C1: a line of the merchant that shares the paybill, assigned to an own payment."""
    money = _begin()
    _asks(money, SILENT, shop=1)
    _asks(money, ASKS)
    money.time_passes(seconds=61)
    _reconciles(money, shop=0)
    for nth in range(2):
        money.assign_a_line(nth=nth, other=nth)
    return money


def retry_after_a_move() -> Money:
    """D1: the push was not sent, another shortcode is stored, and the same key is repeated."""
    money = _begin()
    _asks(money, PAYER, fault="500.003.02")
    money.move_to_another_shortcode()
    money.repeat_a_request(nth=0, plan=Plan(), fault=None)
    return money


def paid_after_a_move() -> Money:
    """D4: a payment is pending when another shortcode is stored, and its callback is lost."""
    money = _begin()
    _asks(money, SILENT)
    money.move_to_another_shortcode()
    money.time_passes(seconds=61)
    return money


def acknowledgement_without_postgres() -> Money:
    """E2: the connection to Postgres ends when the acknowledgement arrives, and no callback follows."""
    money = _begin()
    _asks(money, SILENT, fate=Fate.NO_POSTGRES)
    money.time_passes(seconds=61)
    return money


def answer_without_postgres() -> Money:
    """The connection to Postgres ends when the answer to an STK query arrives: the job fails, the payment stays due."""
    money = _begin()
    _asks(money, SILENT)
    money.time_passes(seconds=61)
    answer = Plan(Fate.NO_POSTGRES, (Act.CANCEL, Act.PAY))
    money.run_workers(habit="parameters_list", query="does_not_exist", status=Plan(), stkquery=answer)
    return money


def reversed_on_the_portal() -> Money:
    """E7: M-Pesa reports a reversal that the gateway did not request."""
    money = _begin()
    money.complete_a_payment(0, 70, PAYER, is_delivered=True)
    money.reverse_on_the_portal(nth=0, amount=70)
    money.query_a_receipt(nth=0, which_payment=0, plan=Plan(), is_by_receipt=False, habit="before_ack")
    return money


def endpoint_removed() -> Money:
    """E8: an endpoint is removed while a delivery is pending, and set again."""
    money = _begin()
    money.complete_a_payment(0, 70, PAYER, is_delivered=True)
    money.inject_an_accident(accident=Accident.ENDPOINT_REMOVED, status=200)
    return money


def queries_that_hang() -> Money:
    """F1, F2: STK query and Pull hang while a payment is completed."""
    money = _begin()
    money.daraja_hangs()
    return money


def chunk_that_cannot_be_read() -> Money:
    """F4, D14: the HTTP library raises an unexpected error."""
    money = _begin()
    _asks(money, NEVER)
    money.time_passes(seconds=61)
    money.run_workers(stkquery=Plan(Fate.BROKEN_CHUNK), status=Plan(), habit="normal")
    _asks(money, PAYER, fate=Fate.BROKEN_CHUNK)
    return money


def bodies_that_are_no_clean_json() -> Money:
    """D13: a Latin-1 byte, a raw tab, a lone surrogate, a BOM."""
    money = _begin()
    for habit in ("latin1", "raw_tab", "lone_surrogate", "bom"):
        money.change_daraja_formats(habit=habit, token="normal")
        money.complete_a_payment(0, 70, PAYER, is_delivered=True)
    return money


STORIES: tuple[Callable[[], Money], ...] = (
    key_used_again_in_live,
    sandbox_events_after_going_live,
    queried_reversal,
    unrelated_payers_at_a_till,
    same_payer_hours_later,
    reference_with_outer_spaces,
    paid_by_hand_without_a_prompt,
    query_about_another_push,
    neighbours_line_assigned,
    retry_after_a_move,
    paid_after_a_move,
    acknowledgement_without_postgres,
    answer_without_postgres,
    reversed_on_the_portal,
    endpoint_removed,
    queries_that_hang,
    chunk_that_cannot_be_read,
    bodies_that_are_no_clean_json,
)


@pytest.mark.usefixtures("stage")
def test_counter_examples_keep_the_books_correct() -> None:
    wrong: dict[str, str] = {}
    for story in STORIES:
        try:
            story().teardown()
        except Exception as problem:  # noqa: BLE001 - an error of one example must not skip the others
            wrong[story.__name__] = repr(problem)[:300]
    assert wrong == {}, "".join(f"\n{name}: {problem}" for name, problem in wrong.items())
