"""Protects the commands of C2B: they answer as the API does, and name the fix."""

import asyncio
import json

from mpesa_gateway.testing.serving import gateway_values, running_gateway, shop
from tests.kernel.cli.terminal import Host, is_refused


def test_c2b_commands_of_a_merchant_without_the_shortcode_name_it(host: Host) -> None:
    merchant_id = host.output_of("merchants", "create", "Duka la Mtaa")
    for words in (("c2b", "register"), ("c2b", "show"), ("c2b", "remove")):
        assert is_refused(host.run(*words, "600001", "--merchant", merchant_id), 1, "no such active shortcode")
    assert is_refused(host.run("accounts", "show", "A7", "--merchant", merchant_id), 1, "no M-Pesa credentials")
    assert host.run("c2b", "register", "600001", "--validation", "maybe").returncode == 2


def test_account_commands_show_the_numbers_of_the_api(host: Host, valkey_url: str) -> None:
    host.output_of("migrate")
    values = gateway_values(host.variables["DATABASE__URL"], valkey_url) | {"worker": {"in_process": False}}
    values["security"] = {"master_key_file": host.variables["SECURITY__MASTER_KEY_FILE"]}

    async def store() -> None:
        async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
            assert (await api.call("PUT", "/v1/account-numbers/A7", {"expected": 500})).status == 200

    asyncio.run(store())
    (shown,) = json.loads(host.output_of("accounts", "list", "--json"))
    assert (shown["number"], shown["state"], shown["expected"]) == ("A7", "unpaid", "500.00")
    assert "A7 at 174379: unpaid, received 0.00" in host.output_of("accounts", "show", "a7")
    assert is_refused(host.run("c2b", "show", "174379"), 1, "not registered")
