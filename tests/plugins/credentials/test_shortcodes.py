"""Protects shortcodes: separate by env, retired and revived, and each payment bound to its own."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_credentials.reader import CredentialReader
from mpesa_gateway_credentials.service import CredentialStore
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_reconciliation.service import ReconciliationService
from tests.plugins.credentials.two_env_site import (
    PHONE,
    PROVIDERS,
    SPIKE_ARREST,
    TwoEnvSite,
    complete_payment,
    put,
    two_env_site,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ENVS: tuple[Env, ...] = ("sandbox", "live")


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW)


@pytest.fixture
async def site(values: dict[str, Any], clock: SetClock) -> AsyncGenerator[TwoEnvSite]:
    """A gateway between a sandbox and a live Daraja, with a clock set by hand."""
    async with two_env_site(values, clock) as found:
        yield found


def other_env(env: Env) -> Env:
    return "sandbox" if env == "live" else "live"


async def stored_shortcodes(site: TwoEnvSite) -> list[dict[str, Any]]:
    rows = await site.gateway.db.fetch(
        "SELECT shortcode.*, number FROM shortcode JOIN receiver USING (receiver_id) ORDER BY shortcode_id"
    )
    return [dict(row) for row in rows]


# -- sandbox and live side by side ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["174379", "600001"])
async def test_put_and_delete_leave_the_other_env_unchanged(site: TwoEnvSite, number: str) -> None:
    shop = await site.account()
    assert (await put(shop.live, "live")).status == 200
    before = await stored_shortcodes(site)
    assert (await put(shop.sandbox, "sandbox", number)).status == 200
    assert [row for row in await stored_shortcodes(site) if row["env"] == "live"] == before
    for env in ENVS:
        assert (await shop.api(env).pay(PHONE, key=f"{number}-{env}")).status == 201
        assert len(site.daraja(env).requests_of("stkpush")) == 1
    assert (await shop.sandbox.call("DELETE", f"{PROVIDERS}/mpesa")).status == 200
    assert [row for row in await stored_shortcodes(site) if row["env"] == "live"] == before
    assert (await shop.live.pay(PHONE, key=f"{number}-live-2")).status == 201
    assert (await shop.sandbox.pay(PHONE, key=f"{number}-sandbox-2")).error["code"] == "PROVIDER_NOT_CONFIGURED"
    merchant = await site.gateway.merchants.require(shop.merchant_id)
    assert merchant.envs == ("live", "sandbox")


@pytest.mark.parametrize("env", ENVS)
async def test_put_for_the_other_env_is_refused_with_the_key_to_use(site: TwoEnvSite, env: Env) -> None:
    shop = await site.account()
    await put(shop.api(other_env(env)), other_env(env))
    before = await stored_shortcodes(site)
    refused = await put(shop.api(env), other_env(env), "600009")
    assert (refused.status, refused.error["field"]) == (422, "mpesa.env")
    right, wrong = ("sk_test_", "sk_live_") if env == "live" else ("sk_live_", "sk_test_")
    assert f"with a key that starts with {right}; this key starts with {wrong}" in refused.error["message"]
    assert await stored_shortcodes(site) == before


@pytest.mark.parametrize("env", ENVS)
async def test_merchant_me_and_providers_show_the_env_of_the_key(site: TwoEnvSite, env: Env) -> None:
    shop = await site.account()
    await put(shop.api(env), env)
    mine, others = shop.api(env), shop.api(other_env(env))
    for api, of, providers in ((mine, env, ["mpesa"]), (others, other_env(env), [])):
        me = (await api.call("GET", "/v1/merchant/me")).data
        assert (me["env"], me["providers"]) == (of, providers)
        assert [one["provider"] for one in (await api.call("GET", PROVIDERS)).data] == providers
        assert (await api.call("POST", f"{PROVIDERS}/mpesa/verify")).status == (200 if providers else 422)
    assert (await others.call("DELETE", f"{PROVIDERS}/mpesa")).status == 404
    assert (await mine.call("GET", PROVIDERS)).data[0]["config_summary"]["env"] == env


# -- live needs what a push needs -------------------------------------------------------------------------------------

GOING_LIVE: dict[str, Any] = {
    "initiator": "shop-api",
    "security_credential": "c2VjdXJpdHktY3JlZGVudGlhbA==",
    "result_url": "https://pay.example.co.ke/v1/webhooks/mpesa/transactionstatus/result",
    "timeout_url": "https://pay.example.co.ke/v1/webhooks/mpesa/transactionstatus/timeout",
    "nominated_number": None,
}
"""The optional fields of the specification's going-live example."""

