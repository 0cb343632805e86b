"""Shortcodes: sandbox and live side by side, retired and revived, and payments bound to theirs."""

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
from tests.plugins.credentials.two_worlds import PHONE, PROVIDERS, SPIKE_ARREST, Worlds, paid_for, put, two_worlds

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ENVS: tuple[Env, ...] = ("sandbox", "live")


@pytest.fixture
def clock() -> SetClock:
    """The gateway's clock, set by hand."""
    return SetClock(NOW)


@pytest.fixture
async def worlds(values: dict[str, Any], clock: SetClock) -> AsyncGenerator[Worlds]:
    """A gateway between two Darajas."""
    async with two_worlds(values, clock) as found:
        yield found


def other(env: Env) -> Env:
    """The other env."""
    return "sandbox" if env == "live" else "live"


async def shown(worlds: Worlds) -> list[dict[str, Any]]:
    """Every shortcode, as stored."""
    rows = await worlds.gateway.db.fetch(
        "SELECT shortcode.*, number FROM shortcode JOIN receiver USING (receiver_id) ORDER BY shortcode_id"
    )
    return [dict(row) for row in rows]


# -- sandbox and live side by side ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["174379", "600001"])
async def test_put_and_delete_touch_nothing_of_the_other_env(worlds: Worlds, number: str) -> None:
    shop = await worlds.account()
    assert (await put(shop.live, "live")).status == 200
    before = await shown(worlds)
    assert (await put(shop.sandbox, "sandbox", number)).status == 200
    assert [row for row in await shown(worlds) if row["env"] == "live"] == before
    for env in ENVS:
        assert (await shop.api(env).pay(PHONE, key=f"{number}-{env}")).status == 201
        assert len(worlds.daraja(env).of("stkpush")) == 1
    assert (await shop.sandbox.call("DELETE", f"{PROVIDERS}/mpesa")).status == 200
    assert [row for row in await shown(worlds) if row["env"] == "live"] == before
    assert (await shop.live.pay(PHONE, key=f"{number}-live-2")).status == 201
    assert (await shop.sandbox.pay(PHONE, key=f"{number}-sandbox-2")).error["code"] == "PROVIDER_NOT_CONFIGURED"
    merchant = await worlds.gateway.merchants.require(shop.merchant_id)
    assert merchant.envs == ("live", "sandbox")


@pytest.mark.parametrize("env", ENVS)
async def test_the_other_env_in_the_body_is_refused_with_the_key_to_use(worlds: Worlds, env: Env) -> None:
    shop = await worlds.account()
    await put(shop.api(other(env)), other(env))
    before = await shown(worlds)
    refused = await put(shop.api(env), other(env), "600009")
    assert (refused.status, refused.error["field"]) == (422, "mpesa.env")
    right, wrong = ("sk_test_", "sk_live_") if env == "live" else ("sk_live_", "sk_test_")
    assert f"with a key that starts with {right}; this key starts with {wrong}" in refused.error["message"]
    assert await shown(worlds) == before


@pytest.mark.parametrize("env", ENVS)
async def test_me_and_providers_answer_the_keys_env(worlds: Worlds, env: Env) -> None:
    shop = await worlds.account()
    await put(shop.api(env), env)
    mine, others = shop.api(env), shop.api(other(env))
    for api, of, providers in ((mine, env, ["mpesa"]), (others, other(env), [])):
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
"""The optional fields of the specification's walk-through to live."""

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
async def test_live_is_accepted_and_what_is_off_is_listed(
    worlds: Worlds, fields: dict[str, Any], off: set[str]
) -> None:
    shop = await worlds.account()
    answer = await put(shop.live, "live", **fields)
    assert answer.status == 200, answer.body
    missing = answer.body["meta"]["missing"]
    assert {one["name"] for one in missing} == off
    assert all(one["message"] and one["fix"] for one in missing)
    assert (await shop.live.call("GET", PROVIDERS)).body["meta"]["missing"] == missing
    assert (await shop.live.pay(PHONE, key="a")).status == 201


async def test_what_is_set_up_is_missing_no_more(worlds: Worlds) -> None:
    shop = await worlds.account()
    await put(shop.live, "live")
    await shop.live.call("PUT", "/v1/merchant/webhook", {"webhook_url": "https://shop.example/hook"})
    await shop.live.call("POST", "/v1/payments/mpesa/pull/register")
    missing = (await shop.live.call("GET", PROVIDERS)).body["meta"]["missing"]
    assert {one["name"] for one in missing} == {"certificate"}


