"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from mpesa_gateway.places import Places
from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments, Recovery, RefundablePayments, StatusQueries, UnallocatedMoney
from mpesa_gateway_payments.checks import StatusChecks
from mpesa_gateway_payments.creates import CreateSteps
from mpesa_gateway_payments.desk import PaymentDesk
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.metrics import PaymentMetrics
from mpesa_gateway_payments.outside_reversal import OutsideReversals
from mpesa_gateway_payments.pushing import StkPusher
from mpesa_gateway_payments.recovery import PaymentRecovery
from mpesa_gateway_payments.refunding import PaymentRefunds
from mpesa_gateway_payments.resting import RestingShortcodes
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_payments.stk_results import StkResults
from mpesa_gateway_payments.tally import PaymentTally
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.unacknowledged import Unacknowledged
from mpesa_gateway_transactions.api import Transactions


def _service(gateway: Runtime) -> PaymentService:
    settings, callbacks = gateway.settings(PaymentsSettings), gateway.port(Callbacks)
    steps = CreateSteps(
        db=gateway.db, clock=gateway.clock, tracer=gateway.tracer, settings=settings, callbacks=callbacks
    )
    pusher = StkPusher(
        db=gateway.db,
        clock=gateway.clock,
        settings=settings,
        daraja=gateway.daraja,
        outcomes=gateway.outcomes,
        callbacks=callbacks,
        credentials=gateway.port(Credentials),
        steps=steps,
        moves=gateway.port(Transitions),
        resting=gateway.port(RestingShortcodes),
    )
    return PaymentService(
        db=gateway.db,
        clock=gateway.clock,
        ids=gateway.ids,
        settings=settings,
        trace_links=gateway.trace_links,
        merchants=gateway.merchants,
        outcomes=gateway.outcomes,
        public_url=gateway.url,
        see_through=gateway.see_through,
        credentials=gateway.port(Credentials),
        steps=steps,
        pusher=pusher,
        unacknowledged=gateway.port(Unacknowledged),
    )


def _stk_results(gateway: Runtime) -> StkResults:
    return StkResults(db=gateway.db, callbacks=gateway.port(Callbacks), moves=gateway.port(Transitions))


def _stk_queries(gateway: Runtime) -> StkQueries:
    return StkQueries(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(PaymentsSettings),
        trace_links=gateway.trace_links,
        places=Places(gateway.config.worker.daraja, each=1),
        daraja=gateway.daraja,
        jobs=gateway.jobs,
        credentials=gateway.port(Credentials),
        moves=gateway.port(Transitions),
        expiry=gateway.port(Expiry),
        unacknowledged=gateway.port(Unacknowledged),
        resting=gateway.port(RestingShortcodes),
    )


def _expiry(gateway: Runtime) -> Expiry:
    return Expiry(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(PaymentsSettings),
        moves=gateway.port(Transitions),
        unacknowledged=gateway.port(Unacknowledged),
    )


def _unacknowledged(gateway: Runtime) -> Unacknowledged:
    settings, moves = gateway.settings(PaymentsSettings), gateway.port(Transitions)
    return Unacknowledged(db=gateway.db, clock=gateway.clock, settings=settings, moves=moves)


def _transitions(gateway: Runtime) -> Transitions:
    return Transitions(
        db=gateway.db,
        clock=gateway.clock,
        outbox=gateway.outbox,
        metrics=gateway.metrics.get(PaymentMetrics),
        rules=gateway.settings(PaymentsSettings).rules,
        transactions=gateway.port(Transactions),
    )


def _outside_reversals(gateway: Runtime) -> OutsideReversals:
    moves = gateway.port(Transitions)
    return OutsideReversals(db=gateway.db, clock=gateway.clock, outbox=gateway.outbox, moves=moves)


def _recovery(gateway: Runtime) -> PaymentRecovery:
    return PaymentRecovery(
        db=gateway.db,
        clock=gateway.clock,
        rules=gateway.settings(PaymentsSettings).rules,
        moves=gateway.port(Transitions),
        outside=gateway.port(OutsideReversals),
        unallocated=gateway.port_if_provided(UnallocatedMoney),
    )


def _checks(gateway: Runtime) -> StatusChecks:
    return StatusChecks(
        gateway,
        callbacks=gateway.port(Callbacks),
        credentials=gateway.port(Credentials),
        moves=gateway.port(Transitions),
        outside=gateway.port(OutsideReversals),
        recovery=gateway.port(PaymentRecovery),
        transactions=gateway.port(Transactions),
    )


def _desk(gateway: Runtime) -> PaymentDesk:
    return PaymentDesk(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        sealer=gateway.sealer,
        moves=gateway.port(Transitions),
        queries=gateway.port(StkQueries),
        checks=gateway.port(StatusChecks),
    )


PROVIDES: Provides = (
    (PaymentService, _service),
    (Payments, lambda gateway: gateway.port(PaymentService)),
    (StkResults, _stk_results),
    (StkQueries, _stk_queries),
    (Expiry, _expiry),
    (RestingShortcodes, lambda gateway: RestingShortcodes(gateway.clock)),
    (Transitions, _transitions),
    (OutsideReversals, _outside_reversals),
    (Unacknowledged, _unacknowledged),
    (StatusChecks, _checks),
    (StatusQueries, lambda gateway: gateway.port(StatusChecks)),
    (PaymentRecovery, _recovery),
    (Recovery, lambda gateway: gateway.port(PaymentRecovery)),
    (RefundablePayments, lambda gateway: PaymentRefunds(db=gateway.db, moves=gateway.port(Transitions))),
    (PaymentDesk, _desk),
    (PaymentTally, lambda gateway: PaymentTally(db=gateway.db, clock=gateway.clock)),
)
