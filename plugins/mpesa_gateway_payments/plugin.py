"""The payments plugin, declared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpesa_gateway.places import Places
from mpesa_gateway.plugin import Forgetting, Job, Plugin, Tables, inside
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.events import StatusResulted, StkResulted
from mpesa_gateway_credentials.api import Credentials, OpenWork
from mpesa_gateway_payments import check_sql, tables
from mpesa_gateway_payments.api import Payments, Recovery, RefundablePayments, StatusQueries
from mpesa_gateway_payments.checks import StatusChecks
from mpesa_gateway_payments.commands import payments
from mpesa_gateway_payments.desk import PaymentDesk
from mpesa_gateway_payments.doctor import CHECKS
from mpesa_gateway_payments.erasure import PAYMENTS
from mpesa_gateway_payments.events import PaymentCompleted, PaymentFailed, PaymentMismatched, PaymentReversed
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.invariants import INVARIANTS
from mpesa_gateway_payments.jobs import ask, expire, sweep, tally
from mpesa_gateway_payments.many import Endings, Steps
from mpesa_gateway_payments.measures import COUNTS, READINGS
from mpesa_gateway_payments.pages import PAGES
from mpesa_gateway_payments.pushing import StkPusher
from mpesa_gateway_payments.recovery import PaymentRecovery
from mpesa_gateway_payments.refunding import PaymentRefunds
from mpesa_gateway_payments.resting import RestingShortcodes
from mpesa_gateway_payments.routes import routes
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_payments.stk_results import StkResults
from mpesa_gateway_payments.tables import (
    OutgoingReceiptRow,
    PaymentRow,
    PaymentStepRow,
    PaymentTallyRow,
    StatusCheckRow,
)
from mpesa_gateway_payments.tally import PaymentTally
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.unacknowledged import Unacknowledged

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def take_stk_result(result: StkResulted, gateway: "Gateway") -> None:
    """Daraja told how a push ended."""
    await gateway.services.get(StkResults).take_result(result)


async def take_stk_results(results: Sequence[StkResulted], gateway: "Gateway") -> None:
    """Daraja told how several pushes ended."""
    await gateway.services.get(StkResults).take_results(results)


async def take_status_result(result: StatusResulted, gateway: "Gateway") -> None:
    """Daraja told how a transaction stands."""
    await gateway.services.get(StatusChecks).take_result(result)


async def _count_open(gateway: "Gateway", shortcode_ids: Sequence[str]) -> dict[str, int]:
    rows = await gateway.db.fetch(tables.OPEN_OF_SHORTCODES, shortcode_ids)
    return {row["shortcode_id"]: row["open"] for row in rows}


def _service(gateway: "Gateway") -> PaymentService:
    settings, steps = gateway.settings(PaymentsSettings), Steps(gateway)
    pusher = StkPusher(
        db=gateway.db,
        clock=gateway.clock,
        settings=settings,
        daraja=lambda: gateway.daraja,
        outcomes=gateway.outcomes,
        callbacks=gateway.services.get(Callbacks),
        credentials=gateway.services.get(Credentials),
        steps=steps,
        moves=Transitions(gateway),
        resting=gateway.services.get(RestingShortcodes),
    )
    return PaymentService(
        db=gateway.db,
        reads=gateway.reads,
        clock=gateway.clock,
        ids=gateway.ids,
        settings=settings,
        tracer=gateway.tracer,
        merchants=gateway.merchants,
        outcomes=gateway.outcomes,
        public_url=gateway.url,
        see_through=gateway.see_through,
        credentials=gateway.services.get(Credentials),
        steps=steps,
        pusher=pusher,
        unacknowledged=Unacknowledged(gateway),
    )


def _stk_results(gateway: "Gateway") -> StkResults:
    settings = gateway.settings(PaymentsSettings)
    return StkResults(
        db=gateway.db,
        clock=gateway.clock,
        settings=settings,
        callbacks=gateway.services.get(Callbacks),
        moves=Transitions(gateway),
        endings=Endings(gateway, settings.rules),
    )


def _stk_queries(gateway: "Gateway") -> StkQueries:
    return StkQueries(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(PaymentsSettings),
        tracer=gateway.tracer,
        places=Places(gateway.config.worker.daraja, each=1),
        daraja=lambda: gateway.daraja,
        jobs=lambda: gateway.jobs,
        credentials=gateway.services.get(Credentials),
        moves=Transitions(gateway),
        expiry=gateway.services.get(Expiry),
        unacknowledged=Unacknowledged(gateway),
        resting=gateway.services.get(RestingShortcodes),
    )


def _expiry(gateway: "Gateway") -> Expiry:
    return Expiry(gateway, Transitions(gateway), Unacknowledged(gateway))


plugin = Plugin(
    name="payments",
    summary="Asks payers for money by STK push, once for each idempotency key, and follows every payment to its end.",
    requires=("credentials", "callbacks"),
    settings=PaymentsSettings,
    routes=routes,
    jobs=(
        Job(ask, timeout=90, queue="daraja"),
        Job(sweep, timeout=30, cron="* * * * * */5", queue="maintenance"),
        Job(expire, timeout=120, cron="* * * * * */5", queue="maintenance"),
        Job(tally, timeout=60, cron="* * * * * */20", queue="maintenance"),
    ),
    publishes=(PaymentCompleted, PaymentFailed, PaymentReversed, PaymentMismatched),
    subscribers=(
        inside(StkResulted, take_stk_result, many=take_stk_results),
        inside(StatusResulted, take_status_result),
    ),
    provides=(
        (PaymentService, _service),
        (Payments, lambda gateway: gateway.services.get(PaymentService)),
        (StkResults, _stk_results),
        (StkQueries, _stk_queries),
        (Expiry, _expiry),
        (RestingShortcodes, lambda gateway: RestingShortcodes(gateway.clock)),
        (StatusChecks, StatusChecks),
        (StatusQueries, lambda gateway: gateway.services.get(StatusChecks)),
        (PaymentRecovery, PaymentRecovery),
        (Recovery, lambda gateway: gateway.services.get(PaymentRecovery)),
        (RefundablePayments, PaymentRefunds),
        (PaymentDesk, PaymentDesk),
        (PaymentTally, PaymentTally),
    ),
    tables=Tables(
        models=(PaymentRow, PaymentStepRow, PaymentTallyRow, StatusCheckRow, OutgoingReceiptRow),
        migrations="mpesa_gateway_payments.migrations",
    ),
    commands=(payments,),
    pages=PAGES,
    contributes=(OpenWork("payments", _count_open),),
    checks=CHECKS,
    invariants=INVARIANTS,
    counts=COUNTS,
    readings=READINGS,
    forgets=(
        Forgetting(
            "status checks",
            check_sql.FORGET_CHECKS,
            days=lambda gateway: gateway.settings(PaymentsSettings).keep_checks_days,
            prefix="chk",
        ),
    ),
    erasers=(PAYMENTS,),
)