async def test_what_a_call_lacks_is_named_when_it_is_made(worlds: Worlds) -> None:
    shop = await worlds.account()
    await put(shop.live, "live", **FOUR_FIELDS)
    payment_id = (await shop.live.pay(PHONE, key="a")).data["id"]
    await paid_for(worlds, payment_id)
    for path, body, field in (
        ("/v1/refunds", {"payment_id": payment_id}, "mpesa.initiator"),
        (f"/v1/payments/mpesa/check-status/{payment_id}", None, "mpesa.initiator"),
        ("/v1/payments/mpesa/check-status/TKN4A1B2C9", None, "mpesa.initiator"),
        ("/v1/payments/mpesa/pull/register", None, "mpesa.nominated_number"),
        ("/v1/payments/mpesa/reconcile", {}, "mpesa.nominated_number"),
    ):
        answer = await shop.live.call("POST", path, body)
        assert (answer.status, answer.error["code"], answer.error["field"]) == (422, "PROVIDER_NOT_CONFIGURED", field)
    assert {name for name, _ in worlds.live.asked} == {"oauth", "stkpush"}


# -- retired and revived ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["PUT", "DELETE"])
@pytest.mark.parametrize("till", [None, "5123456"])
async def test_a_retired_shortcode_is_asked_about_and_read_on(worlds: Worlds, how: str, till: str | None) -> None:
    """D4: another shortcode, or none, is stored while a payment is pending and its callback is lost."""
    shop = await worlds.account()
    await put(shop.live, "live", till_number=till)
    payment = (await shop.live.pay(PHONE, key="a")).data
    if how == "PUT":
        answer = await put(shop.live, "live", "600002")
        assert answer.body["meta"]["retired"] == {"shortcode": till or "600001", "open": {"payments": 1, "refunds": 0}}
    else:
        answer = await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")
        assert answer.data == {"deleted": True, "shortcode": till or "600001", "open": {"payments": 1, "refunds": 0}}
        assert (await shop.live.pay(PHONE, key="b")).error["code"] == "PROVIDER_NOT_CONFIGURED"
    assert await worlds.gateway.services.get(StkQueries).ask(payment["id"], is_forced=True)
    (asked,) = worlds.live.of("stkquery")
    assert asked["BusinessShortCode"] == "600001"
    # By hand too, and its statement is read by regular runs.
    assert (await shop.live.call("POST", f"/v1/payments/{payment['id']}/query")).status == 200
    credentials = worlds.gateway.services.get(Credentials)
    (source,) = [source for source in await credentials.statement_sources() if source.is_retired]
    assert await worlds.gateway.services.get(ReconciliationService).run_due(source.shortcode_id)
    assert [one["ShortCode"] for one in worlds.live.of("pullquery")] == [till or "600001"]


async def test_a_payment_is_bound_to_the_number_that_payers_pay(worlds: Worlds) -> None:
    """G3: of a till that is the till, not the store number."""
    shop = await worlds.account()
    await put(shop.sandbox, "sandbox", till_number="5123456")
    await shop.sandbox.pay(PHONE, key="a")
    row = dict(
        await worlds.gateway.db.fetchrow(
            "SELECT shortcode, store_number FROM payment JOIN shortcode USING (shortcode_id)"
        )
        or {}
    )
    assert (row["shortcode"], row["store_number"]) == ("5123456", "600001")
    (pushed,) = worlds.sandbox.of("stkpush")
    assert (pushed["BusinessShortCode"], pushed["PartyB"]) == ("600001", "5123456")


@pytest.mark.parametrize("env", ENVS)
async def test_a_retired_number_is_revived_as_the_same_shortcode(worlds: Worlds, env: Env) -> None:
    shop = await worlds.account()
    api = shop.api(env)
    await put(api, env, "600001")
    (first,) = await shown(worlds)
    await put(api, env, "600002")
    revived = await put(api, env, "600001", passkey="a-newer-passkey-of-the-shop")
    assert revived.body["meta"]["retired"]["shortcode"] == "600002"
    rows = {row["number"]: row for row in await shown(worlds)}
    assert rows["600001"]["shortcode_id"] == first["shortcode_id"]
    assert (rows["600001"]["is_default"], rows["600001"]["retired_at"]) == (True, None)
    assert (rows["600002"]["is_default"], rows["600002"]["retired_at"]) == (False, worlds.gateway.clock.now())
    assert (await api.pay(PHONE, key="a")).status == 201
    assert worlds.daraja(env).of("stkpush")[0]["BusinessShortCode"] == "600001"


