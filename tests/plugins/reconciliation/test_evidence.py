"""Statement lines complete a payment only where all that they state proves it, page by page where that is certain."""

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
from tests.conftest import Town
from tests.daraja import Daraja, fault
from tests.owner import as_owner
from tests.plugins.reconciliation.test_reconciliation import (
    RUN,
    answer,
    asked,
    call_back,
    look,
    page,
    row,
    rows_of,
    run,
    statement,
)

TILL: dict[str, Any] = INITIATED | {"mpesa": INITIATED["mpesa"] | {"shortcode": "600638", "till_number": "5123456"}}
BOUGHT = {"transactiontype": "c2b-buy-goods-debit", "reference": ""}


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """No payment is asked about, and a page is asked for again without a pause."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "reconciliation": {"pause": 0.01, "tries": 2},
    }


@pytest.fixture
async def town(town: Town) -> Town:
    """The shop's credentials have an initiator and a nominated number."""
    assert (await town.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    return town


@asynccontextmanager
async def till(town: Town) -> AsyncGenerator[Town]:
    """Another shop of the same gateway, with a till."""
    async with shop(town.gateway, town.base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", TILL)).status == 200
        yield Town(town.gateway, town.base, api, town.receiver)


async def made_ago(town: Town, payment: Any, **ago: float) -> None:
    """Put the time at which a payment was asked for into the past."""
    await town.gateway.db.execute(
        "UPDATE payment SET created_at = created_at - $2::interval WHERE payment_id = $1",
        payment["id"],
        timedelta(**ago),
    )


async def candidates(town: Town, receipt: str) -> list[str]:
    """The payments that operators are shown for a line."""
    line = await town.gateway.db.fetchrow("SELECT * FROM noted_line WHERE receipt = $1", receipt)
    assert line is not None
    return [one.id for one in await town.gateway.services.get(ReconciliationOperatorService).candidates(line)]


# -- B4, G3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [None, "9d2c ***** 33fd", "9f86d081884c7d659a2feaa0c55ad015", "2547****001"])
@pytest.mark.parametrize("code", [1032, 1037])
async def test_a_tills_line_that_hides_its_payer_is_asked_about_and_never_guessed(
    town: Town, daraja: Daraja, shown: str | None, code: int
) -> None:
    async with till(town) as place:
        payment = await asked(place)
        # Where the failure was M-Pesa's last word, and where it was not.
        await call_back(place, payment, code=code)
        found = await run(place, daraja, row("TKN4A1B2C3", phone=shown, **BOUGHT))
        assert (found["ambiguous"], found["recovered"]) == (1, 0)
        # Operators see it though the credentials' own number is the store's.
        assert await candidates(place, "TKN4A1B2C3") == [payment["id"]]
        (question,) = daraja.of("transactionstatus")
        assert question["TransactionID"] == "TKN4A1B2C3"
        await answer(place, question, "2547****001")
        assert (await look(place, payment))["status"] == "failed"
        assert await town.gateway.db.fetchval("SELECT finding FROM noted_line") == "ambiguous"
        # M-Pesa shows no more: it is not asked again, and a person decides.
        await run(place, daraja, row("TKN4A1B2C3", phone=shown, **BOUGHT))
        assert len(daraja.of("transactionstatus")) == 1


async def test_a_tills_line_is_decided_by_the_whole_number_that_mpesa_answers_with(town: Town, daraja: Daraja) -> None:
    async with till(town) as place:
        payment, other = await asked(place, 500), await asked(place, 600, key="other")
        lines = [row("TKN4A1B2C3", 500, phone=None, **BOUGHT), row("TKN4A1B2C4", 600, phone=None, **BOUGHT)]
        assert (await run(place, daraja, *lines))["ambiguous"] == 2
        first, second = sorted(daraja.of("transactionstatus"), key=lambda one: str(one["TransactionID"]))
        await answer(place, first, "254711000001", CreditPartyName="600638 - STORE")
        assert (await look(place, payment))["receipt"] == "TKN4A1B2C3"
        # The payer's, and not to us.
        await answer(place, second, "254711000001", CreditPartyName="555555 - OTHER SHOP")
        assert (await look(place, other))["status"] == "pending"


async def test_a_paybills_line_that_is_called_a_tills_still_needs_the_reference(town: Town, daraja: Daraja) -> None:
    payment = await asked(town, reference="table 4")
    bare = row("TKN4A1B2C3", **BOUGHT)
    found = await run(town, daraja, bare)
    assert (found["recovered"], found["ambiguous"]) == (0, 1)
    assert (await look(town, payment))["status"] == "pending"


# -- B5, B6, B7 ---------------------------------------------------------------------------------------------------


async def test_money_from_before_a_payment_was_asked_for_is_not_its(town: Town, daraja: Daraja) -> None:
    payment = await asked(town, reference="table 4")
    await call_back(town, payment, code=1032)
    before = (datetime.now(UTC) - timedelta(minutes=115)).astimezone(EAT)
    for number, text in enumerate((f"{before:%Y-%m-%d %H:%M:%S}", f"{before:%Y-%m-%dT%H:%M:%S}Z")):
        found = await run(town, daraja, row(f"TKN4A1B2C{number}", reference="table 4", at=text))
        assert (found["not_found"], found["recovered"]) == (1, 0), text
    assert (await look(town, payment))["status"] == "failed"


def shown(at: datetime, zone: str) -> str:
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
async def test_line_of_a_time_outside_the_window_or_in_the_future_is_not_found(
    town: Town, daraja: Daraja, off: str, zone: str
) -> None:
    """The payment is as old as the money seems to be, so that nothing else contradicts."""
    at = datetime.now(UTC) + OUTSIDE[off]
    if zone == "Z" and off == "a minute before the window, and the clocks' difference":
        # Its other reading lies a further three hours back.
        assert OUTSIDE[off] < timedelta(0)
    payment, own = await asked(town, reference="table 4"), await asked(town, 700, key="own")
    if OUTSIDE[off] < timedelta(0):
        await made_ago(town, payment, seconds=-OUTSIDE[off].total_seconds() + 60)
    text = shown(at, zone)
    lines = [
        row("TKN4A1B2C3", reference="table 4", at=text),
        row("OWN0000001", 700, reference=own["reference"], at=text),
    ]
    found = await run(town, daraja, *lines)
    # What names its payment is settled whatever the clock said.
    assert (found["not_found"], found["ambiguous"], found["recovered"]) == (1, 0, 1)
    assert [(await look(town, one))["status"] for one in (payment, own)] == ["pending", "completed"]
    assert (await candidates(town, "TKN4A1B2C3"), daraja.of("transactionstatus")) == ([], [])


async def test_line_outside_one_window_is_judged_anew_in_a_run_whose_window_has_it(town: Town, daraja: Daraja) -> None:
    payment = await asked(town, reference="table 4")
    await made_ago(town, payment, hours=3)
    at = datetime.now(UTC) - timedelta(hours=3) + timedelta(minutes=1)
    line = row("TKN4A1B2C3", reference="table 4", at=shown(at, "none"))
    assert (await run(town, daraja, line))["not_found"] == 1
    daraja.answers["pullquery"] = [statement([line])] * 2
    wider = {"start": (datetime.now(UTC) - timedelta(hours=5)).isoformat()}
    assert (await town.api.call("POST", RUN, wider)).data["recovered"] == 1
    assert (await look(town, payment))["receipt"] == "TKN4A1B2C3"


async def test_window_that_leaves_one_reading_of_a_z_decides_a_line_that_had_two(town: Town, daraja: Daraja) -> None:
    payment = await asked(town, reference="table 4")
    await made_ago(town, payment, hours=1)
    # Written in East Africa Time: as UTC it is two hours ahead, and before that window has a day it is not.
    at = datetime.now(UTC) - timedelta(minutes=59)
    line = row("TKN4A1B2C3", reference="table 4", at=f"{at:%Y-%m-%dT%H:%M:%S}Z")
    daraja.answers["pullquery"] = [statement([line])] * 2
    wide = {"start": (datetime.now(UTC) - timedelta(hours=20)).isoformat()}
    assert (await town.api.call("POST", RUN, wide)).data["ambiguous"] == 1
    assert (await run(town, daraja, line))["recovered"] == 1
    assert (await look(town, payment))["receipt"] == "TKN4A1B2C3"


@pytest.mark.parametrize(("code", "ago"), [(1032, 0), (1037, 100), (2001, 100)])
async def test_a_later_purchase_of_the_same_payer_completes_no_failed_payment(
    town: Town, daraja: Daraja, code: int, ago: int
) -> None:
    async with till(town) as place:
        payment = await asked(place)
        await call_back(place, payment, code=code)
        await made_ago(place, payment, minutes=ago)
        found = await run(place, daraja, row("TKN4A1B2C3", **BOUGHT))
        assert (found["ambiguous"], found["recovered"]) == (1, 0)
        assert (await look(place, payment))["status"] == "failed"
        assert await candidates(place, "TKN4A1B2C3") == [payment["id"]]


# -- times that end in Z ------------------------------------------------------------------------------------------


HOURS_AGO = timedelta(hours=5)


def written(at: datetime, zone: str) -> str:
    """A time with a Z as a statement writes it that means East Africa Time, or UTC."""
    return f"{(at.astimezone(EAT) if zone == 'eat' else at):%Y-%m-%dT%H:%M:%S}Z"


async def paid_hours_ago(town: Town, receipt: str, amount: int, **known: Any) -> None:
    """A payment whose receipt a callback brought five hours ago; ``known`` is how long the callback took."""
    payment = await asked(town, amount, key=receipt)
    await call_back(town, payment, amount=amount, receipt=receipt)
    await made_ago(town, payment, hours=5)
    async with as_owner(town.gateway) as owner:
        # What is written here is proof of money, which Postgres lets nobody change.
        await owner.execute("SET session_replication_role = replica")
        await owner.execute(
            "UPDATE payment SET completed_at = created_at + $2::interval WHERE payment_id = $1",
            payment["id"],
            timedelta(**known or {"minutes": 1}),
        )


async def run_of_two_days(town: Town, daraja: Daraja, *lines: Any) -> Any:
    """A run in whose window both readings of a time are possible."""
    daraja.answers["pullquery"] = [statement(list(lines))] * 2
    window = {"start": (datetime.now(UTC) - timedelta(hours=47)).isoformat()}
    return (await town.api.call("POST", RUN, window)).data


async def lost_hours_ago(town: Town, amount: int = 502, **more: Any) -> Any:
    """A payment of five hours ago that nobody told of."""
    payment = await asked(town, amount, key=f"lost-{amount}", **{"reference": "table 4"} | more)
    await made_ago(town, payment, hours=5)
    return payment


@pytest.mark.parametrize("zone", ["eat", "utc"])
async def test_what_a_z_means_is_learnt_from_lines_of_known_payments(town: Town, daraja: Daraja, zone: str) -> None:
    """Before a known payment proves one, both readings have to agree."""
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    lost = await lost_hours_ago(town)
    line = row("LOST000001", 502, reference="table 4", at=written(at, zone))
    found = await run_of_two_days(town, daraja, line)
    assert (found["ambiguous"], found["recovered"]) == (1, 0)
    await paid_hours_ago(town, "KNOWN00001", 501)
    known = row("KNOWN00001", 501, reference="", at=written(at, zone))
    found = await run_of_two_days(town, daraja, known, line)
    assert (found["ambiguous"], found["already_known"], found["recovered"]) == (0, 1, 1)
    assert (await look(town, lost))["receipt"] == "LOST000001"
    assert await town.gateway.db.fetchval("SELECT zone FROM noted_line WHERE receipt = 'KNOWN00001'") == zone


@pytest.mark.parametrize("means", ["eat", "utc"])
async def test_money_that_only_the_disproven_reading_fits_is_not_found(town: Town, daraja: Daraja, means: str) -> None:
    await paid_hours_ago(town, "KNOWN00001", 501)
    lost = await lost_hours_ago(town)
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    other = "utc" if means == "eat" else "eat"
    lines = [
        row("KNOWN00001", 501, reference="", at=written(at, means)),
        # Three hours before or after the payment, read as it has to be.
        row("STRANGE001", 502, reference="table 4", at=written(at, other)),
    ]
    found = await run_of_two_days(town, daraja, *lines)
    assert (found["already_known"], found["recovered"]) == (1, 0)
    assert (await look(town, lost))["status"] == "pending"


async def test_what_a_z_means_is_proven_for_each_shortcode_by_itself(town: Town, daraja: Daraja) -> None:
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    await paid_hours_ago(town, "KNOWN00001", 501)
    await run_of_two_days(town, daraja, row("KNOWN00001", 501, reference="", at=written(at, "eat")))
    async with till(town) as place:
        lost = await lost_hours_ago(place)
        line = row("LOST000001", 502, at=written(at, "utc"), **BOUGHT)
        found = await run_of_two_days(place, daraja, line)
        assert (found["ambiguous"], found["recovered"]) == (1, 0)
        await paid_hours_ago(place, "KNOWN00002", 501)
        known = row("KNOWN00002", 501, at=written(at, "utc"), **BOUGHT)
        assert (await run_of_two_days(place, daraja, known, line))["recovered"] == 1
        assert (await look(place, lost))["receipt"] == "LOST000001"
    zones = await town.gateway.db.fetch("SELECT shortcode, zone FROM noted_line WHERE zone IS NOT NULL")
    assert {(one["shortcode"], one["zone"]) for one in zones} == {("174379", "eat"), ("5123456", "utc")}


async def test_proofs_that_contradict_each_other_prove_nothing(town: Town, daraja: Daraja) -> None:
    """Then both readings have to agree again."""
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    lost = await lost_hours_ago(town)
    lines: list[Any] = [row("LOST000001", 502, reference="table 4", at=written(at, "eat"))]
    for number, zone in enumerate(("eat", "utc")):
        await paid_hours_ago(town, f"KNOWN0000{number}", 600 + number)
        lines.append(row(f"KNOWN0000{number}", 600 + number, reference="", at=written(at, zone)))
    found = await run_of_two_days(town, daraja, *lines)
    assert (found["already_known"], found["ambiguous"], found["recovered"]) == (2, 1, 0)
    assert (await look(town, lost))["status"] == "pending"


async def test_a_receipt_that_was_known_late_proves_no_zone(town: Town, daraja: Daraja) -> None:
    """Three hours lie between the readings: the wrong one may fit a payment that was open for so long."""
    at = datetime.now(UTC) - HOURS_AGO + timedelta(minutes=1)
    await paid_hours_ago(town, "KNOWN00001", 501, minutes=185)
    await run_of_two_days(town, daraja, row("KNOWN00001", 501, reference="", at=written(at, "utc")))
    assert await town.gateway.db.fetchval("SELECT zone FROM noted_line") is None


# -- what M-Pesa answers about a line -----------------------------------------------------------------------------

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
async def test_answer_about_a_line_that_is_of_other_money_completes_nothing(
    town: Town, daraja: Daraja, why: str
) -> None:
    async with till(town) as place:
        payment = await asked(place)
        line = row("TKN4A1B2C3", phone=None, **BOUGHT)
        await run(place, daraja, line)
        (question,) = daraja.of("transactionstatus")
        said = {
            "Amount": "500.00",
            "CreditPartyName": "600638 - STORE",
            "FinalisedTime": f"{datetime.now(EAT):%Y%m%d%H%M%S}",
        }
        await answer(place, question, "254711000001", **said | OF_OTHER_MONEY[why])
        assert (await look(place, payment))["status"] == "pending"
        # It has been answered: a person decides.
        await run(place, daraja, line)
        assert len(daraja.of("transactionstatus")) == 1


# -- C1 -----------------------------------------------------------------------------------------------------------


async def test_a_merchant_does_not_assign_itself_money_of_another_merchant_of_the_shortcode(
    town: Town, daraja: Daraja
) -> None:
    async with shop(town.gateway, town.base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        other = Town(town.gateway, town.base, api, town.receiver)
        theirs = [
            await asked(other, 4321, key="own"),
            await asked(other, 4322, key="fits", phone="254722000001", reference="their 1"),
            await asked(other, 4323, key="hidden", phone="254722000001", reference="ours too"),
        ]
        mine = [
            await asked(town, amount, key=f"k{amount}", reference=reference)
            for amount, reference in ((4321, "mine"), (4322, "mine"), (4323, "ours too"))
        ]
        lines = [
            row("THEIRS0001", 4321, phone="722000001", reference=theirs[0]["reference"]),
            row("THEIRS0002", 4322, phone="722000001", reference="their 1"),
            row("WHOSE00003", 4323, phone=None, reference="ours too"),
        ]
        found = await rows_of(town, await run(town, daraja, *lines))
        for line, payment in zip(lines, mine, strict=True):
            path = f"/v1/payments/mpesa/statement-lines/{found[line['transactionId']]['id']}/assign"
            refused = await town.api.call("POST", path, {"payment_id": payment["id"]})
            assert (refused.status, refused.error["code"]) == (409, "CONFLICT"), line
            assert (await look(town, payment))["status"] == "pending"
        # The statement completed what it proves, whoever read it.
        assert [(await look(other, one))["status"] for one in theirs] == ["completed", "completed", "pending"]
        # An operator decides what a merchant cannot.
        line_id = found["WHOSE00003"]["id"]
        caller: Any = await _caller(town, mine[2]["merchant_id"])
        settling = town.gateway.services.get(LineMatching)
        assigned = await settling.assign(caller, line_id, mine[2]["id"], by_operator=Decided(reason="She called"))
        assert (assigned["finding"], (await look(town, mine[2]))["receipt"]) == ("recovered", "WHOSE00003")


async def _caller(town: Town, merchant_id: str) -> Any:
    class Caller:
        def __init__(self) -> None:
            self.merchant_id, self.env, self.actor = merchant_id, "sandbox", "operator:test"

    assert town.gateway is not None
    return Caller()


async def test_a_merchant_assigns_a_line_that_fits_two_of_its_payments_and_no_contradiction(
    town: Town, daraja: Daraja
) -> None:
    first, second = [await asked(town, key=key, reference="table 4") for key in ("a", "b")]
    lines = await rows_of(
        town,
        await run(
            town,
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
        refused = await town.api.call("POST", path, {"payment_id": first["id"]})
        assert refused.status == 409, receipt
    path = f"/v1/payments/mpesa/statement-lines/{lines['TKN4A1B2C3']['id']}/assign"
    assert (await town.api.call("POST", path, {"payment_id": second["id"]})).data["finding"] == "recovered"
    assert [(await look(town, one))["status"] for one in (first, second)] == ["pending", "completed"]


async def test_a_status_answer_about_a_line_of_another_account_completes_nothing(town: Town, daraja: Daraja) -> None:
    """The payer's own purchase at the paybill: M-Pesa's answer does not show that it was for another account."""
    payment = await asked(town, reference="table 4")
    assert (await run(town, daraja, row("WALKIN0001", reference="walk-in")))["not_found"] == 1
    started = (await town.api.call("POST", "/v1/payments/mpesa/check-status/WALKIN0001")).data
    (question,) = daraja.of("transactionstatus")
    now = f"{datetime.now(EAT):%Y%m%d%H%M%S}"
    says = {"Amount": "500", "CreditPartyName": "174379 - SHOP", "FinalisedTime": now}
    await answer(town, question, "254711000001", **says)
    found = (await town.api.call("GET", f"/v1/payments/mpesa/checks/{started['check_id']}")).data
    assert (found["finding"], (await look(town, payment))["status"]) == ("not_ours", "pending")


# -- E3 -----------------------------------------------------------------------------------------------------------

FAILS: dict[str, Callable[[], Any]] = {
    "500": lambda: fault("500.003.1001", "Internal Server Error"),
    "spike arrest": lambda: fault("500.003.02", "Spike Arrest"),
    "refused": lambda: fault("400.003.02", "Bad Request", 400),
    "a page of HTML": lambda: (200, b"<html>"),
}


@pytest.mark.parametrize("how", FAILS)
async def test_what_is_certain_on_a_page_is_settled_though_a_later_page_fails(
    town: Town, daraja: Daraja, how: str
) -> None:
    own, known = await asked(town, 501, key="own"), await asked(town, 502, key="known")
    await call_back(town, known, amount=502, receipt="KNOWN00001")
    by_rule = await asked(town, 503, key="rule", reference="table 4")
    wrong = await asked(town, 504, key="wrong")
    rows = [
        row("OWN0000001", 501, reference=own["reference"]),
        row("KNOWN00001", 502),
        row("RULE000001", 503, reference="table 4"),
        row("WRONG00001", 5, reference=wrong["reference"]),
    ]
    # A page with fewer rows would be the last.
    full = [*rows, *(row(f"FILL{number:06}", 1000 + number) for number in range(96))]
    daraja.say("pullquery", page(*full), *[FAILS[how]()] * 2)
    found = (await town.api.call("POST", RUN, {})).data
    assert (found["status"], found["already_known"], found["recovered"], found["mismatched"]) == ("failed", 1, 1, 1)
    assert (await look(town, own))["receipt"] == "OWN0000001"
    assert (await look(town, wrong))["mismatch"]["of"] == "amount"
    # The rule waits: other money on the next page may fit as well.
    assert (await look(town, by_rule))["status"] == "pending"
    daraja.answers["pullquery"] = []
    daraja.say("pullquery", page(*full), page(row("RULE000002", 503, reference="table 4")))
    found = (await town.api.call("POST", RUN, {})).data
    assert (found["status"], found["ambiguous"]) == ("completed", 2)
    assert (await look(town, by_rule))["status"] == "pending"
