"""Protects the payment commands: lists, details and queries, with the payer's number masked."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mpesa_gateway.standalone.settings import write_config
from mpesa_gateway.testing.serving import INITIATED, Api, gateway_values, running_gateway, shop
from tests.forking import forks


@asynccontextmanager
async def gateway_with_cli(
    database_url: str, valkey_url: str, folder: Path
) -> AsyncGenerator[tuple[Api, Callable[..., Any]]]:
    """A running gateway with one merchant: its API client and a function that runs commands."""
    # Commands start slowly: no prompt may end by itself before they run.
    values = gateway_values(database_url, valkey_url)
    values["simulator"] = values.get("simulator", {}) | {"prompt_timeout": 600}
    async with (
        running_gateway(values) as (gateway, base),
        shop(gateway, base, is_configured=False) as api,
    ):
        (await api.call("PUT", "/v1/merchant/providers", INITIATED)).data  # noqa: B018 - raises when refused
        write_config(folder / "gateway.toml", gateway.config)

        async def run_cli(*words: str) -> tuple[int, str, str]:
            environ = {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}
            command = ("--config", str(folder / "gateway.toml"), *words)
            done = await asyncio.to_thread(forks.run, command, folder=folder, environ=environ, reads="", patience=60)
            return done.returncode, done.stdout.strip(), done.stderr.strip()

        yield api, run_cli


async def test_payments_commands_list_show_and_query_payments(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with gateway_with_cli(database_url, valkey_url, tmp_path) as (api, run_cli):
        paid = (await api.pay("254700000000", key="one", reference="ORDER 1")).data
        await api.settled(paid["id"], "completed")
        waiting = (await api.pay("254700000006", key="two")).data

        status, out, err = await run_cli("payments", "list", "--json")
        assert status == 0, err
        listed = {one["id"]: one for one in json.loads(out)}
        assert {one: listed[one]["status"] for one in listed} == {paid["id"]: "completed", waiting["id"]: "pending"}
        assert "254700000000" not in out
        assert listed[paid["id"]]["phone"] == "2547****000"

        status, out, err = await run_cli("payments", "list", "--status", "completed")
        assert status == 0, err
        heading, line = out.splitlines()
        assert heading.split("\t")[0] == "payment_id"
        assert line.split("\t")[2:5] == ["completed", "500.00", "2547****000"]

        status, out, _ = await run_cli("payments", "show", paid["id"])
        assert status == 0
        assert "completed by callback" in out
        assert "254700000000" not in out
        status, out, _ = await run_cli("payments", "show", paid["id"], "--json")
        assert [step["cause"] for step in json.loads(out)["timeline"]][-1] == "callback"

        status, out, err = await run_cli("payments", "query", waiting["id"], "--json")
        assert (status, json.loads(out)) == (0, {"payment_id": waiting["id"], "status": "pending"}), err
        status, _, err = await run_cli("payments", "query", paid["id"])
        assert status == 1
        assert "only a pending or expired payment" in err
        status, _, err = await run_cli("payments", "show", "pay_nothing")
        assert (status, "no such payment" in err) == (1, True)


async def test_payments_commands_mask_the_number_in_every_field(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    phone = "254711000001"
    async with gateway_with_cli(database_url, valkey_url, tmp_path) as (api, run_cli):
        metadata = {"payer": phone, phone: "0711000001"}
        made = (await api.pay(phone, 5, key=f"order-{phone}", reference=phone, metadata=metadata)).data
        assert made["provider_ref"].endswith(phone[3:])
        await api.settled(made["id"])
        for words in (("list",), ("list", "--json"), ("show", made["id"]), ("show", made["id"], "--json")):
            status, out, err = await run_cli("payments", *words)
            assert (status, made["id"] in out) == (0, True), err
            assert "711000001" not in out, words


async def test_reconcile_command_recovers_a_lost_payment(database_url: str, valkey_url: str, tmp_path: Path) -> None:
    async with gateway_with_cli(database_url, valkey_url, tmp_path) as (api, run_cli):
        (await api.call("POST", "/v1/payments/mpesa/pull/register")).data  # noqa: B018 - raises when refused
        payment = (await api.pay("254700000007", key="silent")).data
        status, out, err = await run_cli("reconcile", "--json")
        assert status == 0, err
        run = json.loads(out)
        assert (run["status"], run["cause"], run["recovered"]) == ("completed", "manual", 1)
        assert (await api.settled(payment["id"]))["status"] == "completed"
        status, out, _ = await run_cli("reconcile")
        assert (status, "1 already known" in out) == (0, True)
        status, _, err = await run_cli("reconcile", "--start", "2020-01-01")
        assert status == 1
        assert "48 hours" in err
