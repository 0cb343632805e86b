"""Ports and services of the refunds plugin."""

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Payments, RefundablePayments
from mpesa_gateway_refunds.completion import RefundCompletion
from mpesa_gateway_refunds.money import RefundMoney
from mpesa_gateway_refunds.operator_service import RefundOperatorService
from mpesa_gateway_refunds.results import ReversalResults
from mpesa_gateway_refunds.reversal_sender import ReversalSender
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.settings import RefundsSettings
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from mpesa_gateway_transactions.api import RefundableTransactions

_ASKED_EACH = 2
"""Concurrent status queries of one worker about refunds of one merchant."""


def _service(gateway: Runtime) -> RefundService:
    return RefundService(
        db=gateway.db,
        clock=gateway.clock,
        ids=gateway.ids,
        settings=gateway.settings(RefundsSettings),
        audit=gateway.audit,
        outcomes=gateway.outcomes,
        public_url=gateway.url,
        run_to_completion=gateway.run_to_completion,
        money=gateway.port(RefundMoney),
        credentials=gateway.port(Credentials),
        sender=gateway.port(ReversalSender),
    )


def _money(gateway: Runtime) -> RefundMoney:
    return RefundMoney(
        payments=gateway.port(RefundablePayments),
        transactions=gateway.port(RefundableTransactions),
        outbox=gateway.outbox,
    )


def _queries(gateway: Runtime) -> RefundStatusQueries:
    return RefundStatusQueries(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(RefundsSettings),
        trace_links=gateway.trace_links,
        places=Bulkhead(max(1, gateway.config.worker.daraja // 2), each=_ASKED_EACH),
        daraja=gateway.daraja,
        jobs=gateway.jobs,
        callbacks=gateway.port(Callbacks),
        credentials=gateway.port(Credentials),
        completion=gateway.port(RefundCompletion),
        sender=gateway.port(ReversalSender),
    )


def _results(gateway: Runtime) -> ReversalResults:
    return ReversalResults(
        db=gateway.db,
        clock=gateway.clock,
        callbacks=gateway.port(Callbacks),
        credentials=gateway.port(Credentials),
        completion=gateway.port(RefundCompletion),
    )


def _sender(gateway: Runtime) -> ReversalSender:
    return ReversalSender(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(RefundsSettings),
        trace_links=gateway.trace_links,
        daraja=gateway.daraja,
        outcomes=gateway.outcomes,
        callbacks=gateway.port(Callbacks),
        completion=gateway.port(RefundCompletion),
    )


def _completion(gateway: Runtime) -> RefundCompletion:
    return RefundCompletion(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        outbox=gateway.outbox,
        money=gateway.port(RefundMoney),
    )


def _operator_service(gateway: Runtime) -> RefundOperatorService:
    return RefundOperatorService(
        db=gateway.db,
        merchants=gateway.merchants,
        payments=gateway.port(Payments),
        transactions=gateway.port(RefundableTransactions),
        refunds=gateway.port(RefundService),
    )


PROVIDES: Provides = (
    (RefundMoney, _money),
    (RefundService, _service),
    (RefundStatusQueries, _queries),
    (ReversalResults, _results),
    (ReversalSender, _sender),
    (RefundCompletion, _completion),
    (RefundOperatorService, _operator_service),
)
