"""Construction of the ports and services of this plugin."""

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.answer_review import StatusAnswerReview
from mpesa_gateway_payments.api import Payments, RefundablePayments, StatementMatching, StatusQueries, UnallocatedMoney
from mpesa_gateway_payments.create_steps import CreateSteps
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_payments.metrics import PaymentMetrics
from mpesa_gateway_payments.operator_service import PaymentOperatorService
from mpesa_gateway_payments.paused_shortcodes import PausedShortcodes
from mpesa_gateway_payments.pushing import StkPushSender
from mpesa_gateway_payments.refund_port import PaymentRefunds
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.statement_matching import PaymentStatementMatching
from mpesa_gateway_payments.stats import PaymentStatsReader
from mpesa_gateway_payments.status_queries import StatusQueryService
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_payments.stk_results import StkResults
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.unacknowledged import UnacknowledgedPushes
from mpesa_gateway_transactions.api import Allocations, ReversibleTransactions, Transactions


def _service(gateway: Runtime) -> PaymentService:
    settings, callbacks = gateway.settings(PaymentsSettings), gateway.port(Callbacks)
    steps = CreateSteps(
        db=gateway.db, clock=gateway.clock, tracer=gateway.tracer, settings=settings, callbacks=callbacks
    )
    pusher = StkPushSender(
        db=gateway.db,
        clock=gateway.clock,
        settings=settings,
        daraja=gateway.daraja,
        outcomes=gateway.outcomes,
        callbacks=callbacks,
        credentials=gateway.port(Credentials),
        steps=steps,
        transitions=gateway.port(Transitions),
        paused=gateway.port(PausedShortcodes),
    )
    return PaymentService(
        db=gateway.db,
        clock=gateway.clock,
        ids=gateway.ids,
        settings=settings,
        trace_links=gateway.trace_links,
        audit=gateway.audit,
        merchants=gateway.merchants,
        outcomes=gateway.outcomes,
        public_url=gateway.url,
        run_to_completion=gateway.run_to_completion,
        credentials=gateway.port(Credentials),
        steps=steps,
        pusher=pusher,
        unacknowledged=gateway.port(UnacknowledgedPushes),
    )


def _stk_results(gateway: Runtime) -> StkResults:
    return StkResults(db=gateway.db, callbacks=gateway.port(Callbacks), transitions=gateway.port(Transitions))


def _stk_queries(gateway: Runtime) -> StkQueries:
    return StkQueries(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(PaymentsSettings),
        trace_links=gateway.trace_links,
        places=Bulkhead(gateway.config.worker.daraja, each=1),
        daraja=gateway.daraja,
        jobs=gateway.jobs,
        credentials=gateway.port(Credentials),
        transitions=gateway.port(Transitions),
        expiry=gateway.port(Expiry),
        unacknowledged=gateway.port(UnacknowledgedPushes),
        paused=gateway.port(PausedShortcodes),
    )


def _expiry(gateway: Runtime) -> Expiry:
    return Expiry(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(PaymentsSettings),
        transitions=gateway.port(Transitions),
        unacknowledged=gateway.port(UnacknowledgedPushes),
    )


def _unacknowledged(gateway: Runtime) -> UnacknowledgedPushes:
    settings, transitions = gateway.settings(PaymentsSettings), gateway.port(Transitions)
    return UnacknowledgedPushes(db=gateway.db, clock=gateway.clock, settings=settings, transitions=transitions)


def _transitions(gateway: Runtime) -> Transitions:
    return Transitions(
        db=gateway.db,
        clock=gateway.clock,
        outbox=gateway.outbox,
        metrics=gateway.metrics.get(PaymentMetrics),
        rules=gateway.settings(PaymentsSettings).rules,
        transactions=gateway.port(Transactions),
        allocations=gateway.port(Allocations),
    )


def _external_reversals(gateway: Runtime) -> ExternalReversals:
    transitions = gateway.port(Transitions)
    return ExternalReversals(
        db=gateway.db,
        clock=gateway.clock,
        outbox=gateway.outbox,
        transitions=transitions,
        loose=gateway.port(ReversibleTransactions),
    )


def _statement_matching(gateway: Runtime) -> PaymentStatementMatching:
    return PaymentStatementMatching(
        db=gateway.db,
        clock=gateway.clock,
        rules=gateway.settings(PaymentsSettings).rules,
        transitions=gateway.port(Transitions),
        external_reversals=gateway.port(ExternalReversals),
        unallocated=gateway.port_if_provided(UnallocatedMoney),
    )


def _checks(gateway: Runtime) -> StatusQueryService:
    return StatusQueryService(
        gateway,
        callbacks=gateway.port(Callbacks),
        credentials=gateway.port(Credentials),
        transitions=gateway.port(Transitions),
        external_reversals=gateway.port(ExternalReversals),
        statement_matching=gateway.port(PaymentStatementMatching),
        allocations=gateway.port(Allocations),
    )


def _operator_service(gateway: Runtime) -> PaymentOperatorService:
    return PaymentOperatorService(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        sealer=gateway.sealer,
        transitions=gateway.port(Transitions),
        queries=gateway.port(StkQueries),
        checks=gateway.port(StatusQueryService),
    )


PROVIDES: Provides = (
    (PaymentService, _service),
    (Payments, lambda gateway: gateway.port(PaymentService)),
    (StkResults, _stk_results),
    (StkQueries, _stk_queries),
    (Expiry, _expiry),
    (PausedShortcodes, lambda gateway: PausedShortcodes(gateway.clock)),
    (Transitions, _transitions),
    (ExternalReversals, _external_reversals),
    (UnacknowledgedPushes, _unacknowledged),
    (StatusQueryService, _checks),
    (StatusQueries, lambda gateway: gateway.port(StatusQueryService)),
    (PaymentStatementMatching, _statement_matching),
    (StatementMatching, lambda gateway: gateway.port(PaymentStatementMatching)),
    (RefundablePayments, lambda gateway: PaymentRefunds(db=gateway.db, transitions=gateway.port(Transitions))),
    (PaymentOperatorService, _operator_service),
    (
        StatusAnswerReview,
        lambda gateway: StatusAnswerReview(db=gateway.db, clock=gateway.clock, audit=gateway.audit),
    ),
    (PaymentStatsReader, lambda gateway: PaymentStatsReader(db=gateway.db, clock=gateway.clock)),
)
