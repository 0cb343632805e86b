"""Protects interoperability with public doubles of Daraja."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import niquests

from mpesa_gateway.testing.serving import eventually, listening, running_gateway, shop
from tests.interop import environments

PHONE = "254712345678"

SERVE = """
import sys
from daraja_mock import DarajaMock

mock = DarajaMock()
app = mock.app if hasattr(mock, "app") else mock._app


@app.get("/test/log")
def log():
    return {"requests": mock.request_log()}


app.run(port=int(sys.argv[1]))
"""
"""daraja-mock with its request log over HTTP: it posts no callback, so the test needs the callback's address."""


@asynccontextmanager
async def daraja_mock() -> AsyncGenerator[str]:
    """Yield the base URL of daraja-mock in a process of its own."""
    with listening() as found:
        port = found.getsockname()[1]
    command = [environments.python("daraja-mock"), "-I", "-c", SERVE, str(port)]
    quiet = asyncio.subprocess.DEVNULL
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet, env=environ)
    base = f"http://127.0.0.1:{port}"

    async def is_up() -> bool:
        try:
            return (await niquests.aget(base + "/health")).status_code == 200
        except niquests.exceptions.RequestException:
            return False

    try:
        await eventually(is_up)
        yield base
    finally:
        process.terminate()
        await process.wait()


async def test_payment_against_daraja_mock_completes(values: dict[str, Any]) -> None:
    async with daraja_mock() as base:
        values["daraja"] = {"sandbox_url": base}
        async with running_gateway(values) as (gateway, address), shop(gateway, address) as api:
            made = (await api.pay(PHONE, 250, key="order")).data
            assert (made["status"], made["provider_ref"].startswith("ws_CO_")) == ("pending", True)
            log = (await niquests.aget(base + "/test/log")).json()["requests"]
            (push,) = [one["body"] for one in log if one["path"].endswith("/stkpush/v1/processrequest")]
            assert (push["Amount"], push["PhoneNumber"]) == (250, PHONE)
            # Its answer to an STK query names a push of its own: that is no evidence about ours.
            queried = (await api.call("POST", f"/v1/payments/{made['id']}/query")).data
            assert queried["status"] == "pending"
            # It posts no callbacks; this one equals Daraja's.
            items = {"Amount": 250.0, "MpesaReceiptNumber": "UKN4A1B2C3", "PhoneNumber": int(PHONE)}
            callback = {
                "MerchantRequestID": "29115-34620561-1",
                "CheckoutRequestID": made["provider_ref"],
                "ResultCode": 0,
                "ResultDesc": "The service request is processed successfully.",
                "CallbackMetadata": {"Item": [{"Name": name, "Value": value} for name, value in items.items()]},
            }
            sent = await niquests.apost(push["CallBackURL"], json={"Body": {"stkCallback": callback}})
            assert sent.status_code == 200
            paid = await api.settled(made["id"], "completed")
            assert paid["receipt"] == "UKN4A1B2C3"
