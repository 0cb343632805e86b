"""Protects the commands of refunds and events: lists, details and retries, with payers' numbers masked."""

import json
from pathlib import Path

import asyncpg

from mpesa_gateway.db.codecs import read_ids
from tests.plugins.payments.test_commands import gateway_with_cli

PHONE = "254700000000"
SUBSCRIBER = "ledger.book"


async def put_off(database_url: str, event_id: str) -> str:
    """Add a subscriber that failed and waits for years; return the year."""
    connection = await asyncpg.connect(database_url, server_settings={"search_path": "mpesa"})
    await read_ids(connection)
    sql = "INSERT INTO event_task (event_id, subscriber, due_at, attempts) VALUES ($1, $2, '2099-01-01Z', 3)"
    await connection.execute(sql, event_id, SUBSCRIBER)
    await connection.close()
    return "2099"


async def test_refunds_commands_list_show_and_query_refunds(database_url: str, valkey_url: str, tmp_path: Path) -> None:
    async with gateway_with_cli(database_url, valkey_url, tmp_path) as (api, run_cli):
        assert (await api.call("PATCH", "/simulator/control/habits", {"reversal": "never"})).status == 200
        paid = (await api.pay(PHONE, key="one")).data
        await api.settled(paid["id"], "completed")
        body = {"payment_id": paid["id"], "reason": f"asked by {PHONE}"}
        made = (await api.call("POST", "/v1/refunds", body)).data

        status, out, err = await run_cli("refunds", "list")
        assert status == 0, err
        assert out.splitlines()[1].split("\t")[2:] == ["pending", "500.00", paid["id"], "-"]
        status, out, err = await run_cli("refunds", "list", "--json", "--payment", paid["id"])
        assert [one["id"] for one in json.loads(out)] == [made["id"]], err
        for words in (("--status", "completed"), ("--needs-review",), ("--live",), ("--payment", made["id"])):
            assert await run_cli("refunds", "list", "--json", *words) == (0, "[]", ""), words

        for form in ([], ["--json"]):
            status, out, _ = await run_cli("refunds", "show", made["id"], *form)
            assert (status, "asked by 2547****000" in out, PHONE in out) == (0, True, False)

        status, _, err = await run_cli("refunds", "show", "rfd_00000000000000000000000000")
        assert (status, "no such refund" in err) == (1, True)
        status, out, err = await run_cli("refunds", "query", made["id"], "--json")
        assert (status, json.loads(out)) == (0, {"refund_id": made["id"], "queried": True}), err


async def test_events_commands_list_and_show_events(database_url: str, valkey_url: str, tmp_path: Path) -> None:
    async with gateway_with_cli(database_url, valkey_url, tmp_path) as (api, run_cli):
        paid = (await api.pay(PHONE, key="one")).data
        await api.settled(paid["id"], "completed")
        status, out, err = await run_cli("events", "list", "--json", "--type", "payment.completed")
        assert status == 0, err
        (event,) = json.loads(out)
        late = await put_off(database_url, event["event_id"])
        assert event["subject_id"] == paid["id"]
        status, out, err = await run_cli("events", "show", event["event_id"], "--json")
        assert status == 0, err
        shown = json.loads(out)
        assert (shown["kind"], shown["env"], PHONE in out) == ("payment.completed", "sandbox", False)
        assert [one["subscriber"] for one in shown["subscribers"]] == [SUBSCRIBER]
        status, out, err = await run_cli("events", "show", event["event_id"])
        assert (status, PHONE in out, SUBSCRIBER in out, late in out) == (0, False, True, True), err
        status, _, err = await run_cli("events", "retry", event["event_id"], "nothing")
        assert (status, f"name one of {SUBSCRIBER}" in err) == (1, True)
        status, out, err = await run_cli("events", "retry", event["event_id"], SUBSCRIBER, "--json")
        assert (status, json.loads(out)["queued"]) == (0, True), err
        status, out, err = await run_cli("events", "show", event["event_id"])
        assert (status, late in out) == (0, False)
        (entry, *_) = (await api.call("GET", "/v1/audit/logs?action=event.retried")).data
        assert (entry["subject_id"], entry["detail"]["subscriber"]) == (event["event_id"], SUBSCRIBER)
