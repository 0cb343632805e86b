"""What developers type: events listened to, triggered and replayed by real commands, beside the merchant's endpoint."""

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
class Desk:
    """A developer's machine: a running gateway with one merchant, its endpoint, and a program of the developer's."""

    gateway: Gateway
    api: Api
    merchant_id: str
    endpoint: Receiver
    program: Receiver
    config: Path

    async def types(self, *words: str) -> tuple[int, str, str]:
        """Run a command to its end: its status, what it printed, what it complained of."""
        done = await asyncio.to_thread(
            forks.run,
            ("--config", str(self.config), "webhooks", *words),
            folder=self.config.parent,
            environ=_environ(),
            reads="",
            patience=PATIENCE,
        )
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    async def gets(self, *words: str) -> Any:
        """What a command that succeeds prints as JSON."""
        status, out, err = await self.types(*words, "--json")
        assert status == 0, err
        return json.loads(out)

    @asynccontextmanager
    async def listening(self, *words: str) -> AsyncGenerator[Process]:
        """`webhooks listen`, from when it listens on, ended by Ctrl-C."""
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
                # It passes this on to the fork, unlike SIGKILL.
                process.terminate()
                await process.wait()

    async def _start(self, *words: str) -> Process:
        command = (str(forks.command() / "mpesa-gateway"), "--config", str(self.config), "webhooks", *words)
        return await asyncio.create_subprocess_exec(*command, env=_environ(), stdout=PIPE, stderr=PIPE)


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}


