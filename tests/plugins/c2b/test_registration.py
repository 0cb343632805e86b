"""Protects the registration of addresses: one permanent address per receiver, and no answer misread."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.daraja.addresses import find_filtered_words
from mpesa_gateway.testing.serving import shop
from mpesa_gateway_c2b.addresses import C2bAddresses
from tests.daraja import DarajaAnswer, c2b_body, fault
from tests.plugins.c2b.c2b_site import C2bSite, c2b_site, path_of
from tests.plugins.credentials.two_env_site import Account, TwoEnvSite, put, two_env_site

PATH = "/v1/merchant/shortcodes/174379/c2b"
LIVE = "/v1/merchant/shortcodes/600001/c2b"
NO_PRODUCT = fault("401.003.01", "Error Occurred - Invalid API call as no apiproduct match found", 401)
REGISTERED_BEFORE = fault("500.003.1001", "Urls are already registered.")
NOT_YOURS = fault("400.003.02", "Bad Request - Invalid ShortCode", 400)
LATE = fault("504.003.01", "Gateway Timeout", 504)
KEPT = "SELECT merchant_id, state, response_type, validation, answered_at, answer_code FROM c2b_address"
HELD = fault("500.003.1001", "Duplicate notification info, SP ID 123456")


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found


@pytest.fixture
async def two_envs(values: dict[str, Any]) -> AsyncGenerator[TwoEnvSite]:
    async with two_env_site(values) as found:
        yield found


@pytest.fixture
async def listed(values: dict[str, Any]) -> AsyncGenerator[TwoEnvSite]:
    """This machine is a listed source of live callbacks."""
    values["callbacks"] = {"allowlist": ["127.0.0.1"]}
    async with two_env_site(values) as found:
        yield found


async def test_registration_accepted_sends_addresses_and_is_shown(site: C2bSite) -> None:
    answer = await site.register(validation="rules", response_type="Cancelled")
    data = answer.data
    (sent,) = site.daraja.requests_of("c2bregister2")
    assert sent == {
        "ShortCode": "174379",
        "ResponseType": "Cancelled",
        "ConfirmationURL": data["addresses"]["confirmation"],
        "ValidationURL": data["addresses"]["validation"],
    }
    assert data["addresses"]["confirmation"].startswith(f"{site.base}/v1/cb/c2b/")
    assert data["addresses"]["validation"].startswith(f"{site.base}/v1/cb/c2b-validation/")
    shown = (await site.api.call("GET", PATH)).data
    assert (shown["state"], shown["version"], shown["validation"]) == ("registered", "v2", "rules")
    assert "addresses" not in shown
    assert shown["last_confirmation_at"] is None


@pytest.mark.parametrize("code", ["0", "00000000", 0])
async def test_registration_any_zero_code_is_registered(site: C2bSite, code: Any) -> None:
    site.daraja.add_answers("c2bregister2", (200, {"ResponseCode": code, "ResponseDescription": "success"}))
    assert (await site.register()).data["state"] == "registered"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (REGISTERED_BEFORE, "already_registered"),
        (
            (200, {"ResponseDescription": "Validation and Confirmation URLs are already registered"}),
            "already_registered",
        ),
        ((500, {"errorMessage": "Validation and Confirmation URLs are already registered"}), "already_registered"),
        (HELD, "refused"),
        (fault("400.002.02", "Bad Request - Invalid ShortCode", 400), "refused"),
    ],
)
async def test_registration_answer_is_stored_and_explained(site: C2bSite, answer: DarajaAnswer, state: str) -> None:
    site.daraja.add_answers("c2bregister2", answer)
    data = (await site.register()).data
    assert (data["state"], data["registered_at"]) == (state, None)
    assert (data["addresses"] is None) == (state == "refused")
    assert len(data["meaning"]) > 40
    assert (await site.api.call("GET", PATH)).data["state"] == state
    assert site.daraja.requests_of("c2bregister1") == []


async def test_registration_already_registered_is_proven_by_a_confirmation(site: C2bSite) -> None:
    site.daraja.add_answers("c2bregister2", REGISTERED_BEFORE)
    path, _ = await site.addresses()
    assert "perhaps of another system" in (await site.api.call("GET", PATH)).data["meaning"]
    assert (await site.confirm(path)).status == 200
    shown = (await site.api.call("GET", PATH)).data
    assert shown["last_confirmation_at"] is not None
    assert "leads here" in shown["meaning"]


async def test_registration_wrong_version_uses_the_other_and_remembers_it(site: C2bSite) -> None:
    # The token is dropped once and the call repeated before the other version is tried.
    site.daraja.add_answers("c2bregister2", NO_PRODUCT, NO_PRODUCT)
    assert (await site.register()).data["version"] == "v1"
    assert [len(site.daraja.requests_of(f"c2bregister{number}")) for number in (2, 1)] == [2, 1]
    assert (await site.register()).data["version"] == "v1"
    assert [len(site.daraja.requests_of(f"c2bregister{number}")) for number in (2, 1)] == [2, 2]


async def test_registration_token_older_than_the_product_is_renewed(site: C2bSite) -> None:
    site.daraja.add_answers("c2bregister2", NO_PRODUCT)
    assert (await site.register()).data["version"] == "v2"
    assert len(site.daraja.requests_of("oauth")) == 2


async def test_registration_without_the_product_is_refused(site: C2bSite) -> None:
    site.daraja.add_answers("c2bregister2", NO_PRODUCT, NO_PRODUCT)
    site.daraja.add_answers("c2bregister1", NO_PRODUCT, NO_PRODUCT)
    data = (await site.register()).data
    assert (data["state"], data["version"]) == ("refused", None)
    assert "add M-PESA C2B to the app" in data["answer_text"]


@pytest.mark.parametrize(
    "answer", [(500, b"<html>"), fault("500.003.1001", "Internal Server Error"), (503, {}), (200, {"hello": "you"})]
)
async def test_registration_without_an_answer_is_unknown_and_tries_no_other_version(
    site: C2bSite, answer: DarajaAnswer
) -> None:
    site.daraja.add_answers("c2bregister2", answer)
    refused = await site.register()
    assert (refused.status, refused.error["code"]) == (503, "PROVIDER_UNAVAILABLE")
    assert site.daraja.requests_of("c2bregister1") == []
    assert (await site.api.call("GET", PATH)).data["state"] == "unknown"
    assert (await site.register()).data["state"] == "registered"


async def test_registration_crashed_is_unknown_and_can_be_repeated(values: dict[str, Any]) -> None:
    async with c2b_site(values) as site:
        assert (await site.register()).status == 200
        await site.gateway.db.execute("UPDATE c2b_address SET attempted_at = now(), state = 'unknown'")
        assert (await site.api.call("GET", PATH)).data["state"] == "registering"
        busy = await site.register()
        assert (busy.status, busy.error["code"], "Retry-After" in busy.headers) == (409, "CONFLICT", True)
        long_ago = site.gateway.clock.now() - timedelta(minutes=10)
        await site.gateway.db.execute("UPDATE c2b_address SET attempted_at = $1", long_ago)
        assert (await site.api.call("GET", PATH)).data["state"] == "unknown"
        assert (await site.register()).data["state"] == "registered"


async def test_registration_concurrent_is_sent_once(site: C2bSite) -> None:
    held = site.daraja.hold("c2bregister2")
    first = asyncio.create_task(site.register())
    await site.daraja.wait_for_requests("c2bregister2")
    second = await site.register()
    held.set()
    assert (second.status, (await first).status) == (409, 200)
    assert len(site.daraja.requests_of("c2bregister2")) == 1


async def test_registration_repeated_keeps_the_address(site: C2bSite) -> None:
    first, second = await site.addresses(), await site.addresses()
    assert first == second
    token = first[0].rpartition("/")[2]
    assert find_filtered_words(token) == ()
    row = await site.gateway.db.fetchrow("SELECT * FROM c2b_address")
    assert row is not None
    assert token not in str(dict(row))


@pytest.mark.parametrize("word", ["mpesa", "M-Pesa", "safaricom", "exec", "cmd", "sql", "query"])
async def test_registration_forbidden_word_in_the_public_url_is_refused_before_the_call(
    values: dict[str, Any], word: str
) -> None:
    values["public_url"] = f"https://pay.example.co.ke/{word}"
    async with c2b_site(values) as site:
        refused = await site.register()
        assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
        assert word.lower() in refused.error["message"]
        assert site.daraja.asked == []


async def test_registration_of_another_or_unknown_shortcode_is_not_found(site: C2bSite) -> None:
    assert (await site.register(shortcode="600001")).status == 404
    assert (await site.api.call("GET", PATH)).status == 404
    async with shop(site.gateway, site.base, is_configured=False) as other:
        assert (await site.register(other)).status == 404
    assert site.daraja.requests_of("c2bregister2") == []


@pytest.mark.parametrize("body", [{"validation": "maybe"}, {"response_type": "completed"}, {"token": "x"}])
async def test_registration_wrong_field_is_named(site: C2bSite, body: dict[str, Any]) -> None:
    refused = await site.register(**body)
    assert (refused.status, refused.error["field"]) == (422, next(iter(body)))


async def test_registration_live_makes_the_owner_and_refuses_others(two_envs: TwoEnvSite) -> None:
    one, two = await two_envs.account(), await two_envs.account()
    for account in (one, two):
        assert (await put(account.live, "live")).status == 200
    assert (await one.live.call("POST", LIVE, {})).data["state"] == "registered"
    for method in ("POST", "GET", "DELETE"):
        refused = await two.live.call(method, LIVE, {} if method == "POST" else None)
        assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    owner = await two_envs.gateway.db.fetchval("SELECT owner_id FROM receiver WHERE env = 'live'")
    assert owner == one.merchant_id
    # A sandbox key sees nothing of it.
    assert (await one.sandbox.call("GET", LIVE)).status == 404
    assert two_envs.sandbox.asked == []


async def test_registration_live_refused_makes_no_owner(two_envs: TwoEnvSite) -> None:
    one = await two_envs.account()
    assert (await put(one.live, "live")).status == 200
    two_envs.live.add_answers("c2bregister2", REGISTERED_BEFORE)
    assert (await one.live.call("POST", LIVE, {})).data["state"] == "already_registered"
    assert await two_envs.gateway.db.fetchval("SELECT owner_id FROM receiver WHERE env = 'live'") is None


async def proven(two_envs: TwoEnvSite) -> tuple[Account, Account, dict[str, Any], str]:
    """Return a shop whose live addresses lead here without making it the owner, another merchant, and the addresses."""
    one, other = await two_envs.account(), await two_envs.account()
    for account in (one, other):
        assert (await put(account.live, "live")).status == 200
    two_envs.live.add_answers("c2bregister2", REGISTERED_BEFORE)
    mine = (await one.live.call("POST", LIVE, {})).data
    path = path_of(mine["addresses"]["confirmation"])
    assert (await one.live.call("POST", path, c2b_body("TKN0000001", shortcode="600001"))).status == 200
    return one, other, mine, path


@pytest.mark.parametrize("answer", [NOT_YOURS, REGISTERED_BEFORE, LATE], ids=["refused", "already registered", "late"])
async def test_registration_live_not_accepted_changes_nothing_of_another_merchants(
    listed: TwoEnvSite, answer: DarajaAnswer
) -> None:
    one, other, mine, path = await proven(listed)
    before = await listed.gateway.db.fetchrow(KEPT)
    listed.live.add_answers("c2bregister2", answer)
    refused = await other.live.call("POST", LIVE, {"validation": "rules", "response_type": "Cancelled"})
    assert refused.status >= 400
    assert mine["addresses"]["confirmation"].rpartition("/")[2] not in str(refused.body)
    assert await listed.gateway.db.fetchrow(KEPT) == before
    question = path_of(mine["addresses"]["validation"])
    body = c2b_body("TKN0000002", shortcode="600001", account="RENT 7")
    assert (await one.live.call("POST", question, body)).body["ResultCode"] == "0"
    assert (await one.live.call("POST", path, body)).status == 200
    for query in (
        "SELECT merchant_id FROM transaction",
        "SELECT merchant_id FROM event WHERE kind = 'transaction.received'",
    ):
        rows = await listed.gateway.db.fetch(query)
        assert [row["merchant_id"] for row in rows] == [one.merchant_id] * 2
    for method, status in (("GET", 404), ("DELETE", 404)):
        assert (await other.live.call(method, LIVE)).status == status
    assert (await one.live.call("GET", LIVE)).status == 200
    # The attempt is over, and the shop can repeat its own.
    assert (await one.live.call("POST", LIVE, {})).data["state"] == "registered"


async def test_registration_live_refused_before_leaves_the_number_to_the_next_merchant(two_envs: TwoEnvSite) -> None:
    one, other = await two_envs.account(), await two_envs.account()
    for account in (one, other):
        assert (await put(account.live, "live")).status == 200
    two_envs.live.add_answers("c2bregister2", NOT_YOURS, REGISTERED_BEFORE)
    assert (await one.live.call("POST", LIVE, {})).data["state"] == "refused"
    assert (await other.live.call("POST", LIVE, {})).data["state"] == "already_registered"
    assert (await one.live.call("GET", LIVE)).status == 404


async def test_registration_of_a_till_names_the_till(two_envs: TwoEnvSite) -> None:
    one = await two_envs.account()
    assert (await put(one.live, "live", till_number="5123456")).status == 200
    assert (await one.live.call("POST", "/v1/merchant/shortcodes/5123456/c2b", {})).status == 200
    (sent,) = two_envs.live.requests_of("c2bregister2")
    assert sent["ShortCode"] == "5123456"


async def test_registration_of_a_shared_number_is_of_the_last_merchant(site: C2bSite) -> None:
    first = (await site.register()).data["addresses"]
    async with shop(site.gateway, site.base) as other:
        for method in ("GET", "DELETE"):
            assert (await other.call(method, PATH)).status == 404
        assert (await site.register(other)).data["addresses"] == first
        assert (await other.call("GET", PATH)).data["state"] == "registered"
        assert (await site.api.call("GET", PATH)).status == 404


async def test_registration_removed_names_the_steps_and_keeps_the_address(site: C2bSite) -> None:
    path, _ = await site.addresses()
    removed = (await site.api.call("DELETE", PATH)).data
    assert "Business Manager" in " ".join(removed["to_do"])
    assert (await site.api.call("GET", PATH)).data["state"] == "removed"
    assert (await site.confirm(path)).status == 200
    assert len(await site.transactions()) == 1


async def test_registration_removed_is_known_in_doubt(site: C2bSite) -> None:
    await site.register(validation="rules")
    await site.api.call("DELETE", PATH)
    receiver_id = await site.gateway.db.fetchval("SELECT receiver_id FROM c2b_address")
    assert site.gateway.port(C2bAddresses).last_mode(receiver_id) == "accept"


async def test_registration_is_in_the_audit_log(site: C2bSite) -> None:
    await site.register()
    await site.api.call("DELETE", PATH)
    entries = (await site.api.call("GET", "/v1/audit/logs")).data
    actions = [entry["action"] for entry in entries if entry["action"].startswith("c2b.")]
    assert actions == ["c2b.removed", "c2b.registered", "c2b.registering"]


@pytest.mark.parametrize(("allowlist", "status"), [(["196.201.214.200"], 403), (["127.0.0.1"], 200)])
async def test_live_callbacks_need_a_listed_source(values: dict[str, Any], allowlist: list[str], status: int) -> None:
    values["callbacks"] = {"allowlist": allowlist}
    async with two_env_site(values) as two_envs:
        one = await two_envs.account()
        assert (await put(one.live, "live")).status == 200
        addresses = (await one.live.call("POST", LIVE, {})).data["addresses"]
        for url in (addresses["confirmation"], addresses["validation"]):
            body = c2b_body(shortcode="600001")
            assert (await one.live.call("POST", path_of(url), body)).status == status
        count = await two_envs.gateway.db.fetchval("SELECT count(*) FROM transaction WHERE env = 'live'")
        assert count == (status == 200)
