"""The objects of this plugin, each made of what it needs: ports for other plugins, and parts for our own use."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments, Recovery, RefundablePayments, StatusQueries, UnallocatedMoney
from mpesa_gateway_payments.checks import StatusChecks
from mpesa_gateway_payments.desk import PaymentDesk
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.many import Endings, Steps
from mpesa_gateway_payments.outside_reversal import OutsideReversals
from mpesa_gateway_payments.recovery import PaymentRecovery
from mpesa_gateway_payments.refunding import PaymentRefunds
from mpesa_gateway_payments.service import PaymentService
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.tally import PaymentTally
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.unacknowledged import Unacknowledged


def _transitions(runtime: Runtime) -> Transitions:
    return Transitions(db=runtime.db, clock=runtime.clock, outbox=runtime.outbox, meter=runtime.meter)


def _outside_reversals(runtime: Runtime) -> OutsideReversals:
    moves = runtime.port(Transitions)
    return OutsideReversals(db=runtime.db, clock=runtime.clock, outbox=runtime.outbox, moves=moves)


def _service(runtime: Runtime) -> PaymentService:
    db, clock, settings = runtime.db, runtime.clock, runtime.settings(PaymentsSettings)
    callbacks, moves = runtime.port(Callbacks), runtime.port(Transitions)
    return PaymentService(
        runtime,
        callbacks=callbacks,
        credentials=runtime.port(Credentials),
        moves=moves,
        steps=Steps(db=db, clock=clock, tracer=runtime.tracer, settings=settings, callbacks=callbacks),
        endings=Endings(
            db=db, clock=clock, outbox=runtime.outbox, meter=runtime.meter, rules=settings.rules, callbacks=callbacks
        ),
        expiry=Expiry(db=db, clock=clock, settings=settings, moves=moves),
        unacknowledged=Unacknowledged(db=db, clock=clock, settings=settings, moves=moves),
    )


def _recovery(runtime: Runtime) -> PaymentRecovery:
    return PaymentRecovery(
        db=runtime.db,
        clock=runtime.clock,
        rules=runtime.settings(PaymentsSettings).rules,
        moves=runtime.port(Transitions),
        outside=runtime.port(OutsideReversals),
        unallocated=runtime.port_if_provided(UnallocatedMoney),
    )


def _checks(runtime: Runtime) -> StatusChecks:
    return StatusChecks(
        runtime,
        callbacks=runtime.port(Callbacks),
        credentials=runtime.port(Credentials),
        moves=runtime.port(Transitions),
        outside=runtime.port(OutsideReversals),
        recovery=runtime.port(PaymentRecovery),
    )


def _desk(runtime: Runtime) -> PaymentDesk:
    return PaymentDesk(
        db=runtime.db,
        reads=runtime.reads,
        clock=runtime.clock,
        audit=runtime.audit,
        sealer=runtime.sealer,
        moves=runtime.port(Transitions),
        payments=runtime.port(PaymentService),
        checks=runtime.port(StatusChecks),
    )


PROVIDES: Provides = (
    (Transitions, _transitions),
    (OutsideReversals, _outside_reversals),
    (PaymentService, _service),
    (Payments, lambda runtime: runtime.port(PaymentService)),
    (StatusChecks, _checks),
    (StatusQueries, lambda runtime: runtime.port(StatusChecks)),
    (PaymentRecovery, _recovery),
    (Recovery, lambda runtime: runtime.port(PaymentRecovery)),
    (RefundablePayments, lambda runtime: PaymentRefunds(db=runtime.db, moves=runtime.port(Transitions))),
    (PaymentDesk, _desk),
    (PaymentTally, lambda runtime: PaymentTally(db=runtime.db, clock=runtime.clock)),
)
