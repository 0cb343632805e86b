"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpesa_gateway.places import Places
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import RefundablePayments
from mpesa_gateway_refunds.desk import RefundDesk
from mpesa_gateway_refunds.endings import RefundEndings
from mpesa_gateway_refunds.queries import RefundQueries
from mpesa_gateway_refunds.results import ReversalResults
from mpesa_gateway_refunds.reversing import ReversalSender
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.settings import RefundsSettings

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

_ASKED_EACH = 2
"""Refunds of one merchant that one worker asks about at the same time."""


def _service(gateway: "Gateway") -> RefundService:
    return RefundService(
        db=gateway.db,
        reads=gateway.reads,
        clock=gateway.clock,
        ids=gateway.ids,
        settings=gateway.settings(RefundsSettings),
        audit=gateway.audit,
        outcomes=gateway.outcomes,
        public_url=gateway.url,
        see_through=gateway.see_through,
        payments=gateway.services.get(RefundablePayments),
        credentials=gateway.services.get(Credentials),
        sender=gateway.services.get(ReversalSender),
    )


def _queries(gateway: "Gateway") -> RefundQueries:
    return RefundQueries(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(RefundsSettings),
        tracer=gateway.tracer,
        places=Places(max(1, gateway.config.worker.daraja // 2), each=_ASKED_EACH),
        daraja=lambda: gateway.daraja,
        jobs=lambda: gateway.jobs,
        callbacks=gateway.services.get(Callbacks),
        credentials=gateway.services.get(Credentials),
        endings=gateway.services.get(RefundEndings),
        sender=gateway.services.get(ReversalSender),
    )


def _results(gateway: "Gateway") -> ReversalResults:
    return ReversalResults(
        db=gateway.db,
        clock=gateway.clock,
        callbacks=gateway.services.get(Callbacks),
        credentials=gateway.services.get(Credentials),
        endings=gateway.services.get(RefundEndings),
    )


def _sender(gateway: "Gateway") -> ReversalSender:
    return ReversalSender(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(RefundsSettings),
        tracer=gateway.tracer,
        daraja=lambda: gateway.daraja,
        outcomes=gateway.outcomes,
        callbacks=gateway.services.get(Callbacks),
        endings=gateway.services.get(RefundEndings),
    )


def _endings(gateway: "Gateway") -> RefundEndings:
    return RefundEndings(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        outbox=gateway.outbox,
        payments=gateway.services.get(RefundablePayments),
    )


PROVIDES: "tuple[tuple[type[Any], Callable[[Gateway], Any]], ...]" = (
    (RefundService, _service),
    (RefundQueries, _queries),
    (ReversalResults, _results),
    (ReversalSender, _sender),
    (RefundEndings, _endings),
    (RefundDesk, RefundDesk),
)
