"""Declaration of the transactions plugin."""

from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.plugin import Plugin, Tables
from mpesa_gateway_transactions.api import Transactions
from mpesa_gateway_transactions.contradiction_metrics import CONTRADICTIONS
from mpesa_gateway_transactions.contradictions import ContradictionReview
from mpesa_gateway_transactions.doctor import CHECKS
from mpesa_gateway_transactions.erasure import TRANSACTIONS
from mpesa_gateway_transactions.invariants import INVARIANTS
from mpesa_gateway_transactions.pages import PAGES
from mpesa_gateway_transactions.recording import TransactionRecorder
from mpesa_gateway_transactions.tables import TransactionRow, WitnessRow

plugin = Plugin(
    name="transactions",
    summary="Stores one record of each M-Pesa receipt, with the reports that show it.",
    requires=("credentials",),
    id_prefixes=(IdPrefix("txn", "transaction"),),
    provides=(
        (
            Transactions,
            lambda gateway: TransactionRecorder(db=gateway.db, clock=gateway.clock, ids=gateway.ids),
        ),
        (
            ContradictionReview,
            lambda gateway: ContradictionReview(db=gateway.db, clock=gateway.clock, audit=gateway.audit),
        ),
    ),
    tables=Tables(models=(TransactionRow, WitnessRow), migrations="mpesa_gateway_transactions.migrations"),
    erasers=(TRANSACTIONS,),
    invariants=INVARIANTS,
    pages=PAGES,
    checks=CHECKS,
    collectors=(CONTRADICTIONS,),
)