FOUR_FIELDS: dict[str, Any] = {"initiator": None, "security_credential": None, "nominated_number": None}


@pytest.mark.parametrize(
    ("fields", "off"),
    [
        (GOING_LIVE, {"nominated_number", "webhook", "certificate"}),
        (FOUR_FIELDS, {"initiator", "nominated_number", "webhook", "certificate"}),
        ({}, {"pull", "webhook", "certificate"}),
        (FOUR_FIELDS | {"nominated_number": "254708374149"}, {"initiator", "pull", "webhook", "certificate"}),
        (GOING_LIVE | {"till_number": "5123456"}, {"nominated_number", "webhook", "certificate"}),
    ],
)
async def test_put_for_live_lists_the_features_that_are_off(
    site: TwoEnvSite, fields: dict[str, Any], off: set[str]
) -> None:
    shop = await site.account()
    answer = await put(shop.live, "live", **fields)
    assert answer.status == 200, answer.body
    missing = answer.body["meta"]["missing"]
    # C2B is registered with its own call, not by fields.
    assert {one["name"] for one in missing} == off | {"c2b"}
    assert all(one["message"] and one["fix"] for one in missing)
    assert (await shop.live.call("GET", PROVIDERS)).body["meta"]["missing"] == missing
    assert (await shop.live.pay(PHONE, key="a")).status == 201


async def test_providers_list_no_feature_as_missing_after_its_setup(site: TwoEnvSite) -> None:
    shop = await site.account()
    await put(shop.live, "live")
    await shop.live.call("PUT", "/v1/merchant/webhook", {"webhook_url": "https://shop.example/hook"})
    await shop.live.call("POST", "/v1/payments/mpesa/pull/register")
    await shop.live.call("POST", "/v1/merchant/shortcodes/600001/c2b", {})
    missing = (await shop.live.call("GET", PROVIDERS)).body["meta"]["missing"]
    assert {one["name"] for one in missing} == {"certificate"}


async def test_call_without_a_needed_field_names_the_field(site: TwoEnvSite) -> None:
    shop = await site.account()
    await put(shop.live, "live", **FOUR_FIELDS)
    payment_id = (await shop.live.pay(PHONE, key="a")).data["id"]
    await complete_payment(site, payment_id)
    for path, body, field in (
        ("/v1/refunds", {"payment_id": payment_id}, "mpesa.initiator"),
        (f"/v1/payments/mpesa/check-status/{payment_id}", None, "mpesa.initiator"),
        ("/v1/payments/mpesa/check-status/TKN4A1B2C9", None, "mpesa.initiator"),
        ("/v1/payments/mpesa/pull/register", None, "mpesa.nominated_number"),
        ("/v1/payments/mpesa/reconcile", {}, "mpesa.nominated_number"),
    ):
        answer = await shop.live.call("POST", path, body)
        assert (answer.status, answer.error["code"], answer.error["field"]) == (422, "PROVIDER_NOT_CONFIGURED", field)
    assert {name for name, _ in site.live.asked} == {"oauth", "stkpush"}


# -- retired and revived ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["PUT", "DELETE"])
@pytest.mark.parametrize("till", [None, "5123456"])
async def test_retired_shortcode_of_a_pending_payment_is_queried_and_reconciled(
    site: TwoEnvSite, how: str, till: str | None
) -> None:
    """D4: another shortcode, or none, is stored while a payment is pending and its callback is lost."""
    shop = await site.account()
    await put(shop.live, "live", till_number=till)
    payment = (await shop.live.pay(PHONE, key="a")).data
    if how == "PUT":
        answer = await put(shop.live, "live", "600002")
        assert answer.body["meta"]["retired"] == {"shortcode": till or "600001", "open": {"payments": 1, "refunds": 0}}
    else:
        answer = await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")
        assert answer.data == {"deleted": True, "shortcode": till or "600001", "open": {"payments": 1, "refunds": 0}}
        assert (await shop.live.pay(PHONE, key="b")).error["code"] == "PROVIDER_NOT_CONFIGURED"
    assert await site.gateway.services.get(StkQueries).query_payment(payment["id"], is_forced=True)
    (query,) = site.live.requests_of("stkquery")
    assert query["BusinessShortCode"] == "600001"
    # The merchant's query works too, and scheduled runs read the statement.
    assert (await shop.live.call("POST", f"/v1/payments/{payment['id']}/query")).status == 200
    credentials = site.gateway.services.get(Credentials)
    (source,) = [source for source in await credentials.statement_sources() if source.is_retired]
    assert await site.gateway.services.get(ReconciliationService).run_due(source.shortcode_id)
    assert [one["ShortCode"] for one in site.live.requests_of("pullquery")] == [till or "600001"]


