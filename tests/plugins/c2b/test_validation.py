"""Protects validation: a wrong account number is refused before money moves, and an answer always comes in time."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.testing.serving import SANDBOX, eventually, gateway_values
from mpesa_gateway_c2b import account_tables
from mpesa_gateway_c2b.validation import TEXTS, Rules, decide
from mpesa_gateway_c2b.wire import read_body
from tests.daraja import c2b_body
from tests.identifiers import expression
from tests.own_postgres import database_of, running_postgres
from tests.plugins.c2b.c2b_site import C2bSite, c2b_site, path_of
from tests.plugins.payments.test_lists_at_size import rows_read, steps
from tests.stalling import stalling

ACCEPTED = {"ResultCode": "0", "ResultDesc": "Accepted"}
TILL = {"provider": "mpesa", "mpesa": SANDBOX["mpesa"] | {"till_number": "5123456", "shortcode": "600111"}}


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found


async def rules(site: C2bSite, **account: Any) -> str:
    """Register with rules and one account number; return the path of validation requests."""
    found = (await site.register(validation="rules")).data["addresses"]["validation"]
    answer = await site.api.call("PUT", "/v1/account-numbers/House%207", account)
    assert answer.status == 200, answer.body
    path: str = path_of(found)
    return path


async def ask(site: C2bSite, path: str, **body: Any) -> str:
    """Return the code of the answer."""
    answer = await site.api.call("POST", path, c2b_body(OrgAccountBalance="", **body))
    assert answer.status == 200, answer.body
    if answer.body["ResultCode"] == "0":
        assert answer.body == ACCEPTED
    return str(answer.body["ResultCode"])


async def test_validation_accepts_everything_by_default_and_records_nothing(site: C2bSite) -> None:
    _, path = await site.addresses()
    assert await ask(site, path, account="anything") == "0"
    assert await site.transactions() == []
    assert await site.gateway.db.fetchval("SELECT count(*) FROM callback") == 0


async def test_wrong_account_number_is_refused_before_money_moves(site: C2bSite) -> None:
    path = await rules(site)
    assert await ask(site, path, account="House 8") == "C2B00012"
    assert await ask(site, path, account="") == "C2B00012"
    for typed in ("House 7", "HOUSE 7", "  house   7 "):
        assert await ask(site, path, account=typed) == "0"
    await site.api.call("PUT", "/v1/account-numbers/House%207", {"active": False})
    assert await ask(site, path, account="House 7") == "C2B00012"
    assert await site.transactions() == []


async def test_amount_outside_its_bounds_is_refused(site: C2bSite) -> None:
    path = await rules(site, min=100, max="500.00", expected=10_000)
    asked = [await ask(site, path, account="HOUSE 7", amount=amount) for amount in ("99.00", "100", "500.00", "501")]
    assert asked == ["C2B00013", "0", "0", "C2B00013"]


async def test_reference_of_a_payment_is_accepted_for_its_amount(site: C2bSite) -> None:
    """Safaricom may ask about the money of our own pushes: a refusal would break them."""
    path = await rules(site)
    own = (await site.api.pay("254708374149", key="k-1")).data
    named = (await site.api.pay("254708374149", key="k-2", reference="Order 9")).data
    for payment in (own, named):
        assert await ask(site, path, account=payment["reference"]) == "0"
        assert await ask(site, path, account=payment["reference"], amount="9.00") == "C2B00013"


COPY = f"""
INSERT INTO payment SELECT (jsonb_populate_record(payment, jsonb_build_object('payment_id',
    {expression("pay", "now()", "n")}, 'amount', 300, 'idempotency_key', 'copy-' || n, 'merchant_request_id', 'm-' || n,
    'checkout_request_id', 'ws_CO_' || lpad(n::text, 20, '0')))).*
