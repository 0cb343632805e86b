"""Protects lines of money that has a subject: none waits for review, in any order of the reports."""

from typing import Any

import pytest

from mpesa_gateway.errors import Conflict
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_reconciliation import tables
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.operator_service import LinesQuery, ReconciliationOperatorService
from mpesa_gateway_transactions.api import Allocations, ReportedTransaction
from tests.conftest import Harness
from tests.daraja import Daraja
from tests.ledger import broken_invariants
from tests.plugins.reconciliation.test_reconciliation import create_payment, get_payment, row, rows_of, run

pytestmark = pytest.mark.usefixtures("initiated")

RECEIPT = "TKA0000001"
ACCOUNT = "HOUSE 7"


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only, and pages are requested again without a pause."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "reconciliation": {"pause": 0.01, "tries": 2, "page_pause": 0},
    }


async def confirm(harness: Harness, receipt: str = RECEIPT, amount: int = 500, account: str = ACCOUNT) -> str:
    """Receive money as the C2B confirmation does, and return its transaction."""
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    report = ReportedTransaction(
        source="c2b",
        env="sandbox",
        number="174379",
        merchant_id=merchant_id,
        direction="in",
        receipt=receipt,
        occurred_at=harness.gateway.clock.now(),
        amount_cents=amount * 100,
        payer="2547****001",
        account_number=account,
    )
    async with harness.gateway.db.transaction():
        (recorded,) = await harness.gateway.port(Allocations).receive([report])
    return recorded.transaction_id


async def expect_money(harness: Harness) -> None:
    """Store the account number."""
    assert (await harness.api.call("PUT", "/v1/account-numbers/HOUSE%207", {})).status == 200


async def transaction_of(harness: Harness, receipt: str = RECEIPT) -> str:
    return str(await harness.gateway.db.fetchval("SELECT transaction_id FROM transaction WHERE receipt = $1", receipt))


async def dealt_with(harness: Harness, transaction_id: str) -> None:
    """Mark money as dealt with, as a person does."""
    answer = await harness.api.call("POST", f"/v1/transactions/{transaction_id}/allocate", {"note": "rent in advance"})
    assert answer.status == 200, answer.body


async def waiting(harness: Harness) -> int:
    """Return the number of lines that wait for review; all places that count them must agree."""
    service, db = harness.gateway.port(ReconciliationOperatorService), harness.gateway.db
    listed = (await service.unresolved("sandbox", LinesQuery(), 100)).rows
    by_finding = {row["finding"]: row["count"] for row in await db.fetch(tables.COUNT_UNRESOLVED_BY_FINDING)}
    _, total = await service.count_unresolved("sandbox", None)
    summed = await service.total("sandbox", LinesQuery())
    assert len(listed) == total == summed.count == sum(by_finding.values())
    return total


async def finding_of(harness: Harness, receipt: str = RECEIPT) -> tuple[str, str | None]:
    line = await harness.gateway.db.fetchrow("SELECT finding, payment_id FROM statement WHERE receipt = $1", receipt)
    assert line is not None
    return line["finding"], line["payment_id"]


async def test_line_after_the_confirmation_is_already_known(harness: Harness, daraja: Daraja) -> None:
    await expect_money(harness)
    await confirm(harness)
    await dealt_with(harness, await confirm(harness, "TKA0000002", account="UNKNOWN"))
    lines = [row(RECEIPT, reference=ACCOUNT), row("TKA0000002", reference="UNKNOWN")]
    found = await run(harness, daraja, *lines)
    assert (found["already_known"], found["not_found"], found["ambiguous"]) == (2, 0, 0)
    assert {line["finding"] for line in (await rows_of(harness, found)).values()} == {"already_known"}
    assert await waiting(harness) == 0
    # A known line needs no note.
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM statement_note") == 0
    assert await broken_invariants(harness.gateway) == {}


@pytest.mark.parametrize("later", ["job", "confirmation", "person"])
async def test_line_before_the_allocation_waits_until_it(harness: Harness, daraja: Daraja, later: str) -> None:
    found = await run(harness, daraja, row(RECEIPT, reference=ACCOUNT))
    assert (found["not_found"], await waiting(harness)) == (1, 1)
    if later == "person":
        await dealt_with(harness, await transaction_of(harness))
    else:
        await expect_money(harness)
        if later == "job":
            await harness.gateway.port(AccountNumbers).allocate_waiting()
        else:
            await confirm(harness)
    # Without another run.
    assert await waiting(harness) == 0
    assert await finding_of(harness) == ("already_known", None)
    again = await run(harness, daraja, row(RECEIPT, reference=ACCOUNT))
    assert (again["already_known"], again["not_found"], again["ambiguous"]) == (1, 0, 0)
    # The former run keeps what it found.
    assert (await rows_of(harness, found))[RECEIPT]["finding"] == "not_found"
    assert await broken_invariants(harness.gateway) == {}