@pytest.fixture
async def desk(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncGenerator[Desk]:
    """A running gateway, and a merchant with an endpoint and credentials for refunds."""
    async with (
        receiving() as endpoint,
        receiving() as program,
        running_gateway(gateway_values(database_url, valkey_url)) as (gateway, base),
        shop(gateway, base, webhook_url=endpoint.url, is_configured=False) as api,
    ):
        (await api.call("PUT", "/v1/merchant/providers", INITIATED)).data  # noqa: B018 - raises when refused
        config = tmp_path / "gateway.toml"
        # As in `up`, the simulator runs in a process that is not the commands': beside a live merchant it would refuse.
        others = tuple(name for name in gateway.config.plugins if name != "simulator")
        sections = {name: values for name, values in gateway.config.sections.items() if name != "simulator"}
        write_config(config, msgspec.structs.replace(gateway.config, plugins=others, sections=sections))
        (merchant,) = (await gateway.merchants.page(2)).rows
        yield Desk(gateway, api, merchant.merchant_id, endpoint, program, config)


def is_signed(one: Received, secret: str) -> bool:
    """Whether the public library takes it for ours."""
    return bool(Webhook(secret).verify(one.body, one.headers) == one.json)


async def line_of(process: Process) -> str:
    """The next line that a listening command prints."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await process.stdout.readline()).decode().strip()


async def test_events_come_to_the_developers_machine_beside_the_endpoint(desk: Desk) -> None:
    before = await desk.gets("trigger", "payment.completed")
    _, secret, _ = await desk.types("listen", "--print-secret")
    desk.program.answer = lambda one, _: 500 if one.headers["x-event-type"] == "payment.failed" else 201
    async with desk.listening("--forward-to", desk.program.url.removeprefix("http://")) as process:
        paid = await desk.gets("trigger", "payment.completed")
        failed = await desk.gets("trigger", "payment.failed")
        shown = [await line_of(process), await line_of(process)]
    for made, line, status in ((paid, shown[0], 201), (failed, shown[1], 500)):
        assert f"{made['type']}  {made['event_id']}  [{status}] " in line
    # What happened before stays where it is, and what the program refuses is not sent to it again.
    assert [one.headers["webhook-id"] for one in desk.program.received] == [paid["event_id"], failed["event_id"]]
    assert all(is_signed(one, secret) for one in desk.program.received)
    # The endpoint got all three, once each, signed with its own secret: nobody took its deliveries away.
    got = await desk.endpoint.wait_for(3)
    assert sorted(one.headers["webhook-id"] for one in got) == sorted(
        made["event_id"] for made in (before, paid, failed)
    )
    assert desk.program.received[0].body in {one.body for one in got}
    assert all("webhook-signature" in one.headers and secret not in str(one.headers) for one in got)
    logged = (await desk.api.call("GET", "/v1/webhooks/logs")).data
    assert {(one["status"], one["attempts"]) for one in logged} == {("delivered", 1)}


async def test_the_secret_is_the_same_each_time_and_not_the_endpoints(desk: Desk) -> None:
    status, first, _ = await desk.types("listen", "--print-secret")
    assert (status, first[:6]) == (0, "whsec_")
    assert (await desk.types("listen", "--print-secret"))[1] == first
    rotated = (await desk.api.call("POST", "/v1/merchant/webhook/rotate")).data["webhook_secret"]
    assert rotated != first
    assert (await desk.types("listen", "--print-secret"))[1] == first


async def test_only_the_events_that_were_asked_for_come(desk: Desk) -> None:
    async with desk.listening("--events", "refund.*, payment.failed", "--forward-to", desk.program.url) as process:
        await desk.gets("trigger", "payment.completed")
        failed = await desk.gets("trigger", "payment.failed", "--amount", "77")
        assert failed["event_id"] in await line_of(process)
    assert [one.json["data"]["amount"] for one in desk.program.received] == ["77.00"]


async def test_a_program_that_is_not_there_is_said_and_the_next_event_comes(desk: Desk) -> None:
    async with desk.listening("--forward-to", "http://127.0.0.1:9/nobody") as process:
        await desk.gets("trigger", "webhook.test")
        assert "[not delivered] " in await line_of(process)
        await desk.gets("trigger", "webhook.test")
        assert "[not delivered] " in await line_of(process)


async def test_an_event_that_is_committed_late_is_forwarded_once(desk: Desk) -> None:
    """It is stamped inside its transaction: later ones may be seen before it."""
    late = identifier("evt", at=desk.gateway.clock.now())
    async with desk.listening("--forward-to", desk.program.url) as process:
        await desk.gets("trigger", "webhook.test")
        first = await line_of(process)
        await desk.gateway.db.execute(
            "INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, body) "
            "SELECT $1::uuid, kind, merchant_id, env, subject_id, occurred_at - interval '5 seconds', true, payload, "
            "replace(body, id_text(event_id), id_text($1)) FROM event WHERE kind = 'webhook.test'",
            late,
        )
        assert late in await line_of(process)
        last = await desk.gets("trigger", "webhook.test")
        assert last["event_id"] in await line_of(process)
    assert first.split()[2] not in {late, last["event_id"]}
    assert len(desk.program.received) == 3


@pytest.mark.parametrize("kind", ["payment.mismatched", "payment.reversed", "refund.failed", "webhook.test"])
async def test_every_event_can_be_triggered(desk: Desk, kind: str) -> None:
    made = await desk.gets("trigger", kind)
    (told,) = await desk.endpoint.wait_for(1, kind=kind)
    assert (told.json["id"], told.json["type"]) == (made["event_id"], kind)
    if kind == "webhook.test":
        assert told.json["data"] == {"env": "sandbox", "message": "This is a test. Nothing has been paid."}
    else:
        assert told.json["data"]["payment_id"] == made["subject_id"]
    # The key that it was done with opens nothing afterwards.
    keys = await desk.gateway.api_keys.list(desk.merchant_id)
    assert all(key.revoked_at is not None for key in keys if key.name == "webhooks trigger")


async def test_what_is_triggered_for_a_live_merchant_happens_in_the_sandbox(desk: Desk) -> None:
    await desk.gateway.db.execute("UPDATE merchant SET envs = '{live,sandbox}'")
    await desk.gets("trigger", "webhook.test")
    assert await desk.gateway.db.fetchval("SELECT array_agg(env) FROM event") == ["sandbox"]


async def test_payments_are_triggered_with_the_simulator_only(desk: Desk) -> None:
    text = desk.config.read_text().replace("/simulator", "/elsewhere")
    desk.config.write_text(text)
    status, _, err = await desk.types("trigger", "payment.completed")
    assert status == 1
    assert "needs the simulator" in err
    assert await desk.gateway.api_keys.list(desk.merchant_id) != []
    assert await desk.gateway.db.fetchval("SELECT count(*) FROM payment") == 0


async def test_events_are_sent_again_by_their_ids_or_since_a_time(desk: Desk) -> None:
    began = desk.gateway.clock.now()
    first = await desk.gets("trigger", "payment.completed")
    second = await desk.gets("trigger", "webhook.test")
    await eventually(lambda: _is_delivered(desk, 2))
    assert await desk.gets("replay", first["event_id"]) == {"replayed": 1, "has_more": False}
    got = await desk.endpoint.wait_for(3)
    assert got[2].headers["webhook-id"] == first["event_id"]
    await eventually(lambda: _is_delivered(desk, 2))
    assert (await desk.gets("replay", "--since", rfc3339(began)))["replayed"] == 2
    got = await desk.endpoint.wait_for(5)
    assert {one.headers["webhook-id"] for one in got[3:]} == {first["event_id"], second["event_id"]}
    await eventually(lambda: _is_delivered(desk, 2))
    assert (await desk.gets("replay", "--since", rfc3339(began), "--status", "dead"))["replayed"] == 0
    later = rfc3339(desk.gateway.clock.now() + timedelta(hours=1))
    assert (await desk.gets("replay", "--since", later))["replayed"] == 0


async def _is_delivered(desk: Desk, count: int) -> bool:
    return bool(await desk.gateway.db.fetchval("SELECT count(*) FROM delivery WHERE status = 'delivered'") == count)


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


async def test_what_cannot_be_done_is_said_with_its_fix(desk: Desk) -> None:
    for words, status, said in CANNOT:
        done = await desk.types(*words)
        assert (done[0], done[1]) == (status, ""), words
        assert said in " ".join(done[2].replace("│", " ").split())


async def test_several_merchants_are_told_apart(desk: Desk) -> None:
    await desk.gateway.merchants.create("Another", actor="test")
    status, _, err = await desk.types("trigger", "webhook.test")
    assert status == 1
    assert "there are 2 active merchants: name one with --merchant" in err
    assert (await desk.gets("trigger", "webhook.test", "--merchant", desk.merchant_id))[
        "subject_id"
    ] == desk.merchant_id
