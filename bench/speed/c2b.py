"""C2B: confirmations compared with STK callbacks, and validations beside creates, of one gateway in one run."""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.speed.contests import Contest, Contests
from bench.speed.load import request, write_requests
from bench.speed.seed import connect, tag
from bench.speed.site import Contestant, load

TOKEN = f"s-rcv_{'0' * 26}.{'be' * 16}"
"""The token of the registered address."""

_ACCOUNTS = 10_000
_CREATES_PER_SECOND = 500
_VALIDATIONS_PER_SECOND = 50
_CLIENTS_BESIDE = 4

_ADDRESS = """
INSERT INTO c2b_address (receiver_id, merchant_id, env, token, token_digest, state, version, response_type, validation,
    registered_at, created_at)
SELECT receiver_id, $1, 'sandbox', 'v1.bench', $2, 'registered', 'v2', 'Completed', 'rules', now(), now()
FROM receiver WHERE env = 'sandbox' AND number = '174379'
ON CONFLICT DO NOTHING
"""

_ACCOUNT_NUMBERS = """
INSERT INTO account_number (account_id, receiver_id, merchant_id, env, number, min_cents, max_cents, is_active,
    created_at, updated_at)
SELECT ($2 || lpad(n::text, 16, '0'))::uuid, receiver_id, $1, 'sandbox', 'HOUSE' || n, 100, 100000000, true, now(),
    now()
FROM receiver, generate_series(1, $3::bigint) AS n WHERE env = 'sandbox' AND receiver.number = '174379'
ON CONFLICT DO NOTHING
"""


class C2bContests(Contests):
    """Prepares confirmations and validations."""

    async def prepare(self) -> None:
        """Store a registered address and account numbers."""
        connection = await connect(self._site.database("gateway"), "mpesa")
        try:
            await connection.execute(_ADDRESS, self._shop.merchant_id, hashlib.sha256(TOKEN.encode()).digest())
            stem = f"{time.time_ns() // 1_000_000:012x}{tag('acc')}"
            await connection.execute(_ACCOUNT_NUMBERS, self._shop.merchant_id, stem, _ACCOUNTS)
        finally:
            await connection.close()

    def contests(self, gateway: Contestant) -> list[Contest]:
        """Return confirmations against STK callbacks, and validations with and without creates."""
        return [
            Contest(
                "confirmation",
                {
                    "gateway": lambda: self._load(self._confirmations(), gateway, 200),
                    "STK callbacks": self.gateway_callback(gateway),
                },
            ),
            Contest(
                f"validation, {_VALIDATIONS_PER_SECOND} a second",
                {
                    "gateway": lambda: self._validate(gateway, creates=_CREATES_PER_SECOND),
                    "without creates": lambda: self._validate(gateway, creates=0),
                },
            ),
        ]

    def _confirmations(self) -> Iterator[bytes]:
        """Return money that no payment asked for, at a paybill without that account number."""
        stem = secrets.token_hex(3).upper()
        for number in range(self._effort.most):
            yield _posted("c2b", f"C{stem}{number:06}", f"WALK IN {number % 1000}")

    def _validations(self) -> Iterator[bytes]:
        for number in range(self._effort.most):
            yield _posted("c2b-validation", f"V{number:09}", f"house{1 + number % _ACCOUNTS}")

    async def _validate(self, gateway: Contestant, creates: int) -> dict[str, Any]:
        """Return a round of validations while payments are created at a fixed rate."""
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(self._create_beside(gateway, creates)) if creates else None
            found = await self._load(
                self._validations(),
                gateway,
                200,
                clients=_CLIENTS_BESIDE,
                per_second=_VALIDATIONS_PER_SECOND,
            )
        if beside is not None:
            found["creates_per_second"] = beside.result()
        return found

    async def _create_beside(self, gateway: Contestant, creates: int) -> float:
        file = Path(self._file).with_name("creates")
        write_requests(file, self._creates("/v1/payments"))
        found = await load(
            file,
            gateway.ports,
            clients=self._effort.clients,
            seconds=self._effort.seconds,
            expect=[201],
            per_second=creates,
        )
        return float(found["rate"])


def _posted(kind: str, receipt: str, account_number: str) -> bytes:
    """Return a request of Safaricom's."""
    return request("POST", f"/v1/cb/{kind}/{TOKEN}", {}, posted_body(kind, receipt, account_number))


def posted_body(kind: str, receipt: str, account_number: str, amount: int = 731) -> bytes:
    """Return the JSON body, with a masked payer as version 2 sends it. ``amount`` is in KES."""
    body = {
        "TransactionType": "Pay Bill",
        "TransID": receipt,
        "TransTime": (datetime.now(UTC) + timedelta(hours=3)).strftime("%Y%m%d%H%M%S"),
        "TransAmount": f"{amount}.00",
        "BusinessShortCode": "174379",
        "BillRefNumber": account_number,
        "InvoiceNumber": "",
        "OrgAccountBalance": "" if kind == "c2b-validation" else "49197.00",
        "ThirdPartyTransID": "",
        "MSISDN": "2547 ***** 149",
        "FirstName": "JOHN",
    }
    return json.dumps(body).encode()