async def test_secrets_are_erased_once_nothing_is_open_and_48_hours_have_passed(
    worlds: Worlds, clock: SetClock
) -> None:
    shop, store = await worlds.account(), worlds.gateway.services.get(CredentialStore)
    await put(shop.live, "live", "600001")
    payment_id = (await shop.live.pay(PHONE, key="a")).data["id"]
    await paid_for(worlds, payment_id)
    await put(shop.live, "live", "600002")
    refund = (await shop.live.call("POST", "/v1/refunds", {"payment_id": payment_id})).data
    clock.advance(timedelta(hours=47, minutes=59))
    assert await store.wipe_retired() == 0
    clock.advance(timedelta(hours=9))
    # Its refund is still asked about.
    assert await store.wipe_retired() == 0
    assert (await shop.live.call("POST", f"/v1/refunds/{refund['id']}/query")).status == 200
    await worlds.gateway.db.execute(
        "UPDATE refund SET status = 'failed', reversal = 'ended', outcome = 'other', due_at = NULL, attention = NULL"
    )
    await worlds.gateway.db.execute("UPDATE payment SET refund_reserved = 0")
    assert await store.wipe_retired() == 1
    assert await store.wipe_retired() == 0
    rows = {row["number"]: row for row in await shown(worlds)}
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


