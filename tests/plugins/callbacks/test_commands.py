"""Protects the callback commands: phone numbers are masked, and each callback is replayed once."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.standalone.settings import write_config
from mpesa_gateway.testing.serving import Api, running_gateway, shop
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from tests.forking import forks
from tests.plugins.callbacks.test_callbacks import ASKS, body


@asynccontextmanager
async def gateway_and_terminal(
    values: dict[str, Any], folder: Path
) -> AsyncGenerator[tuple[Gateway, Api, Callable[..., Any]]]:
    """Yields a running gateway, a client of its one merchant and a function that runs a command."""
    values["callbacks"] = {"max_body_bytes": 70_000, "enforce_allowlist": "never"}
    values["worker"] = {"in_process": False}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        write_config(folder / "gateway.toml", gateway.config)

        async def run_command(*words: str, reads: str = "") -> tuple[int, str, str]:
            done = await asyncio.to_thread(
                forks.run,
                ("--config", str(folder / "gateway.toml"), "callbacks", *words),
                folder=folder,
                environ={name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")},
                reads=reads,
                patience=60.0,
            )
            return done.returncode, done.stdout.strip(), done.stderr.strip()

        yield gateway, api, run_command


@dataclass
class Terminal:
    """Runs commands at a gateway that has four callbacks."""

    run_command: Callable[..., Any]
    made: str
    waiting: str
    large: str
    unread: str
    applied: str

    async def read_json(self, *words: str, status: int = 0) -> Any:
        """Returns the JSON that a command prints. Raises AssertionError for another exit status."""
        returned, out, err = await self.run_command(*words, "--json")
        assert returned == status, (out, err)
        return json.loads(out)


async def store_callbacks(gateway: Gateway, api: Api, run_command: Callable[..., Any]) -> Terminal:
    """Store a waiting, an oversized, an unreadable and an applied callback."""
    dispatcher = gateway.services.get(CallbackDispatcher)
    made, paid = (await api.pay(ASKS, key="a")).data, (await api.pay(ASKS, key="b")).data
    addresses = [
        dispatcher.url_for("stk", env="sandbox", merchant_id=each["merchant_id"], subject_id=each["id"])
        for each in (made, paid)
    ]
    own, other = (url[url.index("/v1/cb") :] for url in addresses)
    assert (await api.call("POST", other, body(paid["provider_ref"]))).status == 200
    assert (await api.call("POST", own, raw=b"nothing from 254700000020")).status == 422
    assert (await api.call("POST", own, raw=b" " * 70_001)).status == 413
    assert (await api.call("POST", "/v1/webhooks/mpesa", body("ws_CO_23112026101500700000020", 1032))).status == 200
    _, out, _ = await run_command("list", "--json")
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["waiting", "refused: size", "refused: shape", "applied"]
    assert [row["subject_id"] for row in rows] == [None, made["id"], made["id"], paid["id"]]
    return Terminal(run_command, made["id"], *(row["id"] for row in rows))


async def test_callbacks_list_filters_by_state(values: dict[str, Any], tmp_path: Path) -> None:
    async with gateway_and_terminal(values, tmp_path) as (gateway, api, run_command):
        terminal = await store_callbacks(gateway, api, run_command)
        waiting, large, unread = terminal.waiting, terminal.large, terminal.unread
        assert [row["id"] for row in await terminal.read_json("list", "--unread")] == [waiting, large, unread]
        assert [row["id"] for row in await terminal.read_json("list", "--unread", "--limit", "1")] == [waiting]
        # A callback without an env is listed in both.
        assert [row["id"] for row in await terminal.read_json("list", "--live")] == [waiting]
        for words in (("--kind", "status"), ("--since", "2100-01-01"), ("--until", "2020-01-01")):
            assert await terminal.read_json("list", *words) == []
        status, out, _ = await run_command("list")
        assert (status, out.splitlines()[0].split("\t")[0], len(out.splitlines())) == (0, "id", 5)
        assert (await run_command("list", "--since", "yesterday"))[0] == 2

        for callback_id in (terminal.applied, unread, waiting):
            status, out, err = await run_command("show", callback_id)
            assert (status, "00000020" in out, "****020" in out) == (0, False, True), (out, err)
        assert (await terminal.read_json("show", unread, "--unmasked"))["body"] == "nothing from 254700000020"
        assert await cli_actions(gateway) == {"callback.shown": 1}
        shown = await terminal.read_json("show", large)
        assert (shown["truncated"]["length"], shown["replayable"][:22]) == (70_001, "it was not kept whole:")
        assert (await run_command("show", "cbk_01jd0000000000000000000000"))[0] == 1


async def test_callbacks_replay_applies_each_once(values: dict[str, Any], tmp_path: Path) -> None:
    async with gateway_and_terminal(values, tmp_path) as (gateway, api, run_command):
        terminal = await store_callbacks(gateway, api, run_command)
        waiting, large, unread = terminal.waiting, terminal.large, terminal.unread
        # A dry run and an unanswered question change nothing.
        would = await terminal.read_json("replay", "--unread", "--dry-run")
        assert [row["would"][:4] for row in would] == ["be r", "not:", "be r"]
        status, _, err = await run_command("replay", unread)
        assert (status, "You vouch that 1 refused callback was sent by Safaricom" in err) == (1, True), err
        assert await cli_actions(gateway) == {}

        handle = (await api.call("GET", f"/v1/payments/{terminal.made}")).data["provider_ref"]
        readable = json.dumps(body(handle, receipt="TKN4A1B2C4"))
        await gateway.db.execute("UPDATE refused_callback SET original = $2 WHERE refused_id = $1", unread, readable)
        status, _, err = await run_command("replay", "--live", unread, "--yes")
        assert (status, "is of sandbox: leave --live out" in err) == (1, True), err
        first = await terminal.read_json("replay", "--unread", "--yes")
        assert {row["id"]: row["outcome"].partition(":")[0] for row in first} == {
            waiting: "waiting",
            unread: "applied",
            large: "not",
        }
        assert (await api.settled(terminal.made))["receipt"] == "TKN4A1B2C4"
        again = await terminal.read_json("replay", unread, terminal.applied, "--yes")
        assert [row["outcome"] for row in again] == ["unchanged: applied"] * 2
        assert await gateway.db.fetchval("SELECT count(*) FROM callback") == 3
        refused = await terminal.read_json("replay", large, status=1)
        assert refused[0]["outcome"] == "not: it was not kept whole: it is larger than is taken"
        for words in ((), (unread, "--unread"), (unread, "--kind", "stk"), ("--since", "2026-01-01")):
            assert (await run_command("replay", *words))[0] == 2, words
        assert await cli_actions(gateway) == {"callback.replayed": 2, "callback.offered": 2}


async def cli_actions(gateway: Gateway) -> dict[str, int]:
    """Returns the count of each audit action of the command line."""
    entries = (await gateway.audit.page(100, None, None, None)).rows
    return dict(Counter(entry.action for entry in entries if entry.actor.startswith("cli:")))
