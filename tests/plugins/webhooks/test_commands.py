"""Protects the webhooks commands: listen, trigger and replay run as real commands next to the merchant's endpoint."""

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standardwebhooks import Webhook

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import rfc3339
from mpesa_gateway.standalone.settings import write_config
from mpesa_gateway.testing.receiver import Received, Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, Api, eventually, gateway_values, running_gateway, shop
from tests.forking import forks
from tests.identifiers import identifier

PATIENCE = 60.0


@dataclass
class WebhookCli:
    """A running gateway with one merchant, its endpoint, and a developer's program that receives forwarded events."""

    gateway: Gateway
    api: Api
    merchant_id: str
    endpoint: Receiver
    program: Receiver
    config: Path

    async def run(self, *words: str) -> tuple[int, str, str]:
        """Run a command to its end: exit status, output and errors."""
        done = await asyncio.to_thread(
            forks.run,
            ("--config", str(self.config), "webhooks", *words),
            folder=self.config.parent,
            environ=_environ(),
            reads="",
            patience=PATIENCE,
        )
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    async def run_json(self, *words: str) -> Any:
        """Run a command that succeeds; returns its JSON output."""
        status, out, err = await self.run(*words, "--json")
        assert status == 0, err
        return json.loads(out)

    @asynccontextmanager
    async def listen(self, *words: str) -> AsyncGenerator[Process]:
        """Run `webhooks listen` for the length of the block; it is ended by Ctrl-C."""
        process = await self._start("listen", *words)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                assert b"Listening: " in await process.stdout.readline()
                assert b"Signed with whsec_" in await process.stdout.readline()
            yield process
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(PATIENCE):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                # SIGTERM is passed on to the fork, unlike SIGKILL.
                process.terminate()
                await process.wait()

    async def _start(self, *words: str) -> Process:
        command = (str(forks.command() / "mpesa-gateway"), "--config", str(self.config), "webhooks", *words)
        return await asyncio.create_subprocess_exec(*command, env=_environ(), stdout=PIPE, stderr=PIPE)


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}


