"""Protects sealed secrets: they open only for their purpose, under a ring of keys that can change."""

import secrets
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ConfigError, GatewayConfig, SecurityConfig
from mpesa_gateway.security.master_key_rotation import KERNEL_SEALED, reseal
from mpesa_gateway.security.sealing import Sealer, UnsealError, generate, sealer_for
from mpesa_gateway.testing.serving import running_gateway, shop
from mpesa_gateway_credentials.api import Credentials

OLD, NEW = secrets.token_bytes(32), secrets.token_bytes(32)
AAD = ("mer_1", "mpesa", "passkey")


@given(st.text(max_size=200), st.tuples(st.text(max_size=9), st.text(max_size=9), st.text(max_size=9)))
def test_sealer_opens_for_the_same_purpose_only(text: str, aad: tuple[str, str, str]) -> None:
    sealer = Sealer([NEW])
    sealed = sealer.seal(text, aad=aad)
    assert sealer.open(sealed, aad=aad) == text
    with pytest.raises(UnsealError):
        sealer.open(sealed, aad=(aad[0] + "x", *aad[1:]))
    assert sealer.seal(text, aad=aad) != sealed


def test_sealer_keeps_the_parts_of_a_purpose_apart() -> None:
    sealer = Sealer([NEW])
    with pytest.raises(UnsealError):
        sealer.open(sealer.seal("x", aad=("a", "bc")), aad=("ab", "c"))


def test_sealer_opens_with_an_old_key_and_seals_with_the_new_one() -> None:
    sealed = Sealer([OLD]).seal("x", aad=AAD)
    both = Sealer([NEW, OLD])
    assert both.open(sealed, aad=AAD) == "x"
    assert not both.is_current(sealed)
    assert both.is_current(both.seal("x", aad=AAD))
    with pytest.raises(UnsealError, match="old_master_keys"):
        Sealer([NEW]).open(sealed, aad=AAD)


def test_sealer_reads_a_key_added_to_its_file_later(tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    first, second = generate(), generate()
    file.write_text(first)
    sealer = sealer_for(SecurityConfig(master_key_file=str(file)))
    file.write_text(f"{second}\n{first}\n")
    sealed = sealer_for(SecurityConfig(master_key_file=str(file))).seal("x", aad=AAD)
    assert sealer.open(sealed, aad=AAD) == "x"


@pytest.mark.parametrize("text", ["", "v1", "v1.abc", "v2.abc.xyz", "v1.abc.***", "nonsense"])
def test_sealer_open_of_other_text_raises(text: str) -> None:
    with pytest.raises(UnsealError):
        Sealer([NEW]).open(text, aad=AAD)


@pytest.mark.parametrize("text", ["", "short", "not base64!", "QUJD"])
def test_master_key_that_is_invalid_is_refused(text: str, values: dict[str, Any]) -> None:
    values["security"]["master_key"] = text
    with pytest.raises(ConfigError, match=r"security\.master_key.*keys generate"):
        Gateway(GatewayConfig.from_values(values))


async def test_gateway_start_with_a_missing_or_wrong_master_key_is_refused(values: dict[str, Any]) -> None:
    async with Gateway(GatewayConfig.from_values(values)).running():
        pass
    with pytest.raises(ConfigError, match="there is no master key"):
        Gateway(GatewayConfig.from_values(values | {"security": {}}))
    wrong = Gateway(GatewayConfig.from_values(values | {"security": {"master_key": generate()}}))
    with pytest.raises(ConfigError, match="not the one that this database was sealed with"):
        await wrong.start()


async def test_reseal_makes_the_old_key_unnecessary(values: dict[str, Any]) -> None:
    new = generate()
    async with (
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url="https://shop.example.co.ke/x") as api,
    ):
        key = api.key
        await api.call("POST", "/v1/merchant/webhook/rotate")
    both = values | {"security": {"master_key": new, "old_master_keys": [values["security"]["master_key"]]}}
    async with Gateway(GatewayConfig.from_values(both)).running() as gateway:
        columns = [*KERNEL_SEALED, *(c for plugin in gateway.plugins if plugin.tables for c in plugin.tables.sealed)]
        done = await reseal(gateway.db, gateway.sealer, columns)
        assert done["gateway_secret.sealed"] == 4
        assert done["shortcode.passkey"] == 1
        assert done["webhook_endpoint.secret"] == done["webhook_endpoint.previous_secret"] == 1
        assert set((await reseal(gateway.db, gateway.sealer, columns)).values()) == {0}
    async with running_gateway(values | {"security": {"master_key": new}}) as (gateway, base):
        assert (await gateway.api_keys.authenticate(key)).env == "sandbox"
        merchant_id = (await gateway.api_keys.authenticate(key)).merchant_id
        assert (await gateway.port(Credentials).get(merchant_id, "sandbox")).shortcode == "174379"
