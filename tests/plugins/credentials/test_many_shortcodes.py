"""Protects several shortcodes of one merchant: one default, each with its own credentials, payments and retirement."""

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import SetClock
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.testing.serving import INITIATED, Answer, Api
from mpesa_gateway_credentials.service import CredentialStore
from tests.plugins.credentials.two_env_site import PHONE, PROVIDERS, TwoEnvSite, put, two_env_site

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SHORTCODES = "/v1/merchant/shortcodes"
ENVS: tuple[Env, ...] = ("sandbox", "live")


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW)


@pytest.fixture
async def site(values: dict[str, Any], clock: SetClock) -> AsyncGenerator[TwoEnvSite]:
    """A gateway between a sandbox and a live Daraja, with a clock set by hand."""
    values.setdefault("credentials", {})["max_shortcodes"] = 5
    async with two_env_site(values, clock) as found:
        yield found


def body(env: Env, shortcode: str, **changes: Any) -> dict[str, Any]:
    fields = INITIATED["mpesa"] | {"env": env, "shortcode": shortcode} | changes
    return {name: value for name, value in fields.items() if value is not None}


async def add(api: Api, env: Env, shortcode: str, **changes: Any) -> Answer:
    return await api.call("POST", SHORTCODES, body(env, shortcode, **changes))


async def shown(api: Api) -> dict[str, dict[str, Any]]:
    """Return the listed shortcodes by number."""
    return {each["shortcode"]: each for each in (await api.call("GET", SHORTCODES)).data}


async def defaults(api: Api) -> list[str]:
    return [number for number, each in (await shown(api)).items() if each["is_default"]]


# -- stored -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ENVS)
async def test_add_first_is_the_default_and_later_ones_are_not(site: TwoEnvSite, env: Env) -> None:
    api = (await site.account()).api(env)
    first = await add(api, env, "600001", name="Head office")
    assert (first.status, first.data["is_default"], first.data["kind"]) == (201, True, "paybill")
    second = await add(api, env, "600002", kind="till", till_number="5123456", passkey="the-passkey-of-the-till")
    assert (second.status, second.data["is_default"], second.data["shortcode"]) == (201, False, "5123456")
    summary = second.data["config_summary"]
    assert (summary["shortcode"], summary["till_number"], summary["passkey"]) == ("600002", "5123456", "****till")
    found = (await api.call("GET", f"{SHORTCODES}/600001")).data
    assert (found["name"], found["env"], found["open"]) == ("Head office", env, {"payments": 0, "refunds": 0})
    assert list(await shown(api)) == ["5123456", "600001"]
    # The route of the specification shows the default one, in its own shape.
    (provider,) = (await api.call("GET", PROVIDERS)).data
    assert provider == {"provider": "mpesa", "config_summary": first.data["config_summary"]}


async def test_add_stored_number_is_a_conflict_and_changes_nothing(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    before = await shown(api)
    refused = await add(api, "live", "600001", passkey="another-passkey-of-the-shop")
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert "PUT /v1/merchant/shortcodes/600001" in refused.error["message"]
    assert re.search(r"/ops/credentials/mer_\w+/shortcodes/600001\?env=live", refused.error["message"])
    assert await shown(api) == before


async def test_add_with_is_default_moves_the_default_and_retires_nothing(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    assert (await add(api, "live", "600002", is_default=True)).body["meta"].get("retired") is None
    assert await defaults(api) == ["600002"]
    assert {each["retired_at"] for each in (await shown(api)).values()} == {None}


async def test_add_over_the_limit_is_refused_until_one_is_retired(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    for digit in range(5):
        assert (await add(api, "live", f"60000{digit}")).status == 201
    refused = await add(api, "live", "600009")
    assert (refused.status, "credentials.max_shortcodes" in refused.error["message"]) == (409, True)
    assert (await api.call("DELETE", f"{SHORTCODES}/600004")).status == 200
    assert (await add(api, "live", "600009")).status == 201


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"env": "sandbox"}, "env"),
        ({"kind": "till"}, "till_number"),
        ({"kind": "paybill", "till_number": "5123456"}, "till_number"),
        ({"kind": "bank"}, "kind"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"initiator": None}, "initiator"),
        ({"result_url": "https://elsewhere.example/result"}, "result_url"),
        ({"shortcode": "6000"}, "shortcode"),
        ({"is_default": "yes"}, "is_default"),
        ({"colour": "green"}, "colour"),
    ],
)
async def test_add_and_put_with_a_bad_field_name_the_field(
    site: TwoEnvSite, changes: dict[str, Any], field: str
) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    before = await shown(api)
    wrong = body("live", "600002") | changes
    if changes.get("initiator", "") is None:
        del wrong["initiator"]
    for method, path in (("POST", SHORTCODES), ("PUT", f"{SHORTCODES}/600001")):
        if method == "PUT" and field != "shortcode":
            wrong["shortcode"] = "600001"
        refused = await api.call(method, path, wrong)
        assert (refused.status, refused.error["code"], refused.error["field"]) == (422, "VALIDATION_ERROR", field)
    assert await shown(api) == before


