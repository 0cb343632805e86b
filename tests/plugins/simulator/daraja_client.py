"""A client that calls the simulator as a merchant's own code calls Daraja, without a gateway."""

import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import niquests

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock, daraja_timestamp
from mpesa_gateway.testing.receiver import Receiver
from mpesa_gateway.testing.serving import eventually, running_gateway
from mpesa_gateway_simulator.validation import SANDBOX_PASSKEY, SANDBOX_SHORTCODE

PUSH = "/simulator/mpesa/stkpush/v1/processrequest"
QUERY = "/simulator/mpesa/stkpushquery/v1/query"
TOKEN = "/simulator/oauth/v1/generate?grant_type=client_credentials"

SOON = timedelta(seconds=5)

_OWED = """
SELECT EXISTS (SELECT FROM sim_callback WHERE due_at <= $1) OR EXISTS (SELECT FROM sim_result WHERE due_at <= $1)
"""

QUICK = {"callback_delay": 0.05, "late_delay": 1.0, "slow_answer": 0.8, "prompt_timeout": 0.4, "callback_pause": 0.2}


def basic(key: str, secret: str = "secret-of-tests") -> str:
    """HTTP Basic credentials for a token."""
    return "Basic " + base64.b64encode(f"{key}:{secret}".encode()).decode()


def signed(shortcode: str = SANDBOX_SHORTCODE, passkey: str = SANDBOX_PASSKEY, at: str | None = None) -> dict[str, Any]:
    """Returns shortcode, timestamp and the matching password."""
    timestamp = at or daraja_timestamp(datetime.now(UTC))
    password = base64.b64encode(f"{shortcode}{passkey}{timestamp}".encode()).decode()
    return {"BusinessShortCode": int(shortcode), "Timestamp": timestamp, "Password": password}


class DarajaClient:
    """A client of Daraja, and a server that receives its callbacks."""

    def __init__(self, gateway: Gateway, base: str, receiver: Receiver) -> None:
        self.gateway = gateway
        self.base = base
        self.receiver = receiver
        self.token = ""
        self._session = niquests.AsyncSession(retries=0, pool_maxsize=50)
        self._session.trust_env = False

    async def close(self) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, json: Any = None, **headers: str) -> tuple[int, Any]:
        """Returns the status, and the JSON or the text; bytes if they are not UTF-8."""
        response = await self._session.request(method, self.base + path, json=json, headers=headers)
        content = response.content or b""
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return response.status_code or 0, content
        is_json = "json" in str(response.headers.get("content-type"))
        return response.status_code or 0, response.json() if is_json else text

    async def log_in(self, key: str = "key-of-tests") -> str:
        """Fetch a token and use it from then on."""
        status, answer = await self.call("GET", TOKEN, Authorization=basic(key))
        assert status == 200, answer
        self.token = answer["access_token"]
        return self.token

    def request(self, phone: str, amount: Any = 7, **changes: Any) -> dict[str, Any]:
        """A valid push with changes. A change to None omits the field."""
        body = signed() | {
            "TransactionType": "CustomerPayBillOnline",
            "Amount": amount,
            "PartyA": phone,
            "PhoneNumber": phone,
            "PartyB": SANDBOX_SHORTCODE,
            "CallBackURL": f"{self.receiver.url}/{phone}",
            "AccountReference": "ORDER-1",
            "TransactionDesc": "Order 1",
        }
        return {name: value for name, value in (body | changes).items() if value is not None}

    async def push(self, phone: str, amount: Any = 7, **changes: Any) -> tuple[int, Any]:
        return await self.send(self.request(phone, amount, **changes))

    async def send(self, body: Any, path: str = PUSH) -> tuple[int, Any]:
        """Post with the token."""
        return await self.call("POST", path, body, Authorization=f"Bearer {self.token}")

    async def query(self, checkout_request_id: str) -> tuple[int, Any]:
        return await self.send(signed() | {"CheckoutRequestID": checkout_request_id}, QUERY)

    async def control(self, method: str, path: str, json: Any = None) -> Any:
        """Call the control API. Raises AssertionError if it refuses."""
        status, answer = await self.call(method, f"/simulator/control/{path}", json)
        assert status == 200, answer
        return answer["data"]

    async def prompts(self, phone: str) -> list[dict[str, Any]]:
        """Returns the prompts of a phone, newest first."""
        found: list[dict[str, Any]] = await self.control("GET", f"pushes?phone={phone}")
        return found

    async def prompt(self, phone: str) -> dict[str, Any]:
        """Returns the only prompt of a phone."""
        (found,) = await self.prompts(phone)
        return found

    async def ended(self, phone: str) -> dict[str, Any]:
        """Returns the only prompt of a phone once it has ended."""

        async def has_ended() -> bool:
            return bool((await self.prompt(phone))["state"] == "ended")

        await eventually(has_ended)
        return await self.prompt(phone)

    async def moved(self, phone: str) -> list[tuple[str, int]]:
        """Returns receipt and amount of each payment of a phone."""
        return [(entry["receipt"], entry["amount"]) for entry in await self.control("GET", f"ledger?phone={phone}")]

    def callbacks(self, phone: str) -> list[dict[str, Any]]:
        return [one.json["Body"]["stkCallback"] for one in self.receiver.received if one.path.endswith(phone)]

    async def called_back(self, phone: str, count: int = 1) -> list[dict[str, Any]]:
        """Returns the callbacks about a phone. Waits for ``count``; raises AssertionError for more."""

        async def have_come() -> bool:
            return len(self.callbacks(phone)) >= count

        await eventually(have_come)
        await self.quiet()
        found = self.callbacks(phone)
        assert len(found) == count
        return found

    async def quiet(self) -> None:
        """Wait until no callback and no result is due within SOON."""

        async def owes_nothing() -> bool:
            return not await self.gateway.db.fetchval(_OWED, self.gateway.clock.now() + SOON)

        await eventually(owes_nothing)


def metadata(callback: dict[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a callback by name, without items that have no value."""
    items = callback["CallbackMetadata"]["Item"]
    return {item["Name"]: item["Value"] for item in items if "Value" in item}


@asynccontextmanager
async def daraja(
    values: dict[str, Any], receiver: Receiver, clock: SetClock | None = None
) -> AsyncGenerator[DarajaClient]:
    """A gateway with the simulator as its only plugin, and a client with a token."""
    changes: dict[str, Any] = {"plugins": ["simulator"], "worker": {"in_process": False}}
    async with running_gateway(values | changes, **({} if clock is None else {"clock": clock})) as (gateway, base):
        client = DarajaClient(gateway, base, receiver)
        await client.log_in()
        try:
            yield client
        finally:
            await client.close()
