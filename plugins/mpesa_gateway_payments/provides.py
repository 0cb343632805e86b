"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpesa_gateway.places import Places
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments, Recovery, RefundablePayments, StatusQueries
from mpesa_gateway_payments.checks import StatusChecks
from mpesa_gateway_payments.desk import PaymentDesk
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.many import Endings, Steps
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

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


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


PROVIDES: "tuple[tuple[type[Any], Callable[[Gateway], Any]], ...]" = (
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
)
