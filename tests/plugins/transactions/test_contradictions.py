"""Protects attention for reports that contradict recorded money: doctor, overview, page and metric."""

from dataclasses import replace

import msgspec
import pytest

from mpesa_gateway.errors import Conflict, InvalidFields, NotFound
from mpesa_gateway.ops_contract import Role
from mpesa_gateway_transactions.api import ReportedTransaction
from mpesa_gateway_transactions.contradictions import ContradictionReview
from mpesa_gateway_transactions.doctor import check_contradictions
from tests.conftest import Harness
from tests.identifiers import identifier
from tests.looking import levels, only_merchant, results_of_check
from tests.plugins.ops.conftest import OpsSite, ops_site, whole_pages
from tests.plugins.transactions.test_record import record, report, witnesses

__all__ = ["ops_site", "report", "whole_pages"]

OTHER_RECEIVER = """
INSERT INTO receiver (receiver_id, env, number, kind, created_at) VALUES ($1, 'sandbox', '600000', 'paybill', now())
"""


async def doctor_levels(harness: Harness) -> dict[str, str]:
    """The doctor's results about the only merchant's transactions."""
    merchant = msgspec.structs.replace(await only_merchant(harness.gateway), envs=("sandbox",))
    return levels(await results_of_check(check_contradictions, harness.gateway, merchant=merchant))


@pytest.mark.as_owner
async def test_record_another_amount_needs_review_until_resolved(harness: Harness, report: ReportedTransaction) -> None:
    review = harness.gateway.services.get(ContradictionReview)
    await record(harness.gateway, report)
    await record(harness.gateway, replace(report, source="pull"))
    assert (await review.count("sandbox"), await doctor_levels(harness)) == (0, {})
    await record(harness.gateway, replace(report, source="pull", amount_cents=700))
    (row,) = await review.newest("sandbox")
    assert (row["source"], row["detail"]) == ("pull", "reports 700 cents, not 50000")
    assert await doctor_levels(harness) == {"transactions.contradictions": "warning"}
    assert (await review.count("sandbox"), await review.count("live")) == (1, 0)
    about = row["transaction_id"], "pull"
    with pytest.raises(NotFound):
        await review.resolve("live", *about, "compared", actor="a person")
    with pytest.raises(InvalidFields):
        await review.resolve("sandbox", *about, "no", actor="a person")
    await review.resolve("sandbox", *about, "compared with the portal", actor="a person")
    with pytest.raises(Conflict):
        await review.resolve("sandbox", *about, "compared with the portal", actor="a person")
    assert (await review.count("sandbox"), await doctor_levels(harness)) == (0, {})
    entry = (await harness.gateway.audit.page(1, None, "transaction.contradiction_reviewed", None)).rows[0]
    assert (entry.subject_id, entry.detail["source"]) == about


async def test_record_another_difference_after_a_review_needs_review_again(
    harness: Harness, report: ReportedTransaction
) -> None:
    review = harness.gateway.services.get(ContradictionReview)
    pulled = replace(report, source="pull", amount_cents=70_000)
    await record(harness.gateway, report)
    await record(harness.gateway, pulled)
    (row,) = await review.newest("sandbox")
    await review.resolve("sandbox", row["transaction_id"], "pull", "compared with the portal", actor="a person")
    for again in (pulled, replace(report, source="pull")):
        await record(harness.gateway, again)
        assert await review.count("sandbox") == 0
    await record(harness.gateway, replace(pulled, amount_cents=1))
    (row,) = await review.newest("sandbox")
    assert row["detail"] == "reports 1 cents, not 50000"
    await review.resolve("sandbox", row["transaction_id"], "pull", "refunded by hand", actor="a person")
    entries = (await harness.gateway.audit.page(2, None, "transaction.contradiction_reviewed", None)).rows
    assert [entry.detail["note"] for entry in entries] == ["refunded by hand", "compared with the portal"]


async def test_record_another_receiver_is_a_witness_that_needs_review(
    harness: Harness, report: ReportedTransaction
) -> None:
    """The same receipt on the statements of two receivers: the statements do not prove the receiver."""
    await harness.gateway.db.execute(OTHER_RECEIVER, identifier("rcv"))
    first = replace(report, source="pull")
    await record(harness.gateway, first)
    await record(harness.gateway, replace(first, number="600000", amount_cents=700))
    assert await witnesses(harness.gateway) == [
        ("pull", "reports 700 cents, not 50000, reports receiver 600000, not 174379")
    ]
    assert await harness.gateway.services.get(ContradictionReview).count("sandbox") == 1


async def test_contradictions_page_shows_and_resolves(ops_site: OpsSite) -> None:
    gateway = ops_site.gateway
    paid = await ops_site.api.settled((await ops_site.api.pay("254711000001", key="paid")).data["id"], "completed")
    own = ReportedTransaction(
        source="pull",
        env="sandbox",
        number="174379",
        merchant_id=paid["merchant_id"],
        direction="in",
        receipt=paid["receipt"],
        occurred_at=gateway.clock.now(),
        amount_cents=700,
    )
    await record(gateway, own)
    async with ops_site.browser(Role.VIEWER) as browser:
        overview = await browser.open("/")
        assert "1 report of M-Pesa contradicts recorded money" in overview.words
        page = await browser.open("/transactions/contradictions")
        assert "reports 700 cents, not 50000" in page.words
        assert (page.unbalanced_tags, "What was done" in page.words) == ([], False)
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open("/transactions/contradictions")
        unclear = await browser.submit(page, "/transactions/contradictions", note="x")
        assert unclear.status == 422
        done = await browser.submit(unclear, "/transactions/contradictions", note="Compared with the portal")
        assert "Marked as resolved." in done.words
        assert "No report contradicts recorded money." in done.words
        assert "contradicts recorded money" not in (await browser.open("/")).words