async def test_put_replaces_the_whole_configuration_of_one_shortcode(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001", name="Head office")
    await add(api, "live", "600002", name="Westlands", account_reference="WEST")
    before = await shown(api)
    new = body("live", "600002", passkey="a-newer-passkey-of-the-shop", nominated_number=None)
    stored = await api.call("PUT", f"{SHORTCODES}/600002", new)
    assert (stored.status, stored.data["name"], stored.data["is_default"]) == (200, None, False)
    assert stored.data["config_summary"]["passkey"] == "****shop"
    assert {"nominated_number", "account_reference"} & stored.data["config_summary"].keys() == set()
    assert {each["name"] for each in stored.body["meta"]["missing"]} >= {"nominated_number"}
    assert (await shown(api))["600001"] == before["600001"]
    assert (await api.pay(PHONE, key="a", shortcode="600002")).status == 201
    (pushed,) = site.live.requests_of("stkpush")
    assert pushed["BusinessShortCode"] == "600002"


async def test_put_keeps_the_number_and_needs_an_active_shortcode(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    await add(api, "live", "600002")
    moved = await api.call("PUT", f"{SHORTCODES}/600002", body("live", "600003"))
    assert (moved.status, moved.error["field"]) == (422, "shortcode")
    # The path has the number that payers pay, which is the till.
    till = await api.call("PUT", f"{SHORTCODES}/600002", body("live", "600002", till_number="5123456"))
    assert (till.status, till.error["field"]) == (422, "till_number")
    await api.call("DELETE", f"{SHORTCODES}/600002")
    for number in ("600002", "600009", "abc", "1", "600001%00"):
        for method, sent in (("PUT", body("live", "600002")),):
            answer = await api.call(method, f"{SHORTCODES}/{number}", sent)
            assert answer.status in {400, 404} if number != "600009" else answer.status == 422, number
    assert list(await shown(api)) == ["600002", "600001"]


async def test_put_providers_keeps_a_name_and_other_shortcodes(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001", name="Head office")
    await add(api, "live", "600002", name="Westlands")
    stored = await put(api, "live", "600001", passkey="a-newer-passkey-of-the-shop")
    assert (stored.status, stored.body["meta"].get("retired")) == (200, None)
    assert set(stored.data) == {"provider", "config_summary"}
    found = await shown(api)
    assert {number: each["name"] for number, each in found.items()} == {"600001": "Head office", "600002": "Westlands"}
    # Another number replaces the default one, also if it was active before.
    answer = await put(api, "live", "600002")
    assert answer.body["meta"]["retired"] == {"shortcode": "600001", "open": {"payments": 0, "refunds": 0}}
    assert await defaults(api) == ["600002"]
    assert (await shown(api))["600002"]["name"] == "Westlands"


# -- the default ------------------------------------------------------------------------------------------------------


async def test_default_moves_and_serves_payments_that_name_no_shortcode(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    await add(api, "live", "600002")
    assert (await api.pay(PHONE, key="a")).data["shortcode"] == "600001"
    for _ in range(2):
        moved = await api.call("POST", f"{SHORTCODES}/600002/default")
        assert (moved.status, moved.data["is_default"]) == (200, True)
    assert await defaults(api) == ["600002"]
    assert (await api.pay(PHONE, key="b")).data["shortcode"] == "600002"
    for number in ("600009", "x"):
        assert (await api.call("POST", f"{SHORTCODES}/{number}/default")).status == 404
    entries = (await api.call("GET", "/v1/audit/logs")).data
    (entry,) = [each for each in entries if each["action"] == "credentials.default_changed"]
    assert {"env": "live", "shortcode": "600002", "former": "600001"}.items() <= entry["detail"].items()


async def test_default_concurrent_changes_leave_exactly_one(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    numbers = [f"60000{digit}" for digit in range(4)]
    for number in numbers:
        await add(api, "live", number)
    answers = await asyncio.gather(
        *(api.call("POST", f"{SHORTCODES}/{number}/default") for number in numbers * 3),
        *(api.call("PUT", f"{SHORTCODES}/{number}", body("live", number, is_default=True)) for number in numbers),
        add(api, "live", "600009", is_default=True),
    )
    assert {answer.status for answer in answers} == {200, 201}
    assert len(await defaults(api)) == 1
    assert {each["retired_at"] for each in (await shown(api)).values()} == {None}
    assert (await api.pay(PHONE, key="a")).status == 201


async def test_default_and_put_providers_concurrent_leave_one_default(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    for number in ("600001", "600002"):
        await add(api, "live", number)
    answers = await asyncio.gather(
        *(put(api, "live", f"60001{digit}") for digit in range(3)),
        *(api.call("POST", f"{SHORTCODES}/{number}/default") for number in ("600001", "600002") * 3),
        api.call("DELETE", f"{SHORTCODES}/600002"),
    )
    assert {answer.status for answer in answers} <= {200, 404, 409}
    active = [each for each in (await shown(api)).values() if each["retired_at"] is None]
    assert sum(each["is_default"] for each in active) == 1


# -- retired ----------------------------------------------------------------------------------------------------------


async def test_retire_counts_open_work_and_can_be_repeated(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    await add(api, "live", "600002")
    payment = (await api.pay(PHONE, key="a", shortcode="600002")).data
    for _ in range(2):
        retired = await api.call("DELETE", f"{SHORTCODES}/600002")
        assert retired.data == {"deleted": True, "shortcode": "600002", "open": {"payments": 1, "refunds": 0}}
    found = (await api.call("GET", f"{SHORTCODES}/600002")).data
    assert (found["open"]["payments"], found["retired_at"] is None) == (1, False)
    refused = await api.pay(PHONE, key="b", shortcode="600002")
    assert (refused.status, refused.error["code"], refused.error["field"]) == (
        422,
        "PROVIDER_NOT_CONFIGURED",
        "shortcode",
    )
    # Its payment is still queried, with its own credentials.
    assert (await api.call("POST", f"/v1/payments/{payment['id']}/query")).status == 200
    assert [each["BusinessShortCode"] for each in site.live.requests_of("stkquery")] == ["600002"]
    assert (await add(api, "live", "600002")).status == 201
    assert (await api.pay(PHONE, key="c", shortcode="600002")).status == 201
    actions = [each["action"] for each in (await api.call("GET", "/v1/audit/logs")).data]
    assert actions.count("credentials.removed") == 1


@pytest.mark.parametrize("path", [f"{SHORTCODES}/600001", f"{PROVIDERS}/mpesa"])
async def test_retire_default_is_refused_while_others_are_active(site: TwoEnvSite, path: str) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    await add(api, "live", "600002")
    refused = await api.call("DELETE", path)
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert "POST /v1/merchant/shortcodes/600002/default" in refused.error["message"]
    assert re.search(r"/ops/credentials/mer_\w+\?env=live", refused.error["message"])
    assert await defaults(api) == ["600001"]
    await api.call("DELETE", f"{SHORTCODES}/600002")
    assert (await api.call("DELETE", path)).status == 200
    assert await defaults(api) == []
    assert (await api.pay(PHONE, key="a")).error["code"] == "PROVIDER_NOT_CONFIGURED"


async def test_retire_during_a_push_keeps_the_payment_and_its_secrets(site: TwoEnvSite, clock: SetClock) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    await add(api, "live", "600002")
    go = site.live.hold("stkpush")
    pushing = asyncio.create_task(api.pay(PHONE, key="a", shortcode="600002"))
    await site.live.wait_for_requests("stkpush")
    retired = await api.call("DELETE", f"{SHORTCODES}/600002")
    assert retired.data["open"] == {"payments": 1, "refunds": 0}
    go.set()
    made = await pushing
    assert (made.status, made.data["shortcode"]) == (201, "600002")
    clock.advance(timedelta(hours=49))
    assert await site.gateway.services.get(CredentialStore).wipe_retired() == 0
    assert (await api.call("POST", f"/v1/payments/{made.data['id']}/query")).status == 200


async def test_wiped_shortcode_is_not_found_and_can_be_added_again(site: TwoEnvSite, clock: SetClock) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001")
    await add(api, "live", "600002")
    await api.call("DELETE", f"{SHORTCODES}/600002")
    clock.advance(timedelta(hours=49))
    assert await site.gateway.services.get(CredentialStore).wipe_retired() == 1
    assert list(await shown(api)) == ["600001"]
    for method in ("GET", "DELETE"):
        assert (await api.call(method, f"{SHORTCODES}/600002")).status == 404
    assert (await add(api, "live", "600002")).status == 201


# -- separation -------------------------------------------------------------------------------------------------------


async def test_shortcodes_of_another_env_or_merchant_are_not_found(site: TwoEnvSite) -> None:
    shop, other = await site.account(), await site.account()
    await add(shop.live, "live", "600001")
    await add(shop.live, "live", "600002")
    before = await shown(shop.live)
    for api in (shop.sandbox, other.live, other.sandbox):
        assert await shown(api) == {}
        for method, path in (
            ("GET", "600002"),
            ("DELETE", "600002"),
            ("POST", "600002/default"),
            ("POST", "600002/verify"),
        ):
            assert (await api.call(method, f"{SHORTCODES}/{path}")).status == 404
    assert (await other.live.call("PUT", f"{SHORTCODES}/600002", body("live", "600002"))).status == 404
    wrong_env = await shop.sandbox.call("PUT", f"{SHORTCODES}/600002", body("live", "600002"))
    assert (wrong_env.status, wrong_env.error["field"]) == (422, "env")
    assert await shown(shop.live) == before


async def test_secrets_are_bound_to_their_number(site: TwoEnvSite) -> None:
    """A sealed secret copied to another shortcode does not open."""
    shop = await site.account()
    await add(shop.live, "live", "600001")
    await add(shop.live, "live", "600002")
    await site.gateway.db.execute(
        "UPDATE shortcode SET passkey = (SELECT passkey FROM shortcode JOIN receiver USING (receiver_id) "
        "WHERE number = '600001') WHERE NOT is_default"
    )
    refused = await shop.live.pay(PHONE, key="a", shortcode="600002")
    assert refused.status == 500
    assert site.live.requests_of("stkpush") == []
    assert (await shop.live.pay(PHONE, key="b", shortcode="600001")).status == 201


async def test_verify_uses_the_keys_of_the_named_shortcode(site: TwoEnvSite) -> None:
    api = (await site.account()).live
    await add(api, "live", "600001", consumer_key="consumer-key-one")
    await add(api, "live", "600002", consumer_key="consumer-key-two")
    site.live.add_answers("oauth", (400, {"errorCode": "400.008.01", "errorMessage": "Invalid Credentials"}))
    assert (await api.call("POST", f"{SHORTCODES}/600002/verify")).data["ok"] is False
    assert (await api.call("POST", f"{SHORTCODES}/600001/verify")).data["ok"] is True
    found = await shown(api)
    assert (found["600001"]["verified_at"] is None, found["600002"]["verified_at"]) == (False, None)
