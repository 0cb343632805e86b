"""Callbacks from the command line: listed, shown with phone numbers masked, and replayed once."""

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
async def desk(values: dict[str, Any], folder: Path) -> AsyncGenerator[tuple[Gateway, Api, Callable[..., Any]]]:
    """A running gateway with one merchant, and a terminal beside it."""
    values["callbacks"] = {"max_body_bytes": 70_000, "enforce_allowlist": "never"}
    values["worker"] = {"in_process": False}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        write_config(folder / "gateway.toml", gateway.config)

        async def types(*words: str, reads: str = "") -> tuple[int, str, str]:
            done = await asyncio.to_thread(
                forks.run,
                ("--config", str(folder / "gateway.toml"), "callbacks", *words),
                folder=folder,
                environ={name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")},
                reads=reads,
                patience=60.0,
            )
            return done.returncode, done.stdout.strip(), done.stderr.strip()

        yield gateway, api, types


@dataclass
class Terminal:
    """Where an operator types, beside a gateway that has four callbacks."""

    types: Callable[..., Any]
    made: str
    waiting: str
    large: str
    unread: str
    applied: str

    async def gets(self, *words: str, status: int = 0) -> Any:
        """What a command prints as JSON."""
        returned, out, err = await self.types(*words, "--json")
        assert returned == status, (out, err)
        return json.loads(out)


async def kept(gateway: Gateway, api: Api, types: Callable[..., Any]) -> Terminal:
    """One callback of each kind: waiting, too large, unreadable, applied."""
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
    _, out, _ = await types("list", "--json")
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["waiting", "refused: size", "refused: shape", "applied"]
    assert [row["subject_id"] for row in rows] == [None, made["id"], made["id"], paid["id"]]
    return Terminal(types, made["id"], *(row["id"] for row in rows))


async def test_callbacks_are_listed_by_what_became_of_them(values: dict[str, Any], tmp_path: Path) -> None:
    async with desk(values, tmp_path) as (gateway, api, types):
        terminal = await kept(gateway, api, types)
        waiting, large, unread = terminal.waiting, terminal.large, terminal.unread
        assert [row["id"] for row in await terminal.gets("list", "--unread")] == [waiting, large, unread]
        assert [row["id"] for row in await terminal.gets("list", "--unread", "--limit", "1")] == [waiting]
        # One without an env may be of either.
        assert [row["id"] for row in await terminal.gets("list", "--live")] == [waiting]
        for words in (("--kind", "status"), ("--since", "2100-01-01"), ("--until", "2020-01-01")):
            assert await terminal.gets("list", *words) == []
        status, out, _ = await types("list")
        assert (status, out.splitlines()[0].split("\t")[0], len(out.splitlines())) == (0, "id", 5)
        assert (await types("list", "--since", "yesterday"))[0] == 2

        for callback_id in (terminal.applied, unread, waiting):
            status, out, err = await types("show", callback_id)
            assert (status, "00000020" in out, "****020" in out) == (0, False, True), (out, err)
        assert (await terminal.gets("show", unread, "--unmasked"))["body"] == "nothing from 254700000020"
        assert await acted(gateway) == {"callback.shown": 1}
        shown = await terminal.gets("show", large)
        assert (shown["truncated"]["length"], shown["replayable"][:22]) == (70_001, "it was not kept whole:")
        assert (await types("show", "cbk_01jd0000000000000000000000"))[0] == 1


async def test_callbacks_are_replayed_once_each(values: dict[str, Any], tmp_path: Path) -> None:
    async with desk(values, tmp_path) as (gateway, api, types):
        terminal = await kept(gateway, api, types)
        waiting, large, unread = terminal.waiting, terminal.large, terminal.unread
        # A summary changes nothing, and neither does a terminal at which nobody answers.
        would = await terminal.gets("replay", "--unread", "--dry-run")
        assert [row["would"][:4] for row in would] == ["be r", "not:", "be r"]
        status, _, err = await types("replay", unread)
        assert (status, "You vouch that 1 refused callback was sent by Safaricom" in err) == (1, True), err
        assert await acted(gateway) == {}

        handle = (await api.call("GET", f"/v1/payments/{terminal.made}")).data["provider_ref"]
        readable = json.dumps(body(handle, receipt="TKN4A1B2C4"))
        await gateway.db.execute("UPDATE refused_callback SET original = $2 WHERE refused_id = $1", unread, readable)
        status, _, err = await types("replay", "--live", unread, "--yes")
        assert (status, "is of sandbox: leave --live out" in err) == (1, True), err
        first = await terminal.gets("replay", "--unread", "--yes")
        assert {row["id"]: row["outcome"].partition(":")[0] for row in first} == {
            waiting: "waiting",
            unread: "applied",
            large: "not",
        }
        assert (await api.settled(terminal.made))["receipt"] == "TKN4A1B2C4"
        again = await terminal.gets("replay", unread, terminal.applied, "--yes")
        assert [row["outcome"] for row in again] == ["unchanged: applied"] * 2
        assert await gateway.db.fetchval("SELECT count(*) FROM callback") == 3
        refused = await terminal.gets("replay", large, status=1)
        assert refused[0]["outcome"] == "not: it was not kept whole: it is larger than is taken"
        for words in ((), (unread, "--unread"), (unread, "--kind", "stk"), ("--since", "2026-01-01")):
            assert (await types("replay", *words))[0] == 2, words
        assert await acted(gateway) == {"callback.replayed": 2, "callback.offered": 2}


async def acted(gateway: Gateway) -> dict[str, int]:
    """What was done from the terminal."""
    entries = (await gateway.audit.page(100, None, None, None)).rows
    return dict(Counter(entry.action for entry in entries if entry.actor.startswith("cli:")))
