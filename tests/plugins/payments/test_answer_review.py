"""Protects the review of ambiguous status answers: they are listed and kept until a person has reviewed them."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, InvalidFields, NotFound
from mpesa_gateway.retention import Retention
from mpesa_gateway_payments.answer_review import StatusAnswerReview
from mpesa_gateway_payments.doctor import check_payments
from tests.conftest import Harness
from tests.looking import levels, only_merchant, results_of_check

INSERT = """
INSERT INTO status_check (check_id, merchant_id, env, shortcode, receipt, state, finding, created_at, finished_at)
VALUES ($1, $2, 'sandbox', '174379', $3, 'answered', $4, $5, $5)
"""


async def answer(harness: Harness, receipt: str, finding: str = "ambiguous", *, age_days: int = 0) -> str:
    gateway = harness.gateway
    at = gateway.clock.now() - timedelta(days=age_days)
    check_id = gateway.ids.new("chk", at)
    merchant = await only_merchant(gateway)
    await gateway.db.execute(INSERT, check_id, merchant.merchant_id, receipt, finding, at)
    return check_id


async def shown(harness: Harness) -> list[Any]:
    rows = await harness.gateway.services.get(StatusAnswerReview).newest("sandbox")
    return [row["receipt"] for row in rows]


async def doctor_levels(harness: Harness) -> dict[str, str]:
    merchant = msgspec.structs.replace(await only_merchant(harness.gateway), envs=("sandbox",))
    return levels(await results_of_check(check_payments, harness.gateway, merchant=merchant))


@pytest.mark.as_owner
async def test_resolve_answer_takes_it_off_the_list_and_records_who(harness: Harness) -> None:
    review = harness.gateway.services.get(StatusAnswerReview)
    check_id = await answer(harness, "UKA1B2C3D1")
    other = await answer(harness, "UKA1B2C3D2", "not_ours")
    merchant_id = (await only_merchant(harness.gateway)).merchant_id
    stranger = (await harness.gateway.merchants.create("Other", actor="test")).merchant_id
    counts = [await review.count("sandbox", one) for one in (None, merchant_id, stranger)]
    assert (counts, await review.count("live"), await shown(harness)) == ([1, 1, 0], 0, ["UKA1B2C3D1"])
    assert await review.newest("sandbox", stranger) == []
    cases: tuple[tuple[Env, str, str, type[Exception]], ...] = (
        ("sandbox", check_id, "no", InvalidFields),
        ("live", check_id, "found on the portal", NotFound),
        ("sandbox", other, "found on the portal", Conflict),
    )
    for env, about, note, problem in cases:
        with pytest.raises(problem):
            await review.resolve(env, about, note, actor="a person")
    with pytest.raises(NotFound):
        await review.resolve("sandbox", check_id, "found on the portal", actor="a person", merchant_id=stranger)
    await review.resolve("sandbox", check_id, "found on the portal", actor="a person", merchant_id=merchant_id)
    with pytest.raises(Conflict):
        await review.resolve("sandbox", check_id, "found on the portal", actor="another person")
    assert (await review.count("sandbox"), await shown(harness)) == (0, [])
    (entry,) = (await harness.gateway.audit.page(5, None, "payment.status_answer_reviewed", None)).rows
    assert (entry.subject_id, entry.actor, entry.merchant_id) == (check_id, "a person", merchant_id)
    assert (entry.detail["receipt"], entry.detail["note"]) == ("UKA1B2C3D1", "found on the portal")


@pytest.mark.as_owner
async def test_doctor_with_an_ambiguous_answer_warns_until_resolved(harness: Harness) -> None:
    check_id = await answer(harness, "UKA1B2C3D1", age_days=30)
    assert await doctor_levels(harness) == {"payments.answers": "warning"}
    await harness.gateway.services.get(StatusAnswerReview).resolve("sandbox", check_id, "refunded", actor="a person")
    assert await doctor_levels(harness) == {}


@pytest.mark.as_owner
async def test_retention_keeps_an_undecided_answer_and_deletes_resolved_ones(harness: Harness) -> None:
    review = harness.gateway.services.get(StatusAnswerReview)
    kept = await answer(harness, "UKA1B2C3D1", age_days=400)
    resolved = await answer(harness, "UKA1B2C3D2", age_days=400)
    await answer(harness, "UKA1B2C3D3", "not_found", age_days=400)
    await review.resolve("sandbox", resolved, "refunded", actor="a person")
    await delete_old(harness)
    rows = await harness.gateway.db.fetch("SELECT check_id FROM status_check")
    assert ([row["check_id"] for row in rows], await shown(harness)) == ([kept], ["UKA1B2C3D1"])
    await review.resolve("sandbox", kept, "refunded", actor="a person")
    await delete_old(harness)
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM status_check") == 0


async def delete_old(harness: Harness) -> None:
    await Retention(harness.gateway).delete_expired()