async def test_ambiguous_line_dealt_with_no_longer_waits(harness: Harness, daraja: Daraja) -> None:
    for number in range(2):
        await create_payment(harness, 507, key=f"twin{number}", reference="table 4")
    found = await run(harness, daraja, row(RECEIPT, 507, reference="table 4"))
    assert (found["ambiguous"], await waiting(harness)) == (1, 1)
    await dealt_with(harness, await transaction_of(harness))
    assert (await waiting(harness), (await finding_of(harness))[0]) == (0, "already_known")
    again = await run(harness, daraja, row(RECEIPT, 507, reference="table 4"))
    assert (again["already_known"], again["ambiguous"]) == (1, 0)


async def test_line_of_allocated_money_pays_for_no_payment(harness: Harness, daraja: Daraja) -> None:
    await expect_money(harness)
    line = row(RECEIPT, reference=ACCOUNT)
    await run(harness, daraja, line)
    await confirm(harness)
    # The same amount, payer and reference: the line alone would be this payment's.
    payment = await create_payment(harness, reference=ACCOUNT)
    again = await run(harness, daraja, line)
    assert (again["already_known"], again["recovered"]) == (1, 0)
    assert (await get_payment(harness, payment))["status"] == "pending"
    line_id = await transaction_of(harness)
    path = f"/v1/payments/mpesa/statement-lines/{line_id}/assign"
    refused = await harness.api.call("POST", path, {"payment_id": payment["id"]})
    assert (refused.status, "allocated already" in refused.error["message"]) == (409, True)
    with pytest.raises(Conflict):
        await harness.gateway.port(ReconciliationOperatorService).dismiss(line_id, "cash at the till", actor="test")
    assert await broken_invariants(harness.gateway) == {}


async def test_line_of_another_amount_is_a_contradiction_only(harness: Harness, daraja: Daraja) -> None:
    await expect_money(harness)
    await confirm(harness)
    found = await run(harness, daraja, row(RECEIPT, 400, reference=ACCOUNT))
    assert (found["already_known"], await waiting(harness)) == (1, 0)
    detail = await harness.gateway.db.fetchval("SELECT detail FROM transaction_witness WHERE source = 'pull'")
    assert detail == "reports 40000 cents, not 50000"


async def test_dismissing_a_run_leaves_allocated_money(harness: Harness, daraja: Daraja) -> None:
    found = await run(harness, daraja, row(RECEIPT), row("TKA0000002"))
    await dealt_with(harness, await transaction_of(harness))
    service = harness.gateway.port(ReconciliationOperatorService)
    assert await service.dismiss_all(found["id"], "cash at the till", actor="test") == 1
    assert (await finding_of(harness), await waiting(harness)) == (("already_known", None), 0)


async def test_line_of_unallocated_money_waits_whoever_came_first(harness: Harness, daraja: Daraja) -> None:
    await confirm(harness, account="UNKNOWN")
    found = await run(harness, daraja, row(RECEIPT, reference="UNKNOWN"))
    assert (found["not_found"], await waiting(harness)) == (1, 1)
    assert await finding_of(harness) == ("not_found", None)


async def test_money_allocated_while_its_run_judges_completes_no_payment(harness: Harness, daraja: Daraja) -> None:
    found = await run(harness, daraja, row(RECEIPT, phone="254711000001", reference="table 4"))
    await dealt_with(harness, await transaction_of(harness))
    payment = await create_payment(harness, reference="table 4")
    db, gateway = harness.gateway.db, harness.gateway
    # As if the run had stored its lines before the allocation.
    await db.execute("UPDATE reconciliation_line SET finding = 'new' WHERE run_id = $1", found["id"])
    stored = await db.fetchrow("SELECT * FROM reconciliation_run WHERE run_id = $1", found["id"])
    assert stored is not None
    credentials = await gateway.port(Credentials).get(stored["merchant_id"], "sandbox")
    await gateway.port(LineMatching).match_window(stored, credentials)
    assert (await get_payment(harness, payment))["status"] == "pending"
    assert (await rows_of(harness, found))[RECEIPT]["finding"] == "already_known"
