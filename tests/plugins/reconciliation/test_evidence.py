"""Protects statement lines: a line completes a payment only with proof, and page by page if that is certain."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import INITIATED, shop
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.matching import Decided
from mpesa_gateway_reconciliation.operator_service import ReconciliationOperatorService
from tests.conftest import Harness
from tests.daraja import Daraja, fault
from tests.owner import as_owner
from tests.plugins.reconciliation.test_reconciliation import (
    RUN,
    call_back,
    create_payment,
    get_payment,
    page,
    post_status_result,
    row,
    rows_of,
    run,
    statement,
)

TILL: dict[str, Any] = INITIATED | {"mpesa": INITIATED["mpesa"] | {"shortcode": "600638", "till_number": "5123456"}}
BOUGHT = {"transactiontype": "c2b-buy-goods-debit", "reference": ""}


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only, and pages are requested again without a pause."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "reconciliation": {"pause": 0.01, "tries": 2},
    }


@pytest.fixture
async def harness(harness: Harness) -> Harness:
    """The shop's credentials have an initiator and a nominated number."""
    assert (await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    return harness


@asynccontextmanager
async def till(harness: Harness) -> AsyncGenerator[Harness]:
    """Another shop of the same gateway, with a till."""
    async with shop(harness.gateway, harness.base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", TILL)).status == 200
        yield Harness(harness.gateway, harness.base, api, harness.receiver)


async def move_into_past(harness: Harness, payment: Any, **ago: float) -> None:
    """Move the creation time of a payment into the past."""
    await harness.gateway.db.execute(
        "UPDATE payment SET created_at = created_at - $2::interval WHERE payment_id = $1",
        payment["id"],
        timedelta(**ago),
    )


async def candidates(harness: Harness, receipt: str) -> list[str]:
    """The payments that operators see as candidates for a line."""
    line = await harness.gateway.db.fetchrow("SELECT * FROM noted_line WHERE receipt = $1", receipt)
    assert line is not None
    return [one.id for one in await harness.gateway.services.get(ReconciliationOperatorService).candidates(line)]


# -- B4, G3 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phone", [None, "9d2c ***** 33fd", "9f86d081884c7d659a2feaa0c55ad015", "2547****001"])
@pytest.mark.parametrize("code", [1032, 1037])
async def test_till_line_with_a_hidden_payer_is_queried_and_ambiguous(
    harness: Harness, daraja: Daraja, phone: str | None, code: int
) -> None:
    async with till(harness) as place:
        payment = await create_payment(place)
        # A final failure and one that is not.
        await call_back(place, payment, code=code)
        found = await run(place, daraja, row("TKN4A1B2C3", phone=phone, **BOUGHT))
        assert (found["ambiguous"], found["recovered"]) == (1, 0)
        # Operators see it although the credentials' own number is the store's.
        assert await candidates(place, "TKN4A1B2C3") == [payment["id"]]
        (question,) = daraja.requests_of("transactionstatus")
        assert question["TransactionID"] == "TKN4A1B2C3"
        await post_status_result(place, question, "2547****001")
        assert (await get_payment(place, payment))["status"] == "failed"
        assert await harness.gateway.db.fetchval("SELECT finding FROM noted_line") == "ambiguous"
        # M-Pesa shows no more: the line is not queried again and needs an operator.
        await run(place, daraja, row("TKN4A1B2C3", phone=phone, **BOUGHT))
        assert len(daraja.requests_of("transactionstatus")) == 1


async def test_till_line_is_decided_by_the_whole_number_of_the_status_query(harness: Harness, daraja: Daraja) -> None:
    async with till(harness) as place:
        payment, other = await create_payment(place, 500), await create_payment(place, 600, key="other")
        lines = [row("TKN4A1B2C3", 500, phone=None, **BOUGHT), row("TKN4A1B2C4", 600, phone=None, **BOUGHT)]
        assert (await run(place, daraja, *lines))["ambiguous"] == 2
        first, second = sorted(daraja.requests_of("transactionstatus"), key=lambda one: str(one["TransactionID"]))
        await post_status_result(place, first, "254711000001", CreditPartyName="600638 - STORE")
        assert (await get_payment(place, payment))["receipt"] == "TKN4A1B2C3"
        # The right payer, but another receiver.
        await post_status_result(place, second, "254711000001", CreditPartyName="555555 - OTHER SHOP")
        assert (await get_payment(place, other))["status"] == "pending"


async def test_paybill_line_of_a_till_kind_needs_the_reference(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness, reference="table 4")
    bare = row("TKN4A1B2C3", **BOUGHT)
    found = await run(harness, daraja, bare)
    assert (found["recovered"], found["ambiguous"]) == (0, 1)
    assert (await get_payment(harness, payment))["status"] == "pending"


# -- B5, B6, B7 -----------------------------------------------------------------------------------------------------


async def test_line_older_than_the_payment_is_not_found(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness, reference="table 4")
    await call_back(harness, payment, code=1032)
    before = (datetime.now(UTC) - timedelta(minutes=115)).astimezone(EAT)
    for number, text in enumerate((f"{before:%Y-%m-%d %H:%M:%S}", f"{before:%Y-%m-%dT%H:%M:%S}Z")):
        found = await run(harness, daraja, row(f"TKN4A1B2C{number}", reference="table 4", at=text))
        assert (found["not_found"], found["recovered"]) == (1, 0), text
    assert (await get_payment(harness, payment))["status"] == "failed"


def format_time(at: datetime, zone: str) -> str:
    """A time as a statement writes it."""
    return {
        "none": f"{at.astimezone(EAT):%Y-%m-%d %H:%M:%S}",
        "Z": f"{at:%Y-%m-%dT%H:%M:%S}Z",
        "offset": f"{at.astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
    }[zone]


OUTSIDE = {
    "a minute before the window, and the clocks' difference": timedelta(hours=-2, minutes=-4),
    "years ago": timedelta(days=-2500),
    "an hour ahead": timedelta(hours=1),
    "years ahead": timedelta(days=2500),
}


@pytest.mark.parametrize("zone", ["none", "offset", "Z"])
@pytest.mark.parametrize("off", OUTSIDE)
async def test_line_of_a_time_outside_the_window_is_not_found(
    harness: Harness, daraja: Daraja, off: str, zone: str
) -> None:
    """The payment is as old as its money, so that only the window contradicts."""
    at = datetime.now(UTC) + OUTSIDE[off]
    if zone == "Z" and off == "a minute before the window, and the clocks' difference":
        # Its other reading is three hours earlier.
        assert OUTSIDE[off] < timedelta(0)
    payment, own = await create_payment(harness, reference="table 4"), await create_payment(harness, 700, key="own")
    if OUTSIDE[off] < timedelta(0):
        await move_into_past(harness, payment, seconds=-OUTSIDE[off].total_seconds() + 60)
    text = format_time(at, zone)
    lines = [
        row("TKN4A1B2C3", reference="table 4", at=text),
        row("OWN0000001", 700, reference=own["reference"], at=text),
    ]
    found = await run(harness, daraja, *lines)
    # A reference of our own settles a line of any time.
    assert (found["not_found"], found["ambiguous"], found["recovered"]) == (1, 0, 1)
    assert [(await get_payment(harness, one))["status"] for one in (payment, own)] == ["pending", "completed"]
    assert (await candidates(harness, "TKN4A1B2C3"), daraja.requests_of("transactionstatus")) == ([], [])


async def test_line_outside_one_window_is_judged_again_in_a_wider_one(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness, reference="table 4")
    await move_into_past(harness, payment, hours=3)
    at = datetime.now(UTC) - timedelta(hours=3) + timedelta(minutes=1)
    line = row("TKN4A1B2C3", reference="table 4", at=format_time(at, "none"))
    assert (await run(harness, daraja, line))["not_found"] == 1
    daraja.answers["pullquery"] = [statement([line])] * 2
    wider = {"start": (datetime.now(UTC) - timedelta(hours=5)).isoformat()}
    assert (await harness.api.call("POST", RUN, wider)).data["recovered"] == 1
    assert (await get_payment(harness, payment))["receipt"] == "TKN4A1B2C3"


async def test_line_with_two_readings_of_z_is_decided_by_a_narrower_window(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness, reference="table 4")
    await move_into_past(harness, payment, hours=1)
    # Written in East Africa Time: as UTC it would be two hours ahead, outside the window of two hours.
    at = datetime.now(UTC) - timedelta(minutes=59)
    line = row("TKN4A1B2C3", reference="table 4", at=f"{at:%Y-%m-%dT%H:%M:%S}Z")
    daraja.answers["pullquery"] = [statement([line])] * 2
    wide = {"start": (datetime.now(UTC) - timedelta(hours=20)).isoformat()}
    assert (await harness.api.call("POST", RUN, wide)).data["ambiguous"] == 1
    assert (await run(harness, daraja, line))["recovered"] == 1
    assert (await get_payment(harness, payment))["receipt"] == "TKN4A1B2C3"


@pytest.mark.parametrize(("code", "ago"), [(1032, 0), (1037, 100), (2001, 100)])
async def test_line_of_a_later_purchase_completes_no_failed_payment(
    harness: Harness, daraja: Daraja, code: int, ago: int
) -> None:
    async with till(harness) as place:
        payment = await create_payment(place)
        await call_back(place, payment, code=code)
        await move_into_past(place, payment, minutes=ago)
        found = await run(place, daraja, row("TKN4A1B2C3", **BOUGHT))
        assert (found["ambiguous"], found["recovered"]) == (1, 0)
        assert (await get_payment(place, payment))["status"] == "failed"
        assert await candidates(place, "TKN4A1B2C3") == [payment["id"]]


# -- times that end in Z --------------------------------------------------------------------------------------------


HOURS_AGO = timedelta(hours=5)


def format_z_time(at: datetime, zone: str) -> str:
    """A time as a statement writes it with a Z, meant as East Africa Time or as UTC."""
    return f"{(at.astimezone(EAT) if zone == 'eat' else at):%Y-%m-%dT%H:%M:%S}Z"


async def create_paid_hours_ago(harness: Harness, receipt: str, amount: int, **known: Any) -> None:
    """A payment of five hours ago with the receipt of a callback; `known` is the delay of the callback."""
    payment = await create_payment(harness, amount, key=receipt)
    await call_back(harness, payment, amount=amount, receipt=receipt)
    await move_into_past(harness, payment, hours=5)
    async with as_owner(harness.gateway) as owner:
        # Triggers are off: Postgres refuses to change proof of money.
        await owner.execute("SET session_replication_role = replica")
        await owner.execute(
            "UPDATE payment SET completed_at = created_at + $2::interval WHERE payment_id = $1",
            payment["id"],
            timedelta(**known or {"minutes": 1}),
        )


async def run_of_two_days(harness: Harness, daraja: Daraja, *lines: Any) -> Any:
    """A run with a window in which both readings of a time are possible."""
    daraja.answers["pullquery"] = [statement(list(lines))] * 2
    window = {"start": (datetime.now(UTC) - timedelta(hours=47)).isoformat()}
    return (await harness.api.call("POST", RUN, window)).data


async def create_lost_hours_ago(harness: Harness, amount: int = 502, **more: Any) -> Any:
    """A pending payment of five hours ago."""
    payment = await create_payment(harness, amount, key=f"lost-{amount}", **{"reference": "table 4"} | more)
    await move_into_past(harness, payment, hours=5)
    return payment


@pytest.mark.parametrize("zone", ["eat", "utc"])
async def test_zone_of_z_is_learnt_from_lines_of_known_payments(harness: Harness, daraja: Daraja, zone: str) -> None:
    """Both readings have to agree until a known payment proves one."""
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    lost = await create_lost_hours_ago(harness)
    line = row("LOST000001", 502, reference="table 4", at=format_z_time(at, zone))
    found = await run_of_two_days(harness, daraja, line)
    assert (found["ambiguous"], found["recovered"]) == (1, 0)
    await create_paid_hours_ago(harness, "KNOWN00001", 501)
    known = row("KNOWN00001", 501, reference="", at=format_z_time(at, zone))
    found = await run_of_two_days(harness, daraja, known, line)
    assert (found["ambiguous"], found["already_known"], found["recovered"]) == (0, 1, 1)
    assert (await get_payment(harness, lost))["receipt"] == "LOST000001"
    assert await harness.gateway.db.fetchval("SELECT zone FROM noted_line WHERE receipt = 'KNOWN00001'") == zone


@pytest.mark.parametrize("means", ["eat", "utc"])
async def test_line_that_only_the_disproved_zone_fits_is_not_found(
    harness: Harness, daraja: Daraja, means: str
) -> None:
    await create_paid_hours_ago(harness, "KNOWN00001", 501)
    lost = await create_lost_hours_ago(harness)
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    other = "utc" if means == "eat" else "eat"
    lines = [
        row("KNOWN00001", 501, reference="", at=format_z_time(at, means)),
        # Three hours before or after the payment in the proven zone.
        row("STRANGE001", 502, reference="table 4", at=format_z_time(at, other)),
    ]
    found = await run_of_two_days(harness, daraja, *lines)
    assert (found["already_known"], found["recovered"]) == (1, 0)
    assert (await get_payment(harness, lost))["status"] == "pending"


async def test_zone_of_z_is_proved_for_each_shortcode_alone(harness: Harness, daraja: Daraja) -> None:
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    await create_paid_hours_ago(harness, "KNOWN00001", 501)
    await run_of_two_days(harness, daraja, row("KNOWN00001", 501, reference="", at=format_z_time(at, "eat")))
    async with till(harness) as place:
        lost = await create_lost_hours_ago(place)
        line = row("LOST000001", 502, at=format_z_time(at, "utc"), **BOUGHT)
        found = await run_of_two_days(place, daraja, line)
        assert (found["ambiguous"], found["recovered"]) == (1, 0)
        await create_paid_hours_ago(place, "KNOWN00002", 501)
        known = row("KNOWN00002", 501, at=format_z_time(at, "utc"), **BOUGHT)
        assert (await run_of_two_days(place, daraja, known, line))["recovered"] == 1
        assert (await get_payment(place, lost))["receipt"] == "LOST000001"
    zones = await harness.gateway.db.fetch("SELECT shortcode, zone FROM noted_line WHERE zone IS NOT NULL")
    assert {(one["shortcode"], one["zone"]) for one in zones} == {("174379", "eat"), ("5123456", "utc")}


async def test_zone_with_contradicting_proofs_is_unknown(harness: Harness, daraja: Daraja) -> None:
    """Both readings have to agree again."""
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    lost = await create_lost_hours_ago(harness)
    lines: list[Any] = [row("LOST000001", 502, reference="table 4", at=format_z_time(at, "eat"))]
    for number, zone in enumerate(("eat", "utc")):
        await create_paid_hours_ago(harness, f"KNOWN0000{number}", 600 + number)
        lines.append(row(f"KNOWN0000{number}", 600 + number, reference="", at=format_z_time(at, zone)))
    found = await run_of_two_days(harness, daraja, *lines)
    assert (found["already_known"], found["ambiguous"], found["recovered"]) == (2, 1, 0)
    assert (await get_payment(harness, lost))["status"] == "pending"


async def test_zone_is_not_proved_by_a_receipt_known_late(harness: Harness, daraja: Daraja) -> None:
    """Three hours lie between the readings: the wrong one could fit a payment that was open so long."""
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    await create_paid_hours_ago(harness, "KNOWN00001", 501, minutes=185)
    await run_of_two_days(harness, daraja, row("KNOWN00001", 501, reference="", at=format_z_time(at, "utc")))
    assert await harness.gateway.db.fetchval("SELECT zone FROM noted_line") is None


# -- status queries about a line ------------------------------------------------------------------------------------

OF_OTHER_MONEY: dict[str, dict[str, Any]] = {
    "reversed": {"TransactionStatus": "Reversed"},
    "failed": {"TransactionStatus": "Failed"},
    "not yet": {"TransactionStatus": "Pending"},
    "without a status": {"TransactionStatus": None},
    "of another amount": {"Amount": "5.00"},
    "years ago": {"FinalisedTime": "20191219114550"},
    "to another shop": {"CreditPartyName": "555555 - OTHER SHOP"},
}


@pytest.mark.parametrize("why", OF_OTHER_MONEY)
async def test_status_result_of_a_line_about_other_money_completes_nothing(
    harness: Harness, daraja: Daraja, why: str
) -> None:
    async with till(harness) as place:
        payment = await create_payment(place)
        line = row("TKN4A1B2C3", phone=None, **BOUGHT)
        await run(place, daraja, line)
        (question,) = daraja.requests_of("transactionstatus")
        fields = {
            "Amount": "500.00",
            "CreditPartyName": "600638 - STORE",
            "FinalisedTime": f"{datetime.now(EAT):%Y%m%d%H%M%S}",
        }
        await post_status_result(place, question, "254711000001", **fields | OF_OTHER_MONEY[why])
        assert (await get_payment(place, payment))["status"] == "pending"
        # The line has a result and is not queried again.
        await run(place, daraja, line)
        assert len(daraja.requests_of("transactionstatus")) == 1


# -- C1 -------------------------------------------------------------------------------------------------------------


async def test_assign_of_another_merchants_line_is_refused(harness: Harness, daraja: Daraja) -> None:
    async with shop(harness.gateway, harness.base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        other = Harness(harness.gateway, harness.base, api, harness.receiver)
        theirs = [
            await create_payment(other, 4321, key="own"),
            await create_payment(other, 4322, key="fits", phone="254722000001", reference="their 1"),
            await create_payment(other, 4323, key="hidden", phone="254722000001", reference="ours too"),
        ]
        mine = [
            await create_payment(harness, amount, key=f"k{amount}", reference=reference)
            for amount, reference in ((4321, "mine"), (4322, "mine"), (4323, "ours too"))
        ]
        lines = [
            row("THEIRS0001", 4321, phone="722000001", reference=theirs[0]["reference"]),
            row("THEIRS0002", 4322, phone="722000001", reference="their 1"),
            row("WHOSE00003", 4323, phone=None, reference="ours too"),
        ]
        found = await rows_of(harness, await run(harness, daraja, *lines))
        for line, payment in zip(lines, mine, strict=True):
            path = f"/v1/payments/mpesa/statement-lines/{found[line['transactionId']]['id']}/assign"
            refused = await harness.api.call("POST", path, {"payment_id": payment["id"]})
            assert (refused.status, refused.error["code"]) == (409, "CONFLICT"), line
            assert (await get_payment(harness, payment))["status"] == "pending"
        # The statement completed the proved payments of both merchants.
        assert [(await get_payment(other, one))["status"] for one in theirs] == ["completed", "completed", "pending"]
        # An operator can assign a line that a merchant cannot.
        line_id = found["WHOSE00003"]["id"]
        caller: Any = await _caller(harness, mine[2]["merchant_id"])
        settling = harness.gateway.services.get(LineMatching)
        assigned = await settling.assign(caller, line_id, mine[2]["id"], by_operator=Decided(reason="She called"))
        assert (assigned["finding"], (await get_payment(harness, mine[2]))["receipt"]) == ("recovered", "WHOSE00003")


async def _caller(harness: Harness, merchant_id: str) -> Any:
    class Caller:
        def __init__(self) -> None:
            self.merchant_id, self.env, self.actor = merchant_id, "sandbox", "operator:test"

    assert harness.gateway is not None
    return Caller()


async def test_assign_by_a_merchant_needs_a_fitting_line(harness: Harness, daraja: Daraja) -> None:
    first, second = [await create_payment(harness, key=key, reference="table 4") for key in ("a", "b")]
    lines = await rows_of(
        harness,
        await run(
            harness,
            daraja,
            row("TKN4A1B2C3", reference="table 4"),
            row("OTHER00001", reference="table 5"),
            row("AMOUNT0001", 501, reference="table 4"),
            row("PAYER00001", phone="722000001", reference="table 4"),
            row("REVERSED01", reference="table 4", transactiontype="c2b-pay-bill-reversal"),
        ),
    )
    for receipt in ("OTHER00001", "AMOUNT0001", "PAYER00001", "REVERSED01"):
        path = f"/v1/payments/mpesa/statement-lines/{lines[receipt]['id']}/assign"
        refused = await harness.api.call("POST", path, {"payment_id": first["id"]})
        assert refused.status == 409, receipt
    path = f"/v1/payments/mpesa/statement-lines/{lines['TKN4A1B2C3']['id']}/assign"
    assert (await harness.api.call("POST", path, {"payment_id": second["id"]})).data["finding"] == "recovered"
    assert [(await get_payment(harness, one))["status"] for one in (first, second)] == ["pending", "completed"]


async def test_status_query_of_a_line_with_another_reference_is_not_ours(harness: Harness, daraja: Daraja) -> None:
    """The payer's own purchase at the paybill: M-Pesa's result does not show its other reference."""
    payment = await create_payment(harness, reference="table 4")
    assert (await run(harness, daraja, row("WALKIN0001", reference="walk-in")))["not_found"] == 1
    started = (await harness.api.call("POST", "/v1/payments/mpesa/check-status/WALKIN0001")).data
    (question,) = daraja.requests_of("transactionstatus")
    now = f"{datetime.now(EAT):%Y%m%d%H%M%S}"
    says = {"Amount": "500", "CreditPartyName": "174379 - SHOP", "FinalisedTime": now}
    await post_status_result(harness, question, "254711000001", **says)
    found = (await harness.api.call("GET", f"/v1/payments/mpesa/checks/{started['check_id']}")).data
    assert (found["finding"], (await get_payment(harness, payment))["status"]) == ("not_ours", "pending")


# -- E3 -------------------------------------------------------------------------------------------------------------

FAILS: dict[str, Callable[[], Any]] = {
    "500": lambda: fault("500.003.1001", "Internal Server Error"),
    "spike arrest": lambda: fault("500.003.02", "Spike Arrest"),
    "refused": lambda: fault("400.003.02", "Bad Request", 400),
    "a page of HTML": lambda: (200, b"<html>"),
}


@pytest.mark.parametrize("how", FAILS)
async def test_page_before_a_failed_one_settles_certain_lines_only(harness: Harness, daraja: Daraja, how: str) -> None:
    own, known = await create_payment(harness, 501, key="own"), await create_payment(harness, 502, key="known")
    await call_back(harness, known, amount=502, receipt="KNOWN00001")
    by_rule = await create_payment(harness, 503, key="rule", reference="table 4")
    wrong = await create_payment(harness, 504, key="wrong")
    rows = [
        row("OWN0000001", 501, reference=own["reference"]),
        row("KNOWN00001", 502),
        row("RULE000001", 503, reference="table 4"),
        row("WRONG00001", 5, reference=wrong["reference"]),
    ]
    # A page with fewer rows would be the last one.
    full = [*rows, *(row(f"FILL{number:06}", 1000 + number) for number in range(96))]
    daraja.add_answers("pullquery", page(*full), *[FAILS[how]()] * 2)
    found = (await harness.api.call("POST", RUN, {})).data
    assert (found["status"], found["already_known"], found["recovered"], found["mismatched"]) == ("failed", 1, 1, 1)
    assert (await get_payment(harness, own))["receipt"] == "OWN0000001"
    assert (await get_payment(harness, wrong))["mismatch"]["of"] == "amount"
    # The rule waits: money on the next page could fit too.
    assert (await get_payment(harness, by_rule))["status"] == "pending"
    daraja.answers["pullquery"] = []
    daraja.add_answers("pullquery", page(*full), page(row("RULE000002", 503, reference="table 4")))
    found = (await harness.api.call("POST", RUN, {})).data
    assert (found["status"], found["ambiguous"]) == ("completed", 2)
    assert (await get_payment(harness, by_rule))["status"] == "pending"