FROM payment, generate_series(1, $1) AS n
"""  # noqa: S608 - ids that the test chose


@pytest.mark.as_owner
@pytest.mark.parametrize(("on_doubt", "older"), [("accept", "0"), ("refuse", "C2B00016")])
async def test_reference_of_many_payments_is_answered_by_a_bounded_number_of_them(
    values: dict[str, Any], on_doubt: str, older: str
) -> None:
    values["c2b"] = {"on_doubt": on_doubt}
    async with c2b_site(values) as site:
        path, db = await rules(site), site.gateway.db
        assert (await site.api.pay("254708374149", key="k-1", reference="DUKA")).status == 201
        await db.execute(COPY, 5_000)
        await db.execute("VACUUM (ANALYZE) payment")
        assert await ask(site, path, account="DUKA", amount="300.00") == "0"
        assert await ask(site, path, account="DUKA") == older
        since = site.gateway.clock.now() - timedelta(hours=48)
        receiver_id = await db.fetchval("SELECT receiver_id FROM c2b_address")
        explain = "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + account_tables.FOR_VALIDATION
        (row,) = await db.fetch_planned(explain, receiver_id, "DUKA", "DUKA", since)
        assert max(map(rows_read, steps(json.loads(row[0])[0]["Plan"]))) <= 1000


async def test_till_has_no_account_numbers_to_refuse(site: C2bSite) -> None:
    assert (await site.api.call("PUT", "/v1/merchant/providers", TILL)).status == 200
    found = (await site.register(shortcode="5123456", validation="rules")).data["addresses"]["validation"]
    for number in ("5123456", "600111"):
        assert await ask(site, path_of(found), account="", shortcode=number) == "0"


async def test_another_shortcode_is_refused(site: C2bSite) -> None:
    path = await rules(site)
    assert await ask(site, path, account="HOUSE 7", shortcode="600001") == "C2B00015"


@pytest.mark.parametrize("path", ["/v1/cb/c2b-validation/x", f"/v1/cb/c2b-validation/{'0' * 32}"])
async def test_unknown_address_is_not_found(site: C2bSite, path: str) -> None:
    assert (await site.api.call("POST", path, c2b_body())).status == 404


async def test_large_body_is_refused(site: C2bSite) -> None:
    _, path = await site.addresses()
    assert (await site.api.call("POST", path, raw=b"[" + b" " * 100_000)).status == 413


@pytest.mark.parametrize(("on_doubt", "code"), [("accept", "0"), ("refuse", "C2B00016")])
async def test_unreadable_request_is_answered_as_in_doubt(values: dict[str, Any], on_doubt: str, code: str) -> None:
    values["c2b"] = {"on_doubt": on_doubt}
    async with c2b_site(values) as site:
        path = await rules(site)
        for raw in (b"", b"[]", b"{", b'{"TransID": 1}'):
            answer = await site.api.call("POST", path, raw=raw)
            assert (answer.status, answer.body["ResultCode"]) == (200, code)


@pytest.mark.parametrize(
    ("on_doubt", "mode", "code"),
    [("accept", "rules", "0"), ("refuse", "rules", "C2B00016"), ("refuse", "accept", "0")],
)
async def test_slow_postgres_is_answered_in_time(
    values: dict[str, Any], database_url: str, on_doubt: str, mode: str, code: str
) -> None:
    async with stalling(database_url) as slow:
        values["database"] |= {"url": slow.url}
        values["c2b"] = {"on_doubt": on_doubt, "validation_timeout": 0.5}
        async with c2b_site(values) as site:
            path = await rules(site)
            if mode == "accept":
                await site.register()
            slow.stall()
            began = time.monotonic()
            codes = await asyncio.gather(*(ask(site, path, account=f"House {n}") for n in range(8)))
            took = time.monotonic() - began
            slow.resume()
            assert set(codes) == {code}
            assert took < 3


async def test_more_requests_than_look_ups_are_answered_at_once(values: dict[str, Any], database_url: str) -> None:
    async with stalling(database_url) as slow:
        values["database"] |= {"url": slow.url}
        values["c2b"] = {"on_doubt": "refuse", "validation_timeout": 2.0, "max_validations": 1}
        async with c2b_site(values) as site:
            path = await rules(site)
            slow.stall()
            first = asyncio.create_task(ask(site, path, account="House 8"))
            await asyncio.sleep(0)
            began = time.monotonic()
            codes = await asyncio.gather(*(ask(site, path, account="House 8") for _ in range(5)))
            assert time.monotonic() - began < 2.5
            slow.resume()
            assert {*codes, await first} <= {"C2B00016", "C2B00012"}


async def test_questions_about_one_shortcode_leave_half_of_the_look_ups_to_others(
    values: dict[str, Any], database_url: str
) -> None:
    async with stalling(database_url) as slow:
        values["database"] |= {"url": slow.url}
        values["c2b"] = {"on_doubt": "refuse", "validation_timeout": 2.5, "max_validations": 4}
        async with c2b_site(values) as site:
            path = await rules(site)
            other = {"provider": "mpesa", "mpesa": SANDBOX["mpesa"] | {"shortcode": "600111"}}
            assert (await site.api.call("PUT", "/v1/merchant/providers", other)).status == 200
            made = await site.register(shortcode="600111", validation="rules")
            elsewhere = path_of(made.data["addresses"]["validation"])
            slow.stall()
            asked = [asyncio.create_task(ask(site, path, account="House 8")) for _ in range(8)]
            waiting = set(asked)
            while len(waiting) > 2:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                assert {task.result() for task in done} == {"C2B00016"}
            question = asyncio.create_task(ask(site, elsewhere, account="House 8", shortcode="600111"))
            assert await asyncio.wait({question}, timeout=0.3) == (set(), {question})
            slow.resume()
            assert await question == "C2B00012"
            assert sorted(await asyncio.gather(*asked)) == ["C2B00012"] * 2 + ["C2B00016"] * 6


async def stored(site: C2bSite, path: str) -> bool:
    return (await site.confirm(path, account="House 7")).status == 200


async def test_postgres_away_answers_validation_and_refuses_confirmations(valkey_url: str) -> None:
    with running_postgres() as server, database_of(server) as url:
        values = gateway_values(url, valkey_url) | {"c2b": {"on_doubt": "refuse"}, "worker": {"in_process": False}}
        async with c2b_site(values) as site:
            path = await rules(site)
            confirmation = path.replace("c2b-validation", "c2b")
            assert await ask(site, path, account="House 7") == "0"
            server.stop()
            began = time.monotonic()
            assert await ask(site, path, account="House 7") == "C2B00016"
            assert time.monotonic() - began < 3
            away = await site.confirm(confirmation, account="House 7")
            assert (away.status, "Retry-After" in away.headers) == (503, True)
            server.start()
            await eventually(lambda: stored(site, confirmation))


def test_texts_fit_into_safaricoms_answer() -> None:
    assert all(len(text) <= 90 for text in TEXTS.values())
    assert set(TEXTS) < {f"C2B000{number}" for number in range(11, 17)}


@pytest.mark.parametrize(
    ("rule", "amount", "refusal"),
    [
        (Rules("accept", is_till=False, is_known=False), "5", None),
        (Rules("rules", is_till=False, is_known=False), "5", "C2B00012"),
        (Rules("rules", is_till=True, is_known=False), "5", None),
        (Rules("rules", is_till=False, is_known=True), "5", None),
        (Rules("rules", is_till=False, is_known=True, least=501), "5", "C2B00013"),
        (Rules("rules", is_till=False, is_known=True, least=500, most=500), "5", None),
        (Rules("rules", is_till=False, is_known=True, most=499), "5", "C2B00013"),
        (Rules("rules", is_till=False, is_known=True, most=499, requested=(5,)), "5", None),
        (Rules("rules", is_till=False, is_known=False, requested=(6,)), "5", "C2B00013"),
        (Rules("rules", is_till=False, is_known=False, requested=(5,)), "5.50", "C2B00013"),
    ],
)
def test_decision_by_rules(rule: Rules, amount: str, refusal: str | None) -> None:
    assert decide(read_body(json.dumps(c2b_body(amount=amount)).encode()), rule) == refusal
