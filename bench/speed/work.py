"""Rare operations: a statement of 10,000 lines, an export of everything, the start of a process."""

import asyncio
import json
import secrets
import statistics
import time
from collections.abc import Callable
from string import ascii_uppercase
from typing import Any

from bench.speed.load import call, request
from bench.speed.seed import Shop, connect, id_stem
from bench.speed.site import Contestant, Site

_PATIENCE = 300.0
"""Timeout of a run in seconds."""

_INTERVAL = 0.2
"""Seconds between two samples of a process's memory."""

# $1 merchant, $2 the ids' common part in hexadecimal, $3 the first six letters of the references, $4 number: payments
# with a lost callback that their own reference, twelve letters, identifies.
_LOST = """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, metadata, idempotency_key, charge, merchant_request_id, checkout_request_id, due_at,
    expires_at, created_at, updated_at, accepted_at)
SELECT ($2 || lpad(n::text, 8, '0'))::uuid, $1, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode WHERE merchant_id = $1 ORDER BY shortcode_id LIMIT 1), 500, 'KES',
    '254708374149', $3 || translate(lpad(n::text, 6, '0'), '0123456789', 'ABCDEFGHIJ'), true, 'Payment', '{}',
    $2 || n, 'accepted', 'm-' || $2 || n,
    'ws_CO_' || $2 || n,
    now() + interval '1 day', now() + interval '1 day', now(), now(), now()
FROM generate_series(1, $4::bigint) AS n
RETURNING reference
"""

_KNOWN = """
SELECT receipt, amount, phone, reference FROM payment WHERE merchant_id = $1 AND receipt IS NOT NULL
ORDER BY payment_id DESC LIMIT $2
"""


async def reconcile(site: Site, shop: Shop, gateway: Contestant, lines: int) -> dict[str, Any]:
    """Return the seconds of a statement of this many lines: six in ten known, three of lost callbacks, one unmatched.

    Raises RuntimeError for an unexpected finding.
    """
    stem, mark = id_stem(), "".join(secrets.choice(ascii_uppercase) for _ in range(6))
    connection = await connect(site.database("gateway"), "mpesa")
    try:
        lost = await connection.fetch(_LOST, shop.merchant_id, stem, mark, lines * 3 // 10)
        known = await connection.fetch(_KNOWN, shop.merchant_id, lines * 6 // 10)
    finally:
        await connection.close()
    rows = [_line(row["receipt"], row["amount"], row["phone"], row["reference"]) for row in known]
    rows += [_line(f"L{mark}{number}", 500, "254708374149", row["reference"]) for number, row in enumerate(lost)]
    nobodys = lines - len(rows)
    rows += [_line(f"U{mark}{number}", 77, "254799999999", "") for number in range(nobodys)]
    await call(site.double, "POST", "/statement", body=json.dumps(rows).encode())
    key = {"X-API-Key": shop.key}
    start = time.perf_counter()
    run = json.loads(await call(gateway.ports[0], "POST", "/v1/payments/mpesa/reconcile", key, b"{}"))["data"]
    while run["status"] == "running":
        if time.perf_counter() - start > _PATIENCE:
            raise RuntimeError("the reconciliation has not ended")
        await asyncio.sleep(0.05)
        answer = await call(gateway.ports[0], "GET", f"/v1/payments/mpesa/reconciliations/{run['id']}", key)
        run = json.loads(answer)["data"]
    seconds = time.perf_counter() - start
    found = {name: run[name] for name in ("status", "lines", "already_known", "recovered", "not_found")}
    expected = {
        "status": "completed",
        "lines": lines,
        "already_known": len(known),
        "recovered": len(lost),
        "not_found": nobodys,
    }
    if found != expected:
        raise RuntimeError(f"the reconciliation found {found} instead of {expected}: {run['error']}")
    return {"seconds": seconds, "lines_per_second": lines / seconds} | found


def _line(receipt: str, amount: int, phone: str, reference: str) -> dict[str, str]:
    """Return a row as Pull returns it, with the current time in Nairobi."""
    return {
        "transactionId": receipt,
        "trxDate": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() + 3 * 3600)),
        "msisdn": phone,
        "sender": "MPESA",
        "transactiontype": "c2b-pay-bill-debit",
        "billreference": reference,
        "amount": f"{amount}.00",
        "organizationname": "Bench",
    }


async def export(shop: Shop, gateway: Contestant) -> dict[str, Any]:
    """Export all payments as CSV: returns the seconds, and the process's megabytes before, at most and after.

    Raises RuntimeError for an incomplete answer.
    """
    before = gateway.memory()
    most, total, tail, start = before, 0, b"", time.perf_counter()
    sampled_at = start
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports[0])
    try:
        writer.write(request("GET", "/v1/payments/export", {"X-API-Key": shop.key, "Connection": "close"}))
        while chunk := await reader.read(1 << 18):
            total += len(chunk)
            tail = (tail + chunk)[-5:]
            if time.perf_counter() - sampled_at > _INTERVAL:
                sampled_at = time.perf_counter()
                most = max(most, gateway.memory())
    finally:
        writer.close()
    if tail != b"0\r\n\r\n":
        raise RuntimeError("the export broke off")
    after = gateway.memory()
    return {
        "seconds": time.perf_counter() - start,
        "megabytes": total / 1e6,
        "memory_before_mb": before,
        "memory_at_most_mb": max(most, after),
        "memory_after_mb": after,
    }


async def start_up(begin: Callable[[], Contestant], times: int) -> dict[str, Any]:
    """Return the seconds until a new process accepts connections, and its megabytes then."""
    seconds: list[float] = []
    memory: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        contestant = await asyncio.to_thread(begin)
        try:
            await call(contestant.ports[0], "GET", "/health/live")
            seconds.append(time.perf_counter() - start)
            memory.append(contestant.memory())
        finally:
            await asyncio.to_thread(contestant.stop)
    return {"seconds": statistics.median(seconds), "most_seconds": max(seconds), "memory_mb": statistics.median(memory)}


async def worker_memory(site: Site, patience: float = 30) -> float:
    """Return the megabytes of a running worker."""
    log = site.folder / "worker.log"
    position = log.stat().st_size if log.exists() else 0
    worker = await asyncio.to_thread(site.worker)
    try:
        until = time.monotonic() + patience
        while b"Working" not in log.read_bytes()[position:]:
            if time.monotonic() > until:
                raise RuntimeError(f"the worker did not start: see {log}")
            await asyncio.sleep(0.05)
        return worker.memory()
    finally:
        await asyncio.to_thread(worker.stop)
