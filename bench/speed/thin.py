"""A thin app, the lower bound for the gateway: Litestar and asyncpg, one INSERT and one UPDATE.

No keys, limits, idempotency, events, deliveries or logs. Its push goes to the same double. Served as the gateway is:
uvicorn with uvloop and httptools.
"""

import itertools
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import niquests
import uvicorn
from litestar import Litestar, get, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

SCHEMA = """
CREATE TABLE payment (
    payment_id text COLLATE "C" PRIMARY KEY,
    amount integer NOT NULL,
    phone text NOT NULL,
    status text NOT NULL DEFAULT 'pending',
    checkout_request_id text,
    receipt text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
)
"""

SEED = """
INSERT INTO payment (payment_id, amount, phone, status, checkout_request_id, receipt)
SELECT 'seed_' || n, 1 + n % 5000, '2547' || lpad((n % 90000000)::text, 8, '0'), 'completed', 'ws_CO_seed' || n,
    'S' || n
FROM generate_series(1, $1::bigint) AS n
"""

SEED_PENDING = """
INSERT INTO payment (payment_id, amount, phone)
SELECT $1 || n, 500, '254708374149' FROM generate_series(1, $2::bigint) AS n
"""

_INSERT = "INSERT INTO payment (payment_id, amount, phone) VALUES ($1, $2, $3)"
_ACK = "UPDATE payment SET checkout_request_id = $2, updated_at = now() WHERE payment_id = $1"
_RESULT = (
    "UPDATE payment SET status = $2, receipt = $3, updated_at = now() WHERE payment_id = $1 AND status = 'pending'"
)

_numbers = itertools.count(1)


class Asked(msgspec.Struct):
    """The request of a shop."""

    amount: int
    phone: str


@asynccontextmanager
async def _connected(app: Litestar) -> AsyncGenerator[None]:
    async with (
        asyncpg.create_pool(os.environ["THIN_DATABASE"], min_size=1, max_size=20) as pool,
        niquests.AsyncSession(retries=0, disable_http3=True, pool_maxsize=200) as session,
    ):
        session.trust_env = False
        app.state.pool, app.state.session, app.state.daraja = pool, session, os.environ["THIN_DARAJA"]
        yield


@post("/create")
async def create(data: JSONBody[Asked], state: State) -> dict[str, Any]:
    """One INSERT, the push, one UPDATE."""
    payment_id = f"pay_{os.getpid()}_{next(_numbers)}"
    await state.pool.execute(_INSERT, payment_id, data.amount, data.phone)
    answer = await state.session.post(
        state.daraja + "/mpesa/stkpush/v1/processrequest",
        json={"Amount": data.amount, "PhoneNumber": data.phone, "CallBackURL": "https://shop.example/" + payment_id},
        headers={"Authorization": "Bearer the-token-of-the-double"},
    )
    checkout_request_id = answer.json()["CheckoutRequestID"]
    await state.pool.execute(_ACK, payment_id, checkout_request_id)
    return {"id": payment_id, "status": "pending", "provider_ref": checkout_request_id}


@post("/callback/{payment_id:str}", status_code=200)
async def callback(payment_id: FromPath[str], data: JSONBody[dict[str, Any]], state: State) -> dict[str, Any]:
    """One UPDATE."""
    result = data["Body"]["stkCallback"]
    items = {item["Name"]: item.get("Value") for item in result["CallbackMetadata"]["Item"]}
    await state.pool.execute(_RESULT, payment_id, "completed", items["MpesaReceiptNumber"])
    return {"ResultCode": 0, "ResultDesc": "Accepted"}


@get("/bare")
async def bare() -> dict[str, bool]:
    """An empty answer: the cost of Litestar and uvicorn."""
    return {"success": True}


app = Litestar([create, callback, bare], lifespan=[_connected], openapi_config=None)

if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
