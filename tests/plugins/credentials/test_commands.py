"""Protects the commands of shortcodes: listed without secrets, the default moved, one retired."""

import json
from pathlib import Path

from mpesa_gateway.testing.serving import INITIATED
from tests.plugins.payments.test_commands import gateway_with_cli


async def test_shortcodes_commands_list_change_the_default_and_retire(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    first, second = INITIATED["mpesa"]["shortcode"], "5123456"
    async with gateway_with_cli(database_url, valkey_url, tmp_path) as (api, run_cli):
        more = INITIATED["mpesa"] | {"shortcode": "600002", "till_number": second, "name": "Westlands"}
        assert (await api.call("POST", "/v1/merchant/shortcodes", more)).status == 201

        status, out, err = await run_cli("shortcodes", "list", "--json")
        assert status == 0, err
        listed = json.loads(out)
        assert [(each["shortcode"], each["kind"], each["name"], each["is_default"]) for each in listed] == [
            (first, "paybill", None, True),
            (second, "till", "Westlands", False),
        ]
        assert INITIATED["mpesa"]["passkey"] not in out

        status, _, err = await run_cli("shortcodes", "retire", first)
        assert (status, "is the default" in err) == (1, True)
        assert (await run_cli("shortcodes", "default", second))[:2] == (0, f"{second} is the sandbox default.")
        status, out, err = await run_cli("shortcodes", "retire", first)
        assert (status, out) == (
            0,
            f"{first} is retired: no new payments. Still open: 0 payments, 0 refunds.",
        ), err
        status, out, err = await run_cli("shortcodes", "list")
        assert status == 0, err
        heading, *lines = [line.split("\t") for line in out.splitlines()]
        assert heading[0] == "shortcode"
        assert [line[:4] for line in lines] == [[second, "till", "Westlands", "yes"], [first, "paybill", "-", "no"]]
        for words in (("default", first), ("default", "600009"), ("retire", "600009")):
            assert (await run_cli("shortcodes", *words))[0] == 1
        assert (await run_cli("shortcodes", "list", "--live"))[1].splitlines() == ["\t".join(heading)]