@pytest.fixture
async def cli(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncGenerator[WebhookCli]:
    """A merchant with an endpoint and credentials for refunds."""
    async with (
        receiving() as endpoint,
        receiving() as program,
        running_gateway(gateway_values(database_url, valkey_url)) as (gateway, base),
        shop(gateway, base, webhook_url=endpoint.url, is_configured=False) as api,
    ):
        (await api.call("PUT", "/v1/merchant/providers", INITIATED)).data  # noqa: B018 - raises when refused
        config = tmp_path / "gateway.toml"
        # As in `up`, the simulator runs in another process than the commands: next to a live merchant it would refuse.
        others = tuple(name for name in gateway.config.plugins if name != "simulator")
        sections = {name: values for name, values in gateway.config.sections.items() if name != "simulator"}
        write_config(config, msgspec.structs.replace(gateway.config, plugins=others, sections=sections))
        (merchant,) = (await gateway.merchants.page(2)).rows
        yield WebhookCli(gateway, api, merchant.merchant_id, endpoint, program, config)


def is_signed(one: Received, secret: str) -> bool:
    """True if the Standard Webhooks library verifies the signature."""
    return bool(Webhook(secret).verify(one.body, one.headers) == one.json)


async def next_line(process: Process) -> str:
    """The next line of output of a listening command."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await process.stdout.readline()).decode().strip()


async def test_listen_forwards_new_events_and_leaves_the_endpoints_deliveries(cli: WebhookCli) -> None:
    before = await cli.run_json("trigger", "payment.completed")
    _, secret, _ = await cli.run("listen", "--print-secret")
    cli.program.answer = lambda one, _: 500 if one.headers["x-event-type"] == "payment.failed" else 201
    async with cli.listen("--forward-to", cli.program.url.removeprefix("http://")) as process:
        paid = await cli.run_json("trigger", "payment.completed")
        failed = await cli.run_json("trigger", "payment.failed")
        shown = [await next_line(process), await next_line(process)]
    for made, line, status in ((paid, shown[0], 201), (failed, shown[1], 500)):
        assert f"{made['type']}  {made['event_id']}  [{status}] " in line
    # Earlier events are not forwarded, and an event that the program refuses is not forwarded again.
    assert [one.headers["webhook-id"] for one in cli.program.received] == [paid["event_id"], failed["event_id"]]
    assert all(is_signed(one, secret) for one in cli.program.received)
    # The endpoint received all three once, signed with its own secret.
    got = await cli.endpoint.wait_for(3)
    assert sorted(one.headers["webhook-id"] for one in got) == sorted(
        made["event_id"] for made in (before, paid, failed)
    )
    assert cli.program.received[0].body in {one.body for one in got}
    assert all("webhook-signature" in one.headers and secret not in str(one.headers) for one in got)
    logged = (await cli.api.call("GET", "/v1/webhooks/logs")).data
    assert {(one["status"], one["attempts"]) for one in logged} == {("delivered", 1)}


async def test_listen_secret_is_stable_and_differs_from_the_endpoints(cli: WebhookCli) -> None:
    status, first, _ = await cli.run("listen", "--print-secret")
    assert (status, first[:6]) == (0, "whsec_")
    assert (await cli.run("listen", "--print-secret"))[1] == first
    rotated = (await cli.api.call("POST", "/v1/merchant/webhook/rotate")).data["webhook_secret"]
    assert rotated != first
    assert (await cli.run("listen", "--print-secret"))[1] == first


async def test_listen_with_events_forwards_these_only(cli: WebhookCli) -> None:
    async with cli.listen("--events", "refund.*, payment.failed", "--forward-to", cli.program.url) as process:
        await cli.run_json("trigger", "payment.completed")
        failed = await cli.run_json("trigger", "payment.failed", "--amount", "77")
        assert failed["event_id"] in await next_line(process)
    assert [one.json["data"]["amount"] for one in cli.program.received] == ["77.00"]


async def test_listen_without_a_program_reports_it_and_continues(cli: WebhookCli) -> None:
    async with cli.listen("--forward-to", "http://127.0.0.1:9/nobody") as process:
        await cli.run_json("trigger", "webhook.test")
        assert "[not delivered] " in await next_line(process)
        await cli.run_json("trigger", "webhook.test")
        assert "[not delivered] " in await next_line(process)


async def test_listen_event_committed_late_is_forwarded_once(cli: WebhookCli) -> None:
    """An event gets its time inside its transaction: later ones can be visible before it."""
    late = identifier("evt", at=cli.gateway.clock.now())
    async with cli.listen("--forward-to", cli.program.url) as process:
        await cli.run_json("trigger", "webhook.test")
        first = await next_line(process)
        await cli.gateway.db.execute(
            "INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, "
            "stored_body) SELECT $1::uuid, kind, merchant_id, env, subject_id, occurred_at - interval '5 seconds', "
            "true, payload, replace(event.body, id_text(event_id), id_text($1)) FROM event WHERE kind = 'webhook.test'",
            late,
        )
        assert late in await next_line(process)
        last = await cli.run_json("trigger", "webhook.test")
        assert last["event_id"] in await next_line(process)
    assert first.split()[2] not in {late, last["event_id"]}
    assert len(cli.program.received) == 3


@pytest.mark.parametrize("kind", ["payment.mismatched", "payment.reversed", "refund.failed", "webhook.test"])
async def test_trigger_publishes_each_event(cli: WebhookCli, kind: str) -> None:
    made = await cli.run_json("trigger", kind)
    (received,) = await cli.endpoint.wait_for(1, kind=kind)
    assert (received.json["id"], received.json["type"]) == (made["event_id"], kind)
    if kind == "webhook.test":
        assert received.json["data"] == {"env": "sandbox", "message": "This is a test. Nothing has been paid."}
    else:
        assert received.json["data"]["payment_id"] == made["subject_id"]
    # The API key of the command is revoked afterwards.
    keys = await cli.gateway.api_keys.list(cli.merchant_id)
    assert all(key.revoked_at is not None for key in keys if key.name == "webhooks trigger")


async def test_trigger_for_a_live_merchant_uses_the_sandbox(cli: WebhookCli) -> None:
    await cli.gateway.db.execute("UPDATE merchant SET envs = '{live,sandbox}'")
    await cli.run_json("trigger", "webhook.test")
    assert await cli.gateway.db.fetchval("SELECT array_agg(env) FROM event") == ["sandbox"]


async def test_trigger_of_a_payment_without_the_simulator_fails(cli: WebhookCli) -> None:
    text = cli.config.read_text().replace("/simulator", "/elsewhere")
    cli.config.write_text(text)
    status, _, err = await cli.run("trigger", "payment.completed")
    assert status == 1
    assert "needs the simulator" in err
    assert await cli.gateway.api_keys.list(cli.merchant_id) != []
    assert await cli.gateway.db.fetchval("SELECT count(*) FROM payment") == 0


async def test_replay_resends_events_by_id_or_since_a_time(cli: WebhookCli) -> None:
    began = cli.gateway.clock.now()
    first = await cli.run_json("trigger", "payment.completed")
    second = await cli.run_json("trigger", "webhook.test")
    await eventually(lambda: _is_delivered(cli, 2))
    assert await cli.run_json("replay", first["event_id"]) == {"replayed": 1, "has_more": False}
    got = await cli.endpoint.wait_for(3)
    assert got[2].headers["webhook-id"] == first["event_id"]
    await eventually(lambda: _is_delivered(cli, 2))
    assert (await cli.run_json("replay", "--since", rfc3339(began)))["replayed"] == 2
    got = await cli.endpoint.wait_for(5)
    assert {one.headers["webhook-id"] for one in got[3:]} == {first["event_id"], second["event_id"]}
    await eventually(lambda: _is_delivered(cli, 2))
    assert (await cli.run_json("replay", "--since", rfc3339(began), "--status", "dead"))["replayed"] == 0
    later = rfc3339(cli.gateway.clock.now() + timedelta(hours=1))
    assert (await cli.run_json("replay", "--since", later))["replayed"] == 0


async def _is_delivered(cli: WebhookCli, count: int) -> bool:
    return bool(await cli.gateway.db.fetchval("SELECT count(*) FROM delivery WHERE status = 'delivered'") == count)


CANNOT: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("listen", "--forward-to", "http://203.0.113.9/hook"), 2, "must be an https address"),
    (("listen", "--forward-to", "https://10.1.2.3/hook"), 2, "--forward-to"),
    (("listen", "--events", "payment.paid"), 2, "payment.completed"),
    (("listen", "--merchant", "mer_nobody"), 1, "no such merchant"),
    (("trigger", "payment.paid"), 2, "payment.completed"),
    (("replay",), 2, "--since"),
    (("replay", "evt_1", "--since", "2026-11-23T08:00:00Z"), 2, "not both"),
    (("replay", "--since", "yesterday"), 2, "2026-11-23T08:00:00Z"),
    (("replay", "evt_nothing"), 1, "no such event"),
)


async def test_invalid_commands_fail_with_a_fix(cli: WebhookCli) -> None:
    for words, status, text in CANNOT:
        done = await cli.run(*words)
        assert (done[0], done[1]) == (status, ""), words
        assert text in " ".join(done[2].replace("│", " ").split())


async def test_trigger_with_several_merchants_needs_the_option(cli: WebhookCli) -> None:
    await cli.gateway.merchants.create("Another", actor="test")
    status, _, err = await cli.run("trigger", "webhook.test")
    assert status == 1
    assert "there are 2 active merchants: name one with --merchant" in err
    assert (await cli.run_json("trigger", "webhook.test", "--merchant", cli.merchant_id))[
        "subject_id"
    ] == cli.merchant_id
