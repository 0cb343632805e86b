"""Protects stored credentials: validated, sealed, shown masked and separate by merchant and env."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mpesa_gateway.clock import SetClock
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.security.sealing import UnsealError
from mpesa_gateway.testing.serving import SANDBOX, Api, gateway_values, running_gateway, shop
from mpesa_gateway_credentials.reader import SECRET_FIELDS, CredentialReader
from mpesa_gateway_credentials.schemas import MpesaFields
from mpesa_gateway_credentials.service import CredentialStore
from tests.certificates import Issued, issue
from tests.conftest import Harness
from tests.daraja import scripted_daraja
from tests.stored import change_credentials

PROVIDERS = "/v1/merchant/providers"
VERIFY = f"{PROVIDERS}/mpesa/verify"

FULL: dict[str, Any] = SANDBOX["mpesa"] | {
    "consumer_key": "key-number-one-AAAA",
    "consumer_secret": "secret-number-one-BBBB",
    "security_credential": "security-credential-CCCC",
    "till_number": "5123456",
    "initiator": "testapi",
    "nominated_number": "0711 000 321",
    "account_reference": "SHOP 1",
}
"""Every field except the two URLs."""


async def put(api: Api, **changes: Any) -> Any:
    """Store complete credentials with changes. A change to None omits the field."""
    fields = {name: value for name, value in (FULL | changes).items() if value is not None}
    return await api.call("PUT", PROVIDERS, {"provider": "mpesa", "mpesa": fields})


async def shown_credentials(api: Api) -> dict[str, Any]:
    """Returns the credentials as the API shows them."""
    (provider,) = (await api.call("GET", PROVIDERS)).data
    assert provider["provider"] == "mpesa"
    found: dict[str, Any] = provider["config_summary"]
    return found


async def test_credentials_stored_are_shown_with_the_last_four_characters_of_secrets(harness: Harness) -> None:
    answer = await put(harness.api)
    assert (answer.status, answer.data["provider"]) == (200, "mpesa")
    assert answer.data["config_summary"] == await shown_credentials(harness.api)
    assert await shown_credentials(harness.api) == {
        "env": "sandbox",
        "consumer_key": "****AAAA",
        "consumer_secret": "****BBBB",
        "passkey": "****c919",
        "security_credential": "****CCCC",
        "shortcode": "174379",
        "till_number": "5123456",
        "initiator": "testapi",
        "nominated_number": "2547****321",
        "account_reference": "SHOP 1",
    }


async def test_secret_of_eight_characters_is_masked_entirely(harness: Harness) -> None:
    await put(harness.api, consumer_secret="12345678")
    assert (await shown_credentials(harness.api))["consumer_secret"] == "****"


async def test_secrets_are_in_no_answer_log_line_audit_entry_or_row(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [
        await put(harness.api),
        await put(harness.api, shortcode="1"),
        await harness.api.call("GET", PROVIDERS),
        await harness.api.call("POST", VERIFY),
        await harness.api.call("GET", "/v1/merchant/me"),
        await harness.api.call("GET", "/v1/audit/logs"),
        await harness.api.call("DELETE", f"{PROVIDERS}/mpesa"),
        await put(harness.api),
    ]
    db = harness.gateway.db
    tables = await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'mpesa'")
    rows = [
        dict(row)
        for table in tables
        # The simulator plays Safaricom and stores the consumer keys that asked for a token.
        if not table["tablename"].startswith("sim_")
        for row in await db.fetch(f'SELECT * FROM "{table["tablename"]}"')  # noqa: S608 - a name from the catalogue
    ]
    assert len(rows) > 10
    logged = "".join(capsys.readouterr())
    assert PROVIDERS in logged
    written = str([answer.body for answer in answers]) + str(rows) + logged
    for field in SECRET_FIELDS:
        assert FULL[field] not in written, field
        assert FULL[field][:-4] not in written, field


async def test_secret_moved_to_another_column_does_not_open(harness: Harness) -> None:
    await put(harness.api, consumer_secret=FULL["consumer_key"])
    row = dict(await harness.gateway.db.fetchrow("SELECT * FROM shortcode WHERE is_default") or {})
    assert len({row[field] for field in SECRET_FIELDS}) == len(SECRET_FIELDS)
    assert (row["store_number"], row["nominated_number"]) == ("174379", "254711000321")
    await harness.gateway.db.execute("UPDATE shortcode SET consumer_secret = consumer_key")
    await change_credentials(harness.gateway, name="changed")
    assert (await harness.api.call("GET", PROVIDERS)).status == 500


async def test_secret_of_another_shortcode_or_env_does_not_open(harness: Harness) -> None:
    """The sealed bytes are bound to merchant, env and number."""
    sealer = harness.gateway.sealer
    await put(harness.api, till_number=None)
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    row = dict(await harness.gateway.db.fetchrow("SELECT * FROM shortcode WHERE is_default") or {})
    assert sealer.open(row["passkey"], aad=(merchant_id, "mpesa", "sandbox", "174379", "passkey"))
    for env, number in (("live", "174379"), ("sandbox", "5123456"), ("sandbox", "174378")):
        with pytest.raises(UnsealError):
            sealer.open(row["passkey"], aad=(merchant_id, "mpesa", env, number, "passkey"))


async def test_put_of_credentials_again_replaces_all_fields(harness: Harness) -> None:
    await put(harness.api)
    await put(harness.api, consumer_key="another-key-DDDD", initiator=None, security_credential=None)
    found = await shown_credentials(harness.api)
    assert (found["consumer_key"], found["till_number"]) == ("****DDDD", "5123456")
    assert {"initiator", "security_credential"} & set(found) == set()
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM shortcode WHERE retired_at IS NULL") == 1


async def test_credentials_removed_refuse_verification_and_payments(harness: Harness) -> None:
    removed = (await harness.api.call("DELETE", f"{PROVIDERS}/mpesa")).data
    assert removed == {"deleted": True, "shortcode": "174379", "open": {"payments": 0, "refunds": 0}}
    assert (await harness.api.call("GET", PROVIDERS)).data == []
    assert (await harness.api.call("GET", "/v1/merchant/me")).data["providers"] == []
    for refused in (await harness.api.call("POST", VERIFY), await harness.api.pay("254711000001", key="a")):
        assert (refused.status, refused.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")
        assert "PUT /v1/merchant/providers" in refused.error["message"]
        assert re.search(
            r"enter them at /ops/credentials/mer_\w{26}/edit\?env=(sandbox|live),", refused.error["message"]
        )
    again = await harness.api.call("DELETE", f"{PROVIDERS}/mpesa")
    assert (again.status, again.error["code"]) == (404, "NOT_FOUND")
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM shortcode WHERE retired_at IS NULL") == 0
    assert (await put(harness.api)).status == 200


async def test_verify_with_wrong_keys_returns_the_fault_and_its_fix(harness: Harness) -> None:
    await put(harness.api)
    right = (await harness.api.call("POST", VERIFY)).data
    assert right["ok"] is True
    assert [(check["name"], check["ok"]) for check in right["checks"]] == [("credentials", True)]
    await put(harness.api, consumer_key="wrong-key-of-a-shop")
    wrong = (await harness.api.call("POST", VERIFY)).data
    (check,) = wrong["checks"]
    assert (wrong["ok"], check["ok"], check["code"]) == (False, False, "400.008.01")
    assert check["message"]
    assert check["mitigation"]
    await put(harness.api)
    assert (await harness.api.call("POST", VERIFY)).data["ok"] is True
    made = await harness.api.pay("254711000001", key="after")
    await harness.api.settled(made.data["id"], "completed")


async def test_verify_with_daraja_unreachable_is_503(values: dict[str, Any]) -> None:
    values["daraja"] = {"sandbox_url": "http://127.0.0.1:9"}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        answer = await api.call("POST", VERIFY)
        assert (answer.status, answer.error["code"], answer.error["retryable"]) == (503, "PROVIDER_UNAVAILABLE", True)
        assert int(answer.headers["Retry-After"]) > 0


async def test_put_with_bad_fields_names_each_and_stores_nothing(harness: Harness) -> None:
    before = await shown_credentials(harness.api)
    bad: dict[str, Any] = {
        "env": "test",
        "consumer_key": "short",
        "consumer_secret": "with a space",
        "passkey": "naïve-passkey",
        "security_credential": "x" * 1025,
        "shortcode": "12",
        "till_number": "12345678",
        "initiator": "a\nb",
        "nominated_number": "12",
        "account_reference": "x" * 13,
        "colour": "red",
    }
    answer = await put(harness.api, **bad)
    assert (answer.status, answer.error["code"]) == (422, "VALIDATION_ERROR")
    assert {problem["field"] for problem in answer.body["errors"]} == {f"mpesa.{name}" for name in bad}
    for secret in ("with a space", "naïve", "x" * 1025):
        assert secret not in str(answer.body)
    assert await shown_credentials(harness.api) == before


async def test_put_with_missing_or_mistyped_fields_names_each(harness: Harness) -> None:
    answer = await harness.api.call("PUT", PROVIDERS, {"provider": "cash", "mpesa": {"env": 5, "shortcode": 174379}})
    assert answer.status == 422
    fields = {problem["field"] for problem in answer.body["errors"]}
    assert fields == {"provider", *(f"mpesa.{name}" for name in FULL if name in required_fields())} | {
        "mpesa.shortcode"
    }
    bodies: list[dict[str, Any]] = [{}, {"provider": "mpesa"}, {"mpesa": None}, {"provider": "mpesa", "mpesa": []}]
    for body in bodies:
        answer = await harness.api.call("PUT", PROVIDERS, body)
        assert answer.status == 422
        assert "mpesa" in {problem["field"] for problem in answer.body["errors"]}


def required_fields() -> set[str]:
    return {"env", "consumer_key", "consumer_secret", "passkey", "shortcode"}


async def test_put_with_bad_urls_and_env_names_each(harness: Harness) -> None:
    answer = await put(harness.api, env="live", result_url="https://elsewhere.example/x", timeout_url="http://[bad/")
    assert answer.status == 422
    assert {problem["field"] for problem in answer.body["errors"]} == {
        "mpesa.env",
        "mpesa.result_url",
        "mpesa.timeout_url",
    }


async def test_put_with_an_api_key_of_the_other_env_is_refused(harness: Harness) -> None:
    answer = await put(harness.api, env="live")
    assert (answer.status, answer.error["field"]) == (422, "mpesa.env")
    assert "sk_live_" in answer.error["message"]
    async with shop(harness.gateway, harness.base, env="live", is_configured=False) as live:
        answer = await put(live)
        assert (answer.status, answer.error["field"]) == (422, "mpesa.env")
        assert "sk_test_" in answer.error["message"]
        answer = await put(live, env="live")
        assert [problem["field"] for problem in answer.body["errors"]] == ["mpesa.env"]
        assert "https" in str(answer.body)
        assert (await live.call("GET", PROVIDERS)).data == []


async def test_merchant_envs_are_those_with_stored_secrets(database_url: str, valkey_url: str) -> None:
    plugins = ["credentials", "callbacks", "transactions", "payments", "webhooks"]
    values = gateway_values(database_url, valkey_url, plugins=plugins, worker={"in_process": False})
    values["public_url"] = "https://pay.example.co.ke"
    clock = SetClock(datetime(2026, 11, 23, 12, tzinfo=UTC))
    async with (
        running_gateway(values, clock=clock) as (gateway, base),
        shop(gateway, base, env="live", is_configured=False) as api,
    ):
        merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
        assert (await gateway.merchants.require(merchant_id)).envs == ()
        assert (await put(api, env="live")).data["config_summary"]["env"] == "live"
        assert (await gateway.merchants.require(merchant_id)).envs == ("live",)
        assert await gateway.merchants.any_live()
        await api.call("DELETE", f"{PROVIDERS}/mpesa")
        # Open payments still need status queries and callbacks.
        assert await gateway.merchants.any_live()
        store = gateway.services.get(CredentialStore)
        clock.advance(timedelta(hours=47))
        assert await store.wipe_retired() == 0
        clock.advance(timedelta(hours=2))
        assert await store.wipe_retired() == 1
        assert not await gateway.merchants.any_live()
        assert (await gateway.merchants.require(merchant_id)).envs == ()
        row = dict(await gateway.db.fetchrow("SELECT * FROM shortcode") or {})
        assert {row[field] for field in SECRET_FIELDS} == {None}


async def test_result_url_outside_our_own_and_the_allowed_hosts_is_refused(values: dict[str, Any]) -> None:
    values["credentials"] = {"allowed_callback_hosts": ["hooks.example.co.ke"]}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        good = [f"{base}/v1/cb/x", "https://hooks.example.co.ke/x", "https://hooks.example.co.ke:8443/x"]
        for url in good:
            assert (await put(api, result_url=url, timeout_url=url)).status == 200, url
            assert (await shown_credentials(api))["result_url"] == url
        bad = [
            "http://hooks.example.co.ke/x",
            "https://example.co.ke/x",
            "https://hooks.example.co.ke.evil.example/x",
            "https://hooks.example.co.ke@evil.example/x",
            "http://127.0.0.1/x",
            "https://hooks.example.co.ke/\nx",
            "https://hooks.example.co.ke/" + "x" * 500,
            "javascript:alert(1)",
            "",
        ]
        for url in bad:
            answer = await put(api, result_url=url)
            assert (answer.status, answer.error["field"]) == (422, "mpesa.result_url"), url


async def test_merchant_me_shows_merchant_key_and_providers(harness: Harness) -> None:
    me = (await harness.api.call("GET", "/v1/merchant/me")).data
    merchant = await harness.gateway.merchants.require(me["id"])
    (key,) = await harness.gateway.api_keys.list(me["id"])
    assert set(me) == {"id", "name", "env", "is_active", "created_at", "key", "providers"}
    assert (me["name"], me["env"], me["is_active"], me["providers"]) == (merchant.name, "sandbox", True, ["mpesa"])
    assert me["key"] == {
        "id": key.key_id,
        "env": "sandbox",
        "scopes": sorted(map(str, harness.gateway.scopes.of_merchants)),
    }
    assert str(harness.api.key) not in str(me)


async def test_credentials_of_another_merchant_are_neither_shown_nor_removed(harness: Harness) -> None:
    await put(harness.api)
    async with shop(harness.gateway, harness.base, is_configured=False) as other:
        assert (await other.call("GET", PROVIDERS)).data == []
        assert (await other.call("DELETE", f"{PROVIDERS}/mpesa")).status == 404
        await put(other, consumer_key="key-of-the-other-EEEE")
        assert (await shown_credentials(other))["consumer_key"] == "****EEEE"
        assert (await shown_credentials(harness.api))["consumer_key"] == "****AAAA"
        await other.call("DELETE", f"{PROVIDERS}/mpesa")
    assert (await shown_credentials(harness.api))["consumer_key"] == "****AAAA"


async def test_credentials_stored_and_removed_are_in_the_audit_log(harness: Harness) -> None:
    await put(harness.api)
    await harness.api.call("DELETE", f"{PROVIDERS}/mpesa")
    entries = (await harness.api.call("GET", "/v1/audit/logs?limit=2")).data
    assert [entry["action"] for entry in entries] == ["credentials.removed", "credentials.stored"]
    detail = {
        "provider": "mpesa",
        "env": "sandbox",
        "shortcode": "5123456",
        "from": "127.0.0.1",
        "retired": "174379",
    }
    assert entries[1]["detail"] == detail
    assert await harness.gateway.audit.verify() > 2


@given(st.text(max_size=30))
def test_shortcode_rule_accepts_five_to_seven_ascii_digits_only(text: str) -> None:
    rule = MpesaFields.RULES["shortcode"]
    if text.isascii() and text.isdigit() and 5 <= len(text) <= 7:
        assert rule(text) == text
    else:
        with pytest.raises(ValueError, match="must be 5 to 7 digits"):
            rule(text)


# -- the initiator's password ---------------------------------------------------------------------------------------


async def test_initiator_password_is_encrypted_for_its_env_and_not_stored(
    values: dict[str, Any], tmp_path: Path
) -> None:
    sandbox, live = issue(tmp_path / "sandbox.cer"), issue(tmp_path / "live.cer")
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    values.pop("simulator")
    values |= {
        "public_url": "https://pay.example.co.ke",
        "daraja": {"sandbox_certificate": str(sandbox.path), "live_certificate": str(live.path)},
    }
    async with (
        running_gateway(values) as (gateway, base),
        shop(gateway, base, is_configured=False) as test_shop,
        shop(gateway, base, env="live", is_configured=False) as live_shop,
    ):
        envs: list[tuple[Api, Env, Issued]] = [(test_shop, "sandbox", sandbox), (live_shop, "live", live)]
        for api, env, issued in envs:
            answer = await put(api, env=env, security_credential=None, initiator_password="Initiator-pw-7")
            assert answer.status == 200, answer.body
            merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
            credentials = await gateway.services.get(CredentialReader).get(merchant_id, env)
            assert credentials.security_credential is not None
            assert issued.decrypt(credentials.security_credential.reveal()) == "Initiator-pw-7"
            shown = answer.data["config_summary"]
            assert shown["security_credential"] == credentials.security_credential.masked
            assert "initiator_password" not in shown
        for table in ("shortcode", "audit_entry", "event"):
            rows = await gateway.db.fetch(f"SELECT * FROM {table}")  # noqa: S608 - a name from this line
            assert "Initiator-pw-7" not in str([dict(row) for row in rows])


async def test_initiator_password_without_a_readable_certificate_is_refused(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["daraja"] = {"sandbox_certificate": str(tmp_path / "a.cer"), "sandbox_url": "http://127.0.0.1:9"}
    async with running_gateway(values) as (gateway, base), shop(gateway, base, is_configured=False) as api:
        for word in ("cannot be read", "is not an X.509 certificate"):
            answer = await put(api, security_credential=None, initiator_password="Initiator-pw-7")
            assert (answer.status, answer.error["field"]) == (422, "mpesa.initiator_password")
            assert word in answer.error["message"]
            assert "Initiator-pw-7" not in str(answer.body)
            (tmp_path / "a.cer").write_text("-----BEGIN CERTIFICATE-----")
        both = await put(api, initiator_password="Initiator-pw-7")
        assert (both.status, both.error["field"]) == (422, "mpesa.initiator_password")
        spaced = await put(api, security_credential=None, initiator_password="with space")
        assert (spaced.status, spaced.error["field"]) == (422, "mpesa.initiator_password")


async def test_initiator_password_with_an_expired_certificate_is_encrypted_and_warned(
    values: dict[str, Any], tmp_path: Path
) -> None:
    issued = issue(tmp_path / "a.cer", since=-4000, days=5)
    values["daraja"] = {"sandbox_certificate": str(issued.path), "sandbox_url": "http://127.0.0.1:9"}
    async with running_gateway(values) as (gateway, base), shop(gateway, base, is_configured=False) as api:
        with capture_logs() as logged:
            answer = await put(api, security_credential=None, initiator_password="Initiator-pw-7")
        assert answer.status == 200, answer.body
        merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
        credentials = await gateway.services.get(CredentialReader).get(merchant_id, "sandbox")
        assert credentials.security_credential is not None
        assert issued.decrypt(credentials.security_credential.reveal()) == "Initiator-pw-7"
        (warned,) = [entry for entry in logged if entry["event"] == "certificate_not_valid_now"]
        assert (warned["log_level"], "expired on" in warned["problem"]) == ("warning", True)
        assert "Initiator-pw-7" not in str(logged)


async def test_requests_of_each_env_go_to_its_own_daraja_only(values: dict[str, Any]) -> None:
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    values.pop("simulator")
    async with scripted_daraja() as sandbox, scripted_daraja() as live:
        values |= {
            "public_url": "https://pay.example.co.ke",
            "daraja": {"sandbox_url": sandbox.base, "live_url": live.base},
        }
        async with (
            running_gateway(values) as (gateway, base),
            shop(gateway, base, is_configured=False) as test_shop,
            shop(gateway, base, env="live", is_configured=False) as live_shop,
        ):
            assert (await put(test_shop)).status == 200
            assert (await put(live_shop, env="live")).status == 200
            for api, mine, other in ((test_shop, sandbox, live), (live_shop, live, sandbox)):
                before = len(other.asked)
                assert (await api.pay("0711000001", key="a")).status == 201
                assert (await api.call("POST", VERIFY)).data["ok"] is True
                assert (await api.call("POST", "/v1/payments/mpesa/check-status/TKN4A1B2C3")).status == 200
                assert (await api.call("POST", "/v1/payments/mpesa/reconcile", {})).data["status"] == "completed"
                assert {name for name, _ in mine.asked} >= {"oauth", "stkpush", "transactionstatus", "pullquery"}
                assert len(other.asked) == before
