"""The rule that finds the account numbers of incoming money."""

from collections.abc import Sequence

from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b.counting import SUBJECT_KIND, AccountCounting
from mpesa_gateway_payments.events import PaymentCompleted, PaymentReversed
from mpesa_gateway_transactions.api import (
    Allocated,
    AllocationRule,
    FoundSubject,
    IncomingMoney,
    LeftToReport,
    RefundedMoney,
)
from mpesa_gateway_transactions.events import TransactionReversed


async def find_account_numbers(
    gateway: Runtime, money: Sequence[IncomingMoney]
) -> Sequence[FoundSubject | LeftToReport | None]:
    return await gateway.port(AccountCounting).find(money)


async def count_allocated(gateway: Runtime, allocated: Sequence[Allocated]) -> None:
    await gateway.port(AccountCounting).count_allocated(allocated)


async def count_refunded(gateway: Runtime, money: RefundedMoney) -> None:
    await gateway.port(AccountCounting).count_refunded(money)


async def count_completed(completed: Sequence[PaymentCompleted], gateway: Runtime) -> None:
    await gateway.port(AccountCounting).count_completed(completed)


async def count_reversed(reversed_: Sequence[PaymentReversed], gateway: Runtime) -> None:
    await gateway.port(AccountCounting).count_reversed(reversed_)


async def count_reversed_money(reversed_: Sequence[TransactionReversed], gateway: Runtime) -> None:
    await gateway.port(AccountCounting).count_reversed_money(reversed_)


ALLOCATION_RULE = AllocationRule(
    name="account_number",
    subject_kind=SUBJECT_KIND,
    find=find_account_numbers,
    allocated=count_allocated,
    refunded=count_refunded,
    is_first=True,
)