async def test_payment_to_a_till_stores_the_till_as_its_shortcode(site: TwoEnvSite) -> None:
    """G3: the number that payers pay, not the store number."""
    shop = await site.account()
    await put(shop.sandbox, "sandbox", till_number="5123456")
    await shop.sandbox.pay(PHONE, key="a")
    row = dict(
        await site.gateway.db.fetchrow(
            "SELECT shortcode, store_number FROM payment JOIN shortcode USING (shortcode_id)"
        )
        or {}
    )
    assert (row["shortcode"], row["store_number"]) == ("5123456", "600001")
    (pushed,) = site.sandbox.requests_of("stkpush")
    assert (pushed["BusinessShortCode"], pushed["PartyB"]) == ("600001", "5123456")


@pytest.mark.parametrize("env", ENVS)
async def test_retired_number_stored_again_is_the_same_shortcode(site: TwoEnvSite, env: Env) -> None:
    shop = await site.account()
    api = shop.api(env)
    await put(api, env, "600001")
    (first,) = await stored_shortcodes(site)
    await put(api, env, "600002")
    revived = await put(api, env, "600001", passkey="a-newer-passkey-of-the-shop")
    assert revived.body["meta"]["retired"]["shortcode"] == "600002"
    rows = {row["number"]: row for row in await stored_shortcodes(site)}
    assert rows["600001"]["shortcode_id"] == first["shortcode_id"]
    assert (rows["600001"]["is_default"], rows["600001"]["retired_at"]) == (True, None)
    assert (rows["600002"]["is_default"], rows["600002"]["retired_at"]) == (False, site.gateway.clock.now())
    assert (await api.pay(PHONE, key="a")).status == 201
    assert site.daraja(env).requests_of("stkpush")[0]["BusinessShortCode"] == "600001"


async def test_wipe_retired_erases_secrets_48_hours_after_the_last_open_payment(
    site: TwoEnvSite, clock: SetClock
) -> None:
    shop, store = await site.account(), site.gateway.services.get(CredentialStore)
    await put(shop.live, "live", "600001")
    payment_id = (await shop.live.pay(PHONE, key="a")).data["id"]
    await complete_payment(site, payment_id)
    await put(shop.live, "live", "600002")
    refund = (await shop.live.call("POST", "/v1/refunds", {"payment_id": payment_id})).data
    clock.advance(timedelta(hours=47, minutes=59))
    assert await store.wipe_retired() == 0
    clock.advance(timedelta(hours=9))
    # The refund is still pending.
    assert await store.wipe_retired() == 0
    assert (await shop.live.call("POST", f"/v1/refunds/{refund['id']}/query")).status == 200
    await site.gateway.db.execute(
        "UPDATE refund SET status = 'failed', reversal = 'ended', outcome = 'other', due_at = NULL, attention = NULL"
    )
    await site.gateway.db.execute("UPDATE payment SET refund_reserved = 0")
    assert await store.wipe_retired() == 1
    assert await store.wipe_retired() == 0
    rows = {row["number"]: row for row in await stored_shortcodes(site)}
    assert [rows["600001"][name] for name in ("passkey", "consumer_key", "initiator")] == [None] * 3
    assert rows["600001"]["wiped_at"] == clock.now()
    assert rows["600002"]["wiped_at"] is None
    answer = await shop.live.call("POST", "/v1/refunds", {"payment_id": payment_id})
    assert (answer.status, answer.error["code"], "600001" in answer.error["message"]) == (
        422,
        "PROVIDER_NOT_CONFIGURED",
        True,
    )
    await put(shop.live, "live", "600001")
    assert (await shop.live.call("POST", "/v1/refunds", {"payment_id": payment_id})).status == 201


