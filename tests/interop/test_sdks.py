"""Protects the simulator's fidelity: public SDKs push, query and reverse by their own READMEs."""

import base64
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_qr.png import read_png
from mpesa_gateway_simulator.validation import SANDBOX_PASSKEY
from tests.certificates import issue
from tests.interop import environments
from tests.plugins.simulator.daraja_client import DarajaClient, daraja

HERE = Path(__file__).parent / "sdks"


@dataclass(frozen=True)
class Sdk:
    """An SDK, and the operations it has in addition to the push."""

    name: str
    offers: frozenset[str]
    is_node: bool = False

    @property
    def program(self) -> Path:
        """Return its program."""
        return HERE / f"sdk_{self.name.replace('-', '_')}{'.cjs' if self.is_node else '.py'}"

    async def run(self, phase: str, base: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run one phase of its program."""
        if self.is_node:
            folder = environments.node(self.name)
            command = [environments.installed("node"), str(self.program), phase, base]
        else:
            folder, command = HERE, [environments.python(self.name), "-I", str(self.program), phase, base]
        done: dict[str, Any] = await environments.run(*command, inputs=inputs, cwd=folder)
        return done


ALL = frozenset({"query", "status", "reversal"})
# Not every SDK parses every result of Daraja. In a status query daraja-sdk-py requires a value of each parameter, and
# `TransactionReason` has none; mpesakit requires a list instead of the object `ResultParameters`. In a reversal
# mpesakit requires text instead of numbers.
SDKS = (
    Sdk("daraja-sdk-py", ALL | {"callback", "pull register", "pull", "reversal result"}),
    Sdk("mpesakit", ALL | {"callback"}),
    Sdk("django-daraja", frozenset({"callback"})),
    Sdk("mpesa-connect", frozenset({"query", "status"})),
    Sdk("mpesa-api", ALL, is_node=True),
    Sdk("mpesa-node", ALL, is_node=True),
)


C2B: dict[str, frozenset[str]] = {
    "daraja-sdk-py": frozenset({"register", "simulate", "qr", "read"}),
    "mpesakit": frozenset({"register", "qr", "read"}),
    "mpesa-api": frozenset({"register", "simulate"}),
    "mpesa-node": frozenset({"register", "simulate"}),
}
"""The SDKs with C2B, and their operations; ``read`` reads a confirmation. daraja-sdk-py calls v2, the others v1."""


async def bodies(receiver: Receiver, path: str, count: int) -> list[dict[str, Any]]:
    """Return the bodies posted to a path once there are this many."""

    def posted() -> list[dict[str, Any]]:
        return [one.json for one in receiver.received if one.path.endswith(path)]

    async def are_posted() -> bool:
        return len(posted()) >= count

    await eventually(are_posted)
    return posted()


@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)
async def test_sdk_push_query_and_reversal_succeed(sdk: Sdk, values: dict[str, Any], tmp_path: Path) -> None:
    certificate = issue(tmp_path / "sandbox.cer")
    now = datetime.now(EAT)
    inputs: dict[str, Any] = {
        "passkey": SANDBOX_PASSKEY,
        "credential": base64.b64encode(bytes(256)).decode(),
        "certificate": str(certificate.path),
        "start": f"{now - timedelta(hours=1):%Y-%m-%d %H:%M:%S}",
        "end": f"{now + timedelta(minutes=5):%Y-%m-%d %H:%M:%S}",
    }
    async with receiving() as receiver, daraja(values | {"simulator": {"callback_delay": 0.05}}, receiver) as client:
        inputs["url"] = receiver.url
        inputs |= await sdk.run("push", client.base, inputs)
        assert str(inputs["push"]["ResponseCode"]) == "0"
        (inputs["callback"],) = await bodies(receiver, "/callback", 1)
        callback = inputs["callback"]["Body"]["stkCallback"]
        assert (callback["ResultCode"], callback["CheckoutRequestID"]) == (0, inputs["push"]["CheckoutRequestID"])
        ((inputs["receipt"], amount),) = await client.moved("254712345678")
        assert amount == 250

        after = await sdk.run("after", client.base, inputs)
        results = {body["Result"]["OriginatorConversationID"]: body for body in await results_of(after, receiver)}
        for name in ("status", "reversal"):
            if name in sdk.offers:
                assert str(after[name]["ResponseCode"]) == "0"
                result = results[after[name]["OriginatorConversationID"]]
                assert result["Result"]["ResultCode"] == 0
                inputs[f"{name} result"] = result
        if "query" in sdk.offers:
            assert {str(after["query"][name]) for name in ("ResponseCode", "ResultCode")} == {"0"}
        if "reversal" in sdk.offers:
            await is_returned(client)
        if "pull" in sdk.offers:
            assert after["pull register"]["ResponseStatus"] == "1000"
            assert [row["transactionId"] for row in after["pull"]["Response"][0]] == [inputs["receipt"]]
        after |= await sdk.run("results", client.base, inputs)
        assert after.keys() == sdk.offers


@pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.name in C2B], ids=lambda sdk: sdk.name)
async def test_sdk_c2b_registration_and_payment_succeed(sdk: Sdk, values: dict[str, Any], tmp_path: Path) -> None:
    inputs: dict[str, Any] = {
        "passkey": SANDBOX_PASSKEY,
        "credential": base64.b64encode(bytes(256)).decode(),
        "certificate": str(issue(tmp_path / "sandbox.cer").path),
    }
    async with receiving() as receiver, daraja(values | {"simulator": {"callback_delay": 0.05}}, receiver) as client:
        receiver.says = lambda _: b'{"ResultCode": "0", "ResultDesc": "Accepted"}'
        inputs["url"] = receiver.url
        done = await sdk.run("c2b", client.base, inputs)
        if "simulate" not in done:
            await client.control("POST", "c2b", {"phone": "254712345678", "amount": 250, "shortcode": "174379"})
        (inputs["confirmation"],) = await bodies(receiver, "/confirmation", 1)
        assert len(await bodies(receiver, "/validation", 1)) == 1
        ((receipt, amount),) = await client.moved("254712345678")
        assert (inputs["confirmation"]["TransID"], amount) == (receipt, 250)
        assert str(done["register"]["ResponseCode"]) == "0"
        if "qr" in done:
            assert read_png(base64.b64decode(done["qr"]["QRCode"])) == (200, 200)
        if "read" in C2B[sdk.name]:
            done |= await sdk.run("confirmation", client.base, inputs)
            assert done["read"]["TransID"] == receipt
        assert done.keys() == C2B[sdk.name]


async def results_of(after: dict[str, Any], receiver: Receiver) -> list[dict[str, Any]]:
    """Return the results of the queries."""
    return await bodies(receiver, "/result", len({"status", "reversal"} & after.keys()))


async def is_returned(client: DarajaClient) -> None:
    """Assert that the payment was reversed."""
    (entry,) = await client.control("GET", "ledger")
    assert (entry["amount"], entry["returned"]) == (250, 250)
