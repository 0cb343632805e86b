"""Declaration of the transactions plugin."""

from functools import partial

from mpesa_gateway.construction import provide
from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Job, Plugin, Tables
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_transactions import COMMANDS
from mpesa_gateway_transactions.allocating import AllocationRules, BoundRule, IncomingMoneyRecorder
from mpesa_gateway_transactions.announcing import AnnouncementSweep, Announcer
from mpesa_gateway_transactions.api import (
    AllocationRule,
    Allocations,
    OpenMoney,
    RefundableTransactions,
    ReversibleTransactions,
    Transactions,
)
from mpesa_gateway_transactions.contradiction_metrics import CONTRADICTIONS
from mpesa_gateway_transactions.contradictions import ContradictionReview
from mpesa_gateway_transactions.doctor import CHECKS
from mpesa_gateway_transactions.erasure import TRANSACTIONS
from mpesa_gateway_transactions.events import TransactionAllocated, TransactionReceived, TransactionReversed
from mpesa_gateway_transactions.invariants import INVARIANTS
from mpesa_gateway_transactions.jobs import announce
from mpesa_gateway_transactions.manual import ManualAllocation
from mpesa_gateway_transactions.operator_service import TransactionOperatorService
from mpesa_gateway_transactions.pages import PAGES
from mpesa_gateway_transactions.recording import TransactionRecorder
from mpesa_gateway_transactions.refunding import TransactionRefunds
from mpesa_gateway_transactions.reversals import TransactionReversals
from mpesa_gateway_transactions.routes import routes
from mpesa_gateway_transactions.scopes import TRANSACTIONS_READ, TRANSACTIONS_WRITE
from mpesa_gateway_transactions.service import TransactionService
from mpesa_gateway_transactions.tables import AllocationRow, TransactionRow, WitnessRow


def _rules(gateway: Runtime) -> AllocationRules:
    return AllocationRules(
        [
            BoundRule(
                rule.name,
                rule.subject_kind,
                partial(rule.find, gateway),
                None if rule.allocated is None else partial(rule.allocated, gateway),
                None if rule.is_expected is None else partial(rule.is_expected, gateway),
                None if rule.assign is None else partial(rule.assign, gateway),
                None if rule.refunded is None else partial(rule.refunded, gateway),
                None if rule.claims is None else partial(rule.claims, gateway),
            )
            for rule in sorted(gateway.contributed(AllocationRule), key=lambda rule: not rule.is_first)
        ]
    )


plugin = Plugin(
    name="transactions",
    summary="Stores one record of each M-Pesa receipt, with the reports that show it.",
    requires=("credentials",),
    id_prefixes=(IdPrefix("txn", "transaction"),),
    provides=(
        provide(TransactionRecorder, Transactions),
        (AllocationRules, _rules),
        provide(Announcer),
        provide(IncomingMoneyRecorder),
        (Allocations, lambda gateway: gateway.port(IncomingMoneyRecorder)),
        provide(ManualAllocation),
        provide(TransactionService),
        provide(TransactionOperatorService),
        (OpenMoney, lambda gateway: gateway.port(TransactionOperatorService)),
        provide(AnnouncementSweep),
        provide(TransactionRefunds, RefundableTransactions),
        provide(TransactionReversals, ReversibleTransactions),
        provide(ContradictionReview),
    ),
    tables=Tables(
        models=(TransactionRow, WitnessRow, AllocationRow), migrations="mpesa_gateway_transactions.migrations"
    ),
    scopes=(TRANSACTIONS_READ, TRANSACTIONS_WRITE),
    routes=routes,
    commands=COMMANDS,
    jobs=(Job(announce, timeout=120, cron="* * * * * */5", queue="maintenance"),),
    publishes=(TransactionReceived, TransactionAllocated, TransactionReversed),
    erasers=(TRANSACTIONS,),
    invariants=INVARIANTS,
    pages=PAGES,
    checks=CHECKS,
    collectors=(CONTRADICTIONS,),
)
