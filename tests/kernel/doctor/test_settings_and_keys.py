"""Protects the doctor's checks of settings, the master key and API keys."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ENVIRONMENT, GatewayConfig
from mpesa_gateway.doctor.api_keys import check_api_keys
from mpesa_gateway.doctor.master_key import check_master_key
from mpesa_gateway.doctor.settings import check_settings
from mpesa_gateway.security.master_key_rotation import KERNEL_SEALED, reseal
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.testing.serving import running_gateway
from mpesa_gateway_payments.scopes import PAYMENTS_READ
from tests.looking import levels, merchant_in, only_merchant, results_of_check


def gateway_of(values: dict[str, Any], **changes: Any) -> Gateway:
    """Return a gateway that has not been started, with other settings."""
    return Gateway(GatewayConfig.from_values(values | changes))


async def test_look_at_settings_in_order_reports_ok(values: dict[str, Any]) -> None:
    found = await results_of_check(check_settings, gateway_of(values), is_live=True)
    assert levels(found) == {f"settings.{name}": "ok" for name in ("readable", "daraja", "logs")}
    assert "payments" in found["settings.readable"].text


@pytest.mark.parametrize(
    ("changes", "live", "sandbox"),
    [
        ({"daraja": {"live_url": "https://daraja.example.com"}}, "problem", "note"),
        ({"daraja": {"sandbox_url": "http://127.0.0.1:9/simulator"}}, "note", "note"),
    ],
)
async def test_look_at_settings_with_another_daraja_is_reported(
    values: dict[str, Any], changes: Any, live: str, sandbox: str
) -> None:
    gateway = gateway_of(values, **changes)
    assert (await results_of_check(check_settings, gateway, is_live=True))["settings.daraja"].level == live
    assert (await results_of_check(check_settings, gateway))["settings.daraja"].level == sandbox


@pytest.mark.parametrize(
    ("level", "live", "sandbox"),
    [("debug", "warning", "note"), ("error", "warning", "warning"), ("warning", "ok", "ok")],
)
async def test_look_at_settings_with_an_unsuitable_log_level_is_reported(
    values: dict[str, Any], level: str, live: str, sandbox: str
) -> None:
    gateway = gateway_of(values, logs={"level": level})
    assert (await results_of_check(check_settings, gateway, is_live=True))["settings.logs"].level == live
    assert (await results_of_check(check_settings, gateway))["settings.logs"].level == sandbox


async def test_look_at_master_key_file_readable_only_by_us_is_ok(values: dict[str, Any], tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    ring.write_text(generate())
    ring.chmod(0o600)
    values["security"] = {"master_key_file": str(ring)}
    async with running_gateway(values) as (gateway, _):
        found = await results_of_check(check_master_key, gateway, is_live=True)
        assert levels(found) == {"master_key.source": "ok", "master_key.sealed": "ok", "master_key.backup": "note"}
        assert "backups" in (found["master_key.backup"].fix or "")
        assert "master_key.backup" not in await results_of_check(check_master_key, gateway)
        ring.chmod(0o640)
        found = await results_of_check(check_master_key, gateway, is_live=True)
        assert (found["master_key.source"].level, found["master_key.source"].fix) == ("problem", f"chmod 600 {ring}")
        assert (await results_of_check(check_master_key, gateway))["master_key.source"].level == "warning"


async def test_look_at_master_key_in_settings_or_environment_is_reported(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(values) as (gateway, _):
        assert (await results_of_check(check_master_key, gateway))["master_key.source"].level == "warning"
        monkeypatch.setenv(ENVIRONMENT + "SECURITY__MASTER_KEY", values["security"]["master_key"])
        found = await results_of_check(check_master_key, gateway)
        assert found["master_key.source"].level == "note"
        assert values["security"]["master_key"] not in str(found)


async def test_look_at_master_key_old_keys_are_reported_while_used_and_after(values: dict[str, Any]) -> None:
    old = values["security"]["master_key"]
    async with running_gateway(values) as (gateway, _):
        old_id = gateway.sealer.key_id
    values["security"] = {"master_key": generate(), "old_master_keys": [old]}
    async with running_gateway(values) as (gateway, _):
        found = await results_of_check(check_master_key, gateway)
        assert found["master_key.sealed"].level == "note"
        assert "keys rotate" in (found["master_key.sealed"].fix or "")
        assert "master_key.old" not in found
        await reseal(gateway.db, gateway.sealer, KERNEL_SEALED)
        found = await results_of_check(check_master_key, gateway)
        assert found["master_key.sealed"].level == "ok"
        assert (found["master_key.old"].level, old_id in found["master_key.old"].text) == ("note", True)


async def test_look_at_master_key_with_unopenable_secrets_is_a_problem(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, _):
        await gateway.db.execute("UPDATE gateway_secret SET sealed = 'v1.0123456789ab.AAAA' WHERE name = 'cursors'")
        found = (await results_of_check(check_master_key, gateway))["master_key.sealed"]
    assert (found.level, "0123456789ab" in found.text) == ("problem", True)


async def test_look_at_api_keys_reports_missing_and_expiring_keys(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, _):
        made = await gateway.merchants.create("Shop", actor="test")
        sandbox = await only_merchant(gateway)

        async def level(**more: Any) -> str:
            found = await results_of_check(check_api_keys, gateway, **({"merchant": sandbox} | more))
            return found["merchant.api_keys"].level.value

        async def create(**more: Any) -> str:
            key, _ = await gateway.api_keys.create(
                made.merchant_id, name="k", scopes=(PAYMENTS_READ,), env="sandbox", actor="test", **more
            )
            return key.key_id

        assert await level() == "note"
        soon = await create(expires_at=gateway.clock.now() + timedelta(days=3))
        assert await level() == "warning"
        await create()
        assert await level() == "ok"
        assert await level(now=gateway.clock.now() + timedelta(days=4)) == "ok"
        live = merchant_in("live", gateway)
        assert await level(merchant=live) == "problem"
        await gateway.api_keys.revoke(made.merchant_id, soon, actor="test")
        assert await level() == "ok"
