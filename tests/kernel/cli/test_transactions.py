"""Protects the commands of transactions: their filters are the API's, and incoming money is allocated once."""

import asyncio
import json
from typing import Any

import pytest

from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.serving import gateway_values, running_gateway, shop
from mpesa_gateway_ops.people import People
from mpesa_gateway_transactions.schemas import Allocate
from mpesa_gateway_transactions.service import TransactionService
from tests.browsing import PASSWORD
from tests.identifiers import identifier
from tests.kernel.cli.terminal import Host, is_refused
from tests.loose_money import receive_loose_at

PAYER = "254700000020"


@pytest.fixture
def values(host: Host, valkey_url: str) -> dict[str, Any]:
    """The settings of a gateway on the host's servers."""
    values = gateway_values(host.variables["DATABASE__URL"], valkey_url) | {"worker": {"in_process": False}}
    return values | {"security": {"master_key_file": host.variables["SECURITY__MASTER_KEY_FILE"]}}


@pytest.fixture
def stored(host: Host, values: dict[str, Any]) -> dict[str, Any]:
    """A pending payment of KES 500, and two transactions without a subject, of KES 500 and 700."""
    host.output_of("migrate")

    async def store() -> dict[str, Any]:
        async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
            payment = (await api.pay(PAYER, 500, key="a")).data
            first = await receive_loose_at(gateway, "TKM0000001", account_number="Till 9", payer=PAYER)
            second = await receive_loose_at(gateway, "TKM0000002", amount_cents=70_000, payer="2547*****111")
            return {"payment": payment["id"], "first": first, "second": second}

    return asyncio.run(store())


def listed(host: Host, *options: str) -> list[str]:
    return [one["receipt"] for one in json.loads(host.output_of("transactions", "list", "--json", *options))]


@pytest.mark.usefixtures("stored")
def test_transactions_list_takes_the_filters_of_the_api(host: Host) -> None:
    text = host.output_of("transactions", "list")
    assert "TKM0000001" in text
    assert PAYER not in text
    expected: dict[tuple[str, ...], list[str]] = {
        (): ["TKM0000002", "TKM0000001"],
        ("--limit", "1"): ["TKM0000002"],
        ("--direction", "out"): [],
        ("--direction", "in", "--kind", "c2b"): ["TKM0000002", "TKM0000001"],
        ("--allocated",): [],
        ("--unallocated", "--max-amount", "600"): ["TKM0000001"],
        ("--min-amount", "600"): ["TKM0000002"],
        ("--account-number", "till 9"): ["TKM0000001"],
        ("--phone", "0700000020"): ["TKM0000001"],
        ("--receipt", "tkm0000002"): ["TKM0000002"],
        ("--shortcode", "600000"): [],
        ("--until", "2020-01-01T00:00:00Z"): [],
        ("--live",): [],
    }
    assert {options: listed(host, *options) for options in expected} == expected
    assert is_refused(host.run("transactions", "list", "--min-amount", "much"), 1, "min_amount")
    assert is_refused(host.run("transactions", "list", "--since", "monday"), 1, "since: must be a time")


def test_transactions_show_masks_the_payer_and_keeps_to_its_env(host: Host, stored: dict[str, Any]) -> None:
    text = host.output_of("transactions", "show", stored["first"])
    assert "TKM0000001" in text
    assert "nothing" in text
    assert PAYER not in text
    shown = json.loads(host.output_of("transactions", "show", stored["first"], "--json"))
    assert (shown["id"], shown["amount"], shown["allocated_to"]) == (stored["first"], "500.00", None)
    assert PAYER not in json.dumps(shown)
    for words in ((stored["first"], "--live"), (identifier("txn"),)):
        assert is_refused(host.run("transactions", "show", *words), 1, "there is no such transaction")


def test_transactions_show_names_the_person_who_allocated(
    host: Host, stored: dict[str, Any], values: dict[str, Any]
) -> None:
    async def allocate() -> str:
        async with running_gateway(values) as (gateway, _):
            zuri = await gateway.services.get(People).create(
                "zuri@duka.example", PASSWORD, name="Zuri Wanjiku", role=Role.ADMIN, actor="test"
            )
            by, decided = f"person:{zuri.person_id}", Allocate(note="Paid for table 9")
            await gateway.services.get(TransactionService).allocate(None, "sandbox", stored["first"], decided, actor=by)
            return by

    by = asyncio.run(allocate())
    text = host.output_of("transactions", "show", stored["first"])
    assert ("Zuri Wanjiku" in text, "per_" in text) == (True, False)
    # A program gets the id, which never changes.
    kept = json.loads(host.output_of("transactions", "show", stored["first"], "--json"))
    assert kept["allocations"][-1]["by"] == by


def test_payments_show_names_the_person_who_requested(
    host: Host, stored: dict[str, Any], values: dict[str, Any]
) -> None:
    async def request() -> None:
        async with running_gateway(values) as (gateway, _):
            zuri = await gateway.services.get(People).create(
                "zuri@duka.example", PASSWORD, name="Zuri Wanjiku", role=Role.ADMIN, actor="test"
            )
            await gateway.db.execute(
                "UPDATE payment SET requested_by = $2 WHERE payment_id = $1",
                stored["payment"],
                f"person:{zuri.person_id}",
            )

    text = host.output_of("payments", "show", stored["payment"])
    assert "requested by merchant" in text
    asyncio.run(request())
    text = host.output_of("payments", "show", stored["payment"])
    assert ("requested by Zuri Wanjiku" in text, "per_" in text) == (True, False)


def test_transactions_allocate_decides_once_and_needs_a_payment_or_a_note(host: Host, stored: dict[str, Any]) -> None:
    command = ("transactions", "allocate")
    refused = host.run(*command, stored["first"])
    assert refused.returncode == 2
    assert "--payment" in refused.stderr
    assert is_refused(host.run(*command, stored["first"], "--payment", "order-7"), 1, "must be the id of a payment")
    assert is_refused(host.run(*command, stored["first"], "--note", "x"), 1, "must be 3 to 500 characters")
    words = (*command, stored["first"], "--payment", stored["payment"])
    paid = json.loads(host.output_of(*words, "--json"))
    assert paid["allocated_to"] == {"type": "payment", "id": stored["payment"]}
    assert paid["allocations"][-1]["by"].startswith("cli:")
    # The same decision again changes nothing; another one is refused.
    assert json.loads(host.output_of(*words, "--json")) == paid
    assert is_refused(host.run(*command, stored["first"], "--note", "something else"), 1, stored["payment"])
    settled = json.loads(host.output_of("payments", "show", stored["payment"], "--json"))
    assert (settled["status"], settled["receipt"]) == ("completed", "TKM0000001")
    text = host.output_of(*command, stored["second"], "--note", f"cash back to {PAYER}")
    assert "resolved" in text
    assert PAYER not in text
    assert listed(host, "--unallocated") == []
