"""Protects webhook signatures: public libraries verify the gateway's deliveries."""

from pathlib import Path
from typing import Any

from mpesa_gateway.testing.serving import Api
from tests.conftest import Harness
from tests.interop import environments

HERE = Path(__file__).parent / "verifiers"


async def delivered(harness: Harness, api: Api) -> dict[str, Any]:
    """A test webhook as the shop received it, with its signing secret."""
    set_up = await api.call("PUT", "/v1/merchant/webhook", {"webhook_url": harness.receiver.url})
    assert (await api.call("POST", "/v1/merchant/webhook/test")).status == 200
    one = harness.receiver.of("webhook.test")[-1]
    return {"secret": set_up.data["webhook_secret"], "body": one.body.decode(), "headers": one.headers}


async def test_webhook_is_verified_by_python_libraries(harness: Harness) -> None:
    webhook = await delivered(harness, harness.api)
    accepted = await environments.run(environments.python("verifiers"), "-I", str(HERE / "verify.py"), inputs=webhook)
    assert accepted == ["standardwebhooks", "svix"]


async def test_webhook_is_verified_by_javascript_libraries(harness: Harness) -> None:
    webhook = await delivered(harness, harness.api)
    command = [environments.installed("node"), str(HERE / "verify.cjs")]
    accepted = await environments.run(*command, inputs=webhook, cwd=environments.node("verifiers"))
    assert accepted == ["standardwebhooks", "svix"]
