"""Services of the refunds plugin."""

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Provides
from mpesa_gateway_refunds.completion import RefundCompletion
from mpesa_gateway_refunds.money import RefundMoney
from mpesa_gateway_refunds.operator_service import RefundOperatorService
from mpesa_gateway_refunds.results import ReversalResults
from mpesa_gateway_refunds.reversal_sender import ReversalSender
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.status_queries import RefundStatusQueries

_ASKED_EACH = 2
"""Concurrent status queries of one worker about refunds of one merchant."""

PROVIDES: Provides = (
    provide(RefundMoney),
    provide(
        RefundService,
        public_url=lambda gateway: gateway.url,
        run_to_completion=lambda gateway: gateway.run_to_completion,
    ),
    provide(
        RefundStatusQueries,
        places=lambda gateway: Bulkhead(max(1, gateway.config.worker.daraja // 2), each=_ASKED_EACH),
    ),
    provide(ReversalResults),
    provide(ReversalSender),
    provide(RefundCompletion),
    provide(RefundOperatorService),
)
