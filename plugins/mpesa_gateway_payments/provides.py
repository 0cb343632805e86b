"""Ports and services of the payments plugin."""

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments.answer_review import StatusAnswerReview
from mpesa_gateway_payments.api import Payments, RefundablePayments, StatementMatching, StatusQueries
from mpesa_gateway_payments.create_steps import CreateSteps
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.external_reversals import ExternalReversals
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
from mpesa_gateway_payments.verdicts import Rules


def _rules(gateway: Runtime) -> Rules:
    return gateway.settings(PaymentsSettings).rules


PROVIDES: Provides = (
    provide(
        PaymentService,
        public_url=lambda gateway: gateway.url,
        run_to_completion=lambda gateway: gateway.run_to_completion,
    ),
    (Payments, lambda gateway: gateway.port(PaymentService)),
    provide(CreateSteps),
    provide(StkPushSender),
    provide(StkResults),
    provide(StkQueries, places=lambda gateway: Bulkhead(gateway.config.worker.daraja, each=1)),
    provide(Expiry),
    provide(PausedShortcodes),
    provide(Transitions, rules=_rules),
    provide(ExternalReversals),
    provide(UnacknowledgedPushes),
    provide(StatusQueryService),
    (StatusQueries, lambda gateway: gateway.port(StatusQueryService)),
    provide(PaymentStatementMatching, rules=_rules),
    (StatementMatching, lambda gateway: gateway.port(PaymentStatementMatching)),
    provide(PaymentRefunds, RefundablePayments),
    provide(PaymentOperatorService),
    provide(StatusAnswerReview),
    provide(PaymentStatsReader),
)