async def test_wipe_retired_keeps_secrets_of_a_payment_that_needs_review(site: TwoEnvSite, clock: SetClock) -> None:
    shop, store = await site.account(), site.gateway.services.get(CredentialStore)
    await put(shop.live, "live", "600001")
    await shop.live.pay(PHONE, key="a")
    await site.gateway.db.execute("UPDATE payment SET mismatch = 'amount', due_at = NULL")
    assert (await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")).data["open"] == {"payments": 1, "refunds": 0}
    clock.advance(timedelta(days=9))
    assert await store.wipe_retired() == 0
    await site.gateway.db.execute("UPDATE payment SET looked_after_at = now()")
    assert await store.wipe_retired() == 1


async def test_wipe_retired_concurrent_wipes_once(site: TwoEnvSite, clock: SetClock) -> None:
    shop, store = await site.account(), site.gateway.services.get(CredentialStore)
    await put(shop.live, "live")
    await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")
    clock.advance(timedelta(hours=49))
    assert sum(await asyncio.gather(*(store.wipe_retired() for _ in range(4)))) == 1


async def test_put_concurrent_leaves_one_default_and_retires_the_others(site: TwoEnvSite) -> None:
    shop = await site.account()
    numbers = [f"60000{digit}" for digit in range(8)]
    answers = await asyncio.gather(
        *(put(shop.api(env), env, number) for number in numbers for env in ENVS),
    )
    assert {answer.status for answer in answers} == {200}
    for env in ENVS:
        rows = [row for row in await stored_shortcodes(site) if row["env"] == env]
        assert sorted(row["number"] for row in rows) == numbers
        (default,) = [row for row in rows if row["is_default"]]
        assert [row["number"] for row in rows if row["retired_at"] is None] == [default["number"]]
        assert (await shop.api(env).pay(PHONE, key=env)).status == 201
        assert site.daraja(env).requests_of("stkpush")[0]["BusinessShortCode"] == default["number"]


async def test_put_of_one_number_by_several_merchants_shares_the_receiver(site: TwoEnvSite) -> None:
    shops = [await site.account() for _ in range(4)]
    answers = await asyncio.gather(*(put(shop.sandbox, "sandbox", "174379") for shop in shops))
    assert {answer.status for answer in answers} == {200}
    assert await site.gateway.db.fetchval("SELECT count(*) FROM receiver") == 1
    assert len(await stored_shortcodes(site)) == 4


# -- a payment stays with its shortcode -------------------------------------------------------------------------------


@pytest.mark.parametrize("till", [None, "5123456"])
async def test_payment_retry_after_another_put_uses_its_own_shortcode_or_is_refused(
    site: TwoEnvSite, till: str | None
) -> None:
    """D1: nothing was sent, another shortcode was stored, and the same key is used again."""
    shop = await site.account()
    await put(shop.sandbox, "sandbox", "174379", till_number=till)
    site.sandbox.add_answers("stkpush", SPIKE_ARREST)
    assert (await shop.sandbox.pay(PHONE, key="a")).status == 503
    await put(shop.sandbox, "sandbox", "600002")
    refused = await shop.sandbox.pay(PHONE, key="a")
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert till or "174379" in refused.error["message"]
    assert len(site.sandbox.requests_of("stkpush")) == 1
    # The shortcode is stored again with newer secrets: the retry uses them.
    await put(shop.sandbox, "sandbox", "174379", till_number=till, passkey="a-newer-passkey-of-the-shop")
    assert (await shop.sandbox.pay(PHONE, key="a")).status == 201
    pushed = site.sandbox.requests_of("stkpush")[-1]
    assert (pushed["BusinessShortCode"], pushed["PartyB"]) == ("174379", till or "174379")
    assert "a-newer-passkey-of-the-shop" in b64decode(pushed["Password"]).decode()
    assert await site.gateway.db.fetchval("SELECT count(*) FROM payment") == 1


async def test_payment_retry_after_delete_is_refused(site: TwoEnvSite) -> None:
    shop = await site.account()
    await put(shop.live, "live")
    site.live.add_answers("stkpush", SPIKE_ARREST)
    assert (await shop.live.pay(PHONE, key="a")).status == 503
    await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")
    assert (await shop.live.pay(PHONE, key="a")).status == 409
    assert len(site.live.requests_of("stkpush")) == 1


@pytest.mark.parametrize("env", ENVS)
async def test_payment_retry_with_a_key_of_the_other_env_is_another_payment(site: TwoEnvSite, env: Env) -> None:
    """D2: nothing was sent in one env, and an API key of the other env uses the same key."""
    shop = await site.account()
    for each in ENVS:
        await put(shop.api(each), each)
    site.daraja(env).add_answers("stkpush", SPIKE_ARREST)
    assert (await shop.api(env).pay(PHONE, key="a", reference="ONE")).status == 503
    before = dict(await site.gateway.db.fetchrow("SELECT * FROM payment") or {})
    await shop.api(other_env(env)).pay(PHONE, key="a", reference="ONE")
    after = await site.gateway.db.fetchrow("SELECT * FROM payment WHERE payment_id = $1", before["payment_id"])
    assert dict(after or {}) == before
    rows = await site.gateway.db.fetch("SELECT env FROM payment WHERE payment_id <> $1", before["payment_id"])
    assert len(site.daraja(other_env(env)).requests_of("stkpush")) == len(rows)
    assert {row["env"] for row in rows} <= {other_env(env)}
    # An API key of its own env sends it, in its own env.
    again = await shop.api(env).pay(PHONE, key="a", reference="ONE")
    assert (again.status, again.data["id"]) == (201, before["payment_id"])
    assert [len(site.daraja(each).requests_of("stkpush")) for each in (env, other_env(env))] == [2, len(rows)]


async def test_status_query_of_a_receipt_uses_the_shortcode_of_its_payment(site: TwoEnvSite) -> None:
    """A receipt without a payment uses the default shortcode."""
    shop = await site.account()
    await put(shop.live, "live", "600001")
    payment_id = (await shop.live.pay(PHONE, key="a")).data["id"]
    await complete_payment(site, payment_id)
    await put(shop.live, "live", "600002")
    for subject in (payment_id, "TKN4A1B2C3", "TKN4A1B2C9"):
        assert (await shop.live.call("POST", f"/v1/payments/mpesa/check-status/{subject}")).status == 200
    shortcodes = [one["PartyA"] for one in site.live.requests_of("transactionstatus")]
    assert shortcodes == ["600001", "600001", "600002"]


# -- other processes --------------------------------------------------------------------------------------------------


async def test_credential_reader_in_another_process_reads_every_change_at_once(
    values: dict[str, Any], site: TwoEnvSite
) -> None:
    shop = await site.account()
    await put(shop.live, "live")
    (row,) = await stored_shortcodes(site)
    async with Gateway(GatewayConfig.from_values(values)).running() as second_gateway:
        reader = second_gateway.services.get(CredentialReader)

        async def is_listening() -> bool:
            return second_gateway.changes.is_listening

        await eventually(is_listening)
        for memory in (reader._usable, reader._by_id):  # pyright: ignore[reportPrivateUsage]
            memory._seconds = 86_400  # pyright: ignore[reportPrivateUsage]

        async def passkey() -> tuple[str, str]:
            default = await reader.get(shop.merchant_id, "live")
            return default.passkey.reveal(), (await reader.of_shortcode(row["shortcode_id"])).passkey.reveal()

        async def owner() -> Any:
            return (await reader.of_shortcode(row["shortcode_id"])).owner_id

        async def number() -> str:
            return (await reader.get(shop.merchant_id, "live")).shortcode

        async def is_gone() -> bool:
            try:
                await reader.get(shop.merchant_id, "live")
            except ProviderNotConfigured:
                return True
            return False

        await passkey()
        await put(shop.live, "live", passkey="a-newer-passkey-of-the-shop")

        async def is_newer() -> bool:
            return await passkey() == ("a-newer-passkey-of-the-shop",) * 2

        await eventually(is_newer)
        assert await owner() is None
        await shop.live.pay(PHONE, key="a")
        await eventually(owner)
        await put(shop.live, "live", "600002")

        async def is_moved() -> bool:
            return await number() == "600002"

        await eventually(is_moved)
        await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")
        await eventually(is_gone)
