"""The limit set by Postgres: pgbench with exactly our SQL, one payment at a time, with as many connections."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.speed.contests import Effort
from bench.speed.seed import SEED_PENDING, Shop, connect, id_stem, tag
from bench.speed.site import Site
from mpesa_gateway.db import outbox
from mpesa_gateway.db.deferred import join_statements
from mpesa_gateway.ids import uuid_of
from mpesa_gateway_callbacks import tables as callbacks
from mpesa_gateway_payments import tables as payments
from mpesa_gateway_payments import transition_sql
from mpesa_gateway_transactions import tables as transactions
from mpesa_gateway_webhooks import tables as webhooks

_PARAMETER = re.compile(r"\$([0-9]+)")
_TPS = re.compile(r"tps = ([0-9.]+)")
_FAILED = re.compile(r"number of failed transactions: ([1-9][0-9]*)")
_BODY = "repeat('x', 450)"


def _filled(sql: str, values: Sequence[str]) -> str:
    """Return a statement with SQL in place of its parameters, on one line as pgbench requires."""
    text = _PARAMETER.sub(lambda found: f"({values[int(found[1]) - 1]})", sql)
    lines = (line for line in text.splitlines() if not line.strip().startswith("--"))
    return " ".join(" ".join(lines).split()) + ";"


def _one(expression: str, kind: str = "text") -> str:
    return f"ARRAY[{expression}]::{kind}[]"


def _uuid(identifier: str) -> str:
    return f"'{uuid_of(identifier).hex()}'"


def create_script(merchant_id: str) -> str:
    """Return the statements of a create: row, key and mark before the push, acknowledgement after it."""
    number, merchant = "lpad((:n)::text, 19, '0')", _uuid(merchant_id)
    payment_id = f"('{id_stem()[:16]}' || lpad(to_hex((:n)::bigint), 16, '0'))::uuid"
    due = _one("now() + interval '10 minutes'", "timestamptz")
    sql, *given = payments.INSERT.bind(
        payment_id=_one(payment_id, "uuid"),
        merchant_id=_one(merchant, "uuid"),
        env=_one("'sandbox'"),
        shortcode=_one("'174379'"),
        amount=_one("500", "integer"),
        phone=_one("'254708374149'"),
        reference=_one(f"right({number}, 12)"),
        reference_is_ours=_one("false", "boolean"),
        description=_one("'Payment'"),
        callback_url=_one("NULL"),
        metadata=_one("'{}'"),
        idempotency_key=_one(f"'pgbench-' || {number}"),
        fingerprint=_one(f"substr(sha256(({number})::bytea), 1, 16)", "bytea"),
        leased_until=due,
        due_at=due,
        expires_at=due,
        asked_at=_one("now()", "timestamptz"),
        operation=_one("'payments.request'"),
        requested_by=_one("NULL"),
        shortcode_id=_one(
            f"(SELECT shortcode_id FROM shortcode WHERE merchant_id = {merchant} LIMIT 1)",  # noqa: S608 - an id of ours
            "uuid",
        ),
    )
    insert = _filled(sql, given)
    marked = _filled(payments.SENDING, [_one(payment_id, "uuid"), _one("1", "integer")])
    accepted = _filled(
        payments.ACCEPTED,
        [
            _one(payment_id, "uuid"),
            _one(merchant, "uuid"),
            _one(f"'pgbench-' || {number}"),
            _one(f"'m-' || {number}"),
            _one(f"'ws_CO_p' || {number}"),
            "now()",
            "now() + interval '1 day'",
            _one("'sandbox'"),
        ],
    )
    return f"\\set n random(1, 9000000000000000000)\n{insert}\n{marked}\n{accepted}\n"


def callback_script(merchant_id: str, stem: str, each: int) -> str:
    """Return the statements of a callback: one SELECT, and one statement that ends the payment and stores its event."""
    digits, merchant = f"lpad((:client_id * {each} + :k)::text, 8, '0')", _one(_uuid(merchant_id), "uuid")
    number = f"'{stem}' || {digits}"

    def named(prefix: str) -> str:
        return f"('{stem[:12]}{tag(prefix)}{stem[16:]}' || {digits})::uuid"

    payment_id = named("pay")
    known = f"(SELECT %s FROM payment WHERE payment_id = {payment_id})"  # noqa: S608 - an id of ours
    nothing, now = _one("NULL"), _one("now()", "timestamptz")
    completed = dict.fromkeys(transition_sql.WRITTEN, nothing) | {
        "payment_id": _one(payment_id, "uuid"),
        "version": _one(known % "xmin::text"),
        "status": _one("'completed'"),
        "charge": _one("'accepted'"),
        "merchant_request_id": _one(f"'m-' || {number}"),
        "checkout_request_id": _one(f"'ws_CO_' || {number}"),
        "receipt": _one(f"'P' || right(upper({number}), 18)"),
        "result_code": _one("'0'"),
        "result_desc": _one("'The service request is processed successfully.'"),
        "outcome_is_final": _one("false", "boolean"),
        "is_mismatch_of_paid": _one("false", "boolean"),
        "reviewed_at": _one("NULL", "timestamptz"),
        "due_at": _one("NULL", "timestamptz"),
        "expires_at": _one(known % "expires_at", "timestamptz"),
        "updated_at": now,
        "completed_at": now,
        "completed_by": _one("'callback'"),
    }
    keep, *kept = callbacks.KEEP.bind(
        callback_id=_one(named("cbk"), "uuid"),
        kind=_one("'stk'"),
        fingerprint=_one(f"substr(sha256((({number}))::bytea), 1, 16)", "bytea"),
        source=_one("'127.0.0.1'"),
        env=_one("'sandbox'"),
        subject_id=_one(payment_id, "uuid"),
        handle=_one(f"'ws_CO_' || {number}"),
        result_code=_one("'0'"),
        body=_one(_BODY),
        form_id=_one("NULL", "integer"),
        body_values=nothing,
        merchant_id=merchant,
        signature=_one("'none'"),
        received_at="now()",
        due_at="now() + interval '5 seconds'",
        is_applied=_one("true", "boolean"),
        body_bytes=_one("NULL", "bytea"),
    )
    _, *recorded = transactions.BOTH.bind(
        transaction_id=_one(named("txn"), "uuid"),
        env=_one("'sandbox'"),
        number=_one(known % "shortcode"),
        merchant_id=merchant,
        direction=_one("'in'"),
        kind=nothing,
        receipt=completed["receipt"],
        amount_cents=_one(known % "amount * 100", "bigint"),
        fee_cents=_one("NULL", "bigint"),
        payer=_one(known % "phone"),
        payer_digest=nothing,
        payer_name=nothing,
        account_number=nothing,
        occurred_at=now,
        is_announced=_one("false", "boolean"),
        subject_kind=_one("'payment'"),
        subject_id=_one(payment_id, "uuid"),
        conflict_id=_one("NULL", "uuid"),
        source=_one("'stk'"),
        announce_at="now()",
        seen_at="now()",
    )
    insert_events, *published = outbox.INSERT_EVENTS.bind(
        event_id=_one(named("evt"), "uuid"),
        kind=_one("'payment.completed'"),
        merchant_id=merchant,
        env=_one("'sandbox'"),
        subject_id=_one(payment_id, "uuid"),
        occurred_at=_one("now()", "timestamptz"),
        payload=_one('\'{"kind": "payment.completed"}\''),
        body=_one(_BODY),
        form_id=_one("NULL", "integer"),
        body_values=nothing,
    )
    writes: list[tuple[str, list[str], bool, str | None]] = [
        (transition_sql.UPDATE_PAYMENTS, [completed[name] for name in transition_sql.WRITTEN], True, None),
        (transactions.INSERT, recorded, True, transactions.WITNESS),
        (
            insert_events,
            published,
            False,
            None,
        ),
        (
            webhooks.FAN_OUT,
            [
                _one(named("dlv"), "uuid"),
                _one(named("evt"), "uuid"),
                merchant,
                _one("'sandbox'"),
                _one("'payment.completed'"),
                _one(payment_id, "uuid"),
                _one("now()", "timestamptz"),
            ],
            False,
            None,
        ),
        (keep, kept, True, None),
    ]
    all_at_once = join_statements(
        tuple((sql, len(values), is_counted, then) for sql, values, is_counted, then in writes)
    )
    values = [value for _, given, is_counted, _ in writes for value in (*given, *["1"] * is_counted)]
    look = _filled(payments.READ, [_one(payment_id, "uuid")])
    return "\n".join((r"\set k :k + 1", look, _filled(all_at_once, values), ""))


class Pgbench:
    """Runs pgbench on the gateway's database."""

    def __init__(self, site: Site, shop: Shop, effort: Effort) -> None:
        self._site = site
        self._shop = shop
        self._clients = effort.clients
        self._seconds = max(1, round(effort.seconds))
        self._most = effort.most

    async def create(self) -> dict[str, Any]:
        """Run creates, each of a new payment."""
        return await self._run("create", create_script(self._shop.merchant_id))

    async def callback(self) -> dict[str, Any]:
        """Run callbacks, each for another pending payment."""
        stem = id_stem()
        connection = await connect(self._site.database("gateway"), "mpesa")
        try:
            await connection.execute(SEED_PENDING, self._shop.merchant_id, stem, self._most)
        finally:
            await connection.close()
        return await self._run("callback", callback_script(self._shop.merchant_id, stem, self._most // self._clients))

    async def _run(self, name: str, script: str) -> dict[str, Any]:
        file = self._site.folder / f"pgbench-{name}.sql"
        file.write_text(script, encoding="utf-8")
        before = self._site.cpu()
        output = await _output(
            [
                str(self._site.postgres.binaries() / "pgbench"),
                "--no-vacuum",
                "--protocol=prepared",
                f"--client={self._clients}",
                "--jobs=2",
                f"--time={self._seconds}",
                "--define=k=0",
                "--log",
                f"--log-prefix={self._site.folder / f'pgbench-{name}-times'}",
                f"--file={file}",
                self._site.database("gateway") + "?options=-csearch_path%3Dmpesa",
            ]
        )
        after = self._site.cpu()
        tps = _TPS.search(output)
        took = sorted(_times(self._site.folder, f"pgbench-{name}-times"))
        if tps is None or not took or _FAILED.search(output):
            raise RuntimeError(f"pgbench printed: {output[-500:]}")
        return {
            "rate": float(tps[1]),
            "p50_ms": took[len(took) // 2],
            "p99_ms": took[len(took) * 99 // 100],
            "cpu_us": {part: (after[part] - before[part]) / len(took) * 1e6 for part in before} | {"app": 0.0},
        }


def _times(folder: Path, prefix: str) -> Iterator[float]:
    """Return the milliseconds of each transaction from pgbench's log files, which are deleted."""
    for file in folder.glob(f"{prefix}.*"):
        for line in file.read_text(encoding="ascii").splitlines():
            yield int(line.split()[2]) / 1000
        file.unlink()


async def _output(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=Path(command[0]).parent
    )
    output, _ = await process.communicate()
    text = output.decode("utf-8", "replace")
    if process.returncode != 0:
        raise RuntimeError(f"pgbench ended with {process.returncode}: {text[-500:]}")
    return text
