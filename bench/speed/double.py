"""A fast Daraja in its own process, which accepts every push at once, and the merchants' servers.

``/hook`` answers webhooks at once, ``/slow`` after seconds, ``/silent`` never: the worst kind of dead endpoint. A
statement is stored with ``POST /statement`` and returned in pages of 100. ``/receipts`` returns the time at which each
receipt of ``transaction.received`` arrived. The load generator's maximum is measured on
``/``.
"""

import asyncio
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop

from bench.speed.wire import Late, Served, response

_TOKEN = response(b'{"access_token": "the-token-of-the-double", "expires_in": "3599"}')
_OK = response(b"{}")
HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 101))
"""Loopback addresses, so that each merchant's server is another host."""

_SLOW = Late(_OK, 8.0)
_PAGE = 100
_RECEIPT = re.compile(rb'"receipt":\s*"([A-Z0-9]+)"')
_OFFSET = re.compile(rb'"OffSetValue":\s*"?([0-9]+)')


class Double:
    """The state of the double."""

    def __init__(self) -> None:
        # Ids must differ between runs on one database.
        self._numbers = itertools.count(time.time_ns())
        self.hooks = 0
        self.receipts = dict[str, float]()
        self.statement: list[Any] = []
        self._answers: dict[bytes, Callable[[bytes], bytes | Late | None]] = {
            b"POST /mpesa/stkpush/v1/processrequest": self._push,
            b"POST /hook": self._hook,
            b"POST /slow": lambda _: _SLOW,
            b"POST /silent": lambda _: None,
            b"GET /oauth": lambda _: _TOKEN,
            b"POST /pulltransactions/v1/query": self._page,
            b"POST /statement": self._keep,
            b"GET /receipts": lambda _: response(json.dumps(self.receipts).encode()),
            b"GET /hooks": lambda _: response(str(self.hooks).encode()),
        }

    def handle(self, line: bytes, body: bytes) -> bytes | Late | None:
        """Answer one request."""
        for start, answer in self._answers.items():
            if line.startswith(start):
                return answer(body)
        return _OK

    def _push(self, _: bytes) -> bytes:
        number = b"%020d" % next(self._numbers)
        return response(
            b'{"MerchantRequestID": "m-%b", "CheckoutRequestID": "ws_CO_%b", "ResponseCode": "0", '
            b'"ResponseDescription": "Success", "CustomerMessage": "Success"}' % (number, number)
        )

    def _hook(self, body: bytes) -> bytes:
        self.hooks += 1
        if b'"transaction.received"' in body and (found := _RECEIPT.search(body)):
            self.receipts.setdefault(found[1].decode(), time.time())
        return _OK

    def _keep(self, body: bytes) -> bytes:
        self.statement = json.loads(body)
        return _OK

    def _page(self, body: bytes) -> bytes:
        found = _OFFSET.search(body)
        offset = int(found[1]) if found else 0
        rows = self.statement[offset : offset + _PAGE]
        code = "1000" if rows else "1001"
        return response(
            json.dumps({"ResponseRefID": "r", "ResponseCode": code, "ResponseMessage": "", "Response": [rows]}).encode()
        )


async def serve(port: int) -> None:
    """Serve until killed."""
    double = Double()
    server = await asyncio.get_running_loop().create_server(lambda: Served(double.handle), HOSTS, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