async def test_a_shortcode_that_waits_for_a_person_keeps_its_secrets(worlds: Worlds, clock: SetClock) -> None:
    shop, store = await worlds.account(), worlds.gateway.services.get(CredentialStore)
    await put(shop.live, "live", "600001")
    await shop.live.pay(PHONE, key="a")
    await worlds.gateway.db.execute("UPDATE payment SET mismatch = 'amount', due_at = NULL")
    assert (await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")).data["open"] == {"payments": 1, "refunds": 0}
    clock.advance(timedelta(days=9))
    assert await store.wipe_retired() == 0
    await worlds.gateway.db.execute("UPDATE payment SET looked_after_at = now()")
    assert await store.wipe_retired() == 1


async def test_of_two_processes_that_wipe_one_does(worlds: Worlds, clock: SetClock) -> None:
    shop, store = await worlds.account(), worlds.gateway.services.get(CredentialStore)
    await put(shop.live, "live")
    await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")
    clock.advance(timedelta(hours=49))
    assert sum(await asyncio.gather(*(store.wipe_retired() for _ in range(4)))) == 1


async def test_concurrent_puts_leave_one_default_and_retire_the_others(worlds: Worlds) -> None:
    shop = await worlds.account()
    numbers = [f"60000{digit}" for digit in range(8)]
    answers = await asyncio.gather(
        *(put(shop.api(env), env, number) for number in numbers for env in ENVS),
    )
    assert {answer.status for answer in answers} == {200}
    for env in ENVS:
        rows = [row for row in await shown(worlds) if row["env"] == env]
        assert sorted(row["number"] for row in rows) == numbers
        (default,) = [row for row in rows if row["is_default"]]
        assert [row["number"] for row in rows if row["retired_at"] is None] == [default["number"]]
        assert (await shop.api(env).pay(PHONE, key=env)).status == 201
        assert worlds.daraja(env).of("stkpush")[0]["BusinessShortCode"] == default["number"]


async def test_a_put_of_the_same_number_by_two_merchants_shares_the_receiver(worlds: Worlds) -> None:
    shops = [await worlds.account() for _ in range(4)]
    answers = await asyncio.gather(*(put(shop.sandbox, "sandbox", "174379") for shop in shops))
    assert {answer.status for answer in answers} == {200}
    assert await worlds.gateway.db.fetchval("SELECT count(*) FROM receiver") == 1
    assert len(await shown(worlds)) == 4


# -- a payment stays with its shortcode -------------------------------------------------------------------------------


@pytest.mark.parametrize("till", [None, "5123456"])
async def test_a_retry_goes_to_the_payments_own_shortcode_or_nowhere(worlds: Worlds, till: str | None) -> None:
    """D1: nothing was sent, another shortcode was stored, and the same key comes again."""
    shop = await worlds.account()
    await put(shop.sandbox, "sandbox", "174379", till_number=till)
    worlds.sandbox.say("stkpush", SPIKE_ARREST)
    assert (await shop.sandbox.pay(PHONE, key="a")).status == 503
    await put(shop.sandbox, "sandbox", "600002")
    refused = await shop.sandbox.pay(PHONE, key="a")
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert till or "174379" in refused.error["message"]
    assert len(worlds.sandbox.of("stkpush")) == 1
    # Stored again, with newer secrets: the key may try again, at its own shortcode, with those.
    await put(shop.sandbox, "sandbox", "174379", till_number=till, passkey="a-newer-passkey-of-the-shop")
    assert (await shop.sandbox.pay(PHONE, key="a")).status == 201
    pushed = worlds.sandbox.of("stkpush")[-1]
    assert (pushed["BusinessShortCode"], pushed["PartyB"]) == ("174379", till or "174379")
    assert "a-newer-passkey-of-the-shop" in b64decode(pushed["Password"]).decode()
    assert await worlds.gateway.db.fetchval("SELECT count(*) FROM payment") == 1


async def test_a_retry_after_delete_is_refused_too(worlds: Worlds) -> None:
    shop = await worlds.account()
    await put(shop.live, "live")
    worlds.live.say("stkpush", SPIKE_ARREST)
    assert (await shop.live.pay(PHONE, key="a")).status == 503
    await shop.live.call("DELETE", f"{PROVIDERS}/mpesa")
    assert (await shop.live.pay(PHONE, key="a")).status == 409
    assert len(worlds.live.of("stkpush")) == 1


@pytest.mark.parametrize("env", ENVS)
async def test_a_payment_is_never_pushed_in_the_other_env(worlds: Worlds, env: Env) -> None:
    """D2: nothing was sent in one env, and the same key comes with an API key of the other."""
    shop = await worlds.account()
    for each in ENVS:
        await put(shop.api(each), each)
    worlds.daraja(env).say("stkpush", SPIKE_ARREST)
    assert (await shop.api(env).pay(PHONE, key="a", reference="ONE")).status == 503
    before = dict(await worlds.gateway.db.fetchrow("SELECT * FROM payment") or {})
    await shop.api(other(env)).pay(PHONE, key="a", reference="ONE")
    after = await worlds.gateway.db.fetchrow("SELECT * FROM payment WHERE payment_id = $1", before["payment_id"])
    assert dict(after or {}) == before
    rows = await worlds.gateway.db.fetch("SELECT env FROM payment WHERE payment_id <> $1", before["payment_id"])
    assert len(worlds.daraja(other(env)).of("stkpush")) == len(rows)
    assert {row["env"] for row in rows} <= {other(env)}
    # With the key of its own env it is sent, in its own env, though the merchant has credentials for both.
    again = await shop.api(env).pay(PHONE, key="a", reference="ONE")
    assert (again.status, again.data["id"]) == (201, before["payment_id"])
    assert [len(worlds.daraja(each).of("stkpush")) for each in (env, other(env))] == [2, len(rows)]


async def test_another_merchants_receipt_question_uses_no_default_of_a_payment(worlds: Worlds) -> None:
    """A status query about a payment's receipt uses the payment's shortcode, about any other the default one."""
    shop = await worlds.account()
    await put(shop.live, "live", "600001")
    payment_id = (await shop.live.pay(PHONE, key="a")).data["id"]
    await paid_for(worlds, payment_id)
    await put(shop.live, "live", "600002")
    for what in (payment_id, "TKN4A1B2C3", "TKN4A1B2C9"):
        assert (await shop.live.call("POST", f"/v1/payments/mpesa/check-status/{what}")).status == 200
    asked = [one["PartyA"] for one in worlds.live.of("transactionstatus")]
    assert asked == ["600001", "600001", "600002"]


# -- other processes --------------------------------------------------------------------------------------------------


async def test_another_process_hears_of_every_change_at_once(values: dict[str, Any], worlds: Worlds) -> None:
    shop = await worlds.account()
    await put(shop.live, "live")
    (row,) = await shown(worlds)
    async with Gateway(GatewayConfig.from_values(values)).running() as beside:
        reader = beside.services.get(CredentialReader)

        async def hears() -> bool:
            return beside.changes.is_listening

        await eventually(hears)
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
