"""Isolation of envs: copies one env's rows into the other, and calls every route with a key of the wrong env."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway.ids import id_of, uuid_of
from mpesa_gateway_credentials.reader import aad
from tests.asgi import AsgiAnswer, send_request
from tests.routes import Operation, operations_of

OTHER: dict[Env, Env] = {"sandbox": "live", "live": "sandbox"}

_UUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_ID = re.compile(r"\b[a-z]{3}_[0-9a-z]{26}\b")

_WITHOUT_ENV = ("mer", "key", "aud", "ref", "rcv")
"""Prefixes of ids that both envs may show: merchants and audit entries have no env, a key id is a handle."""

_TABLES = """
SELECT relname AS name, EXISTS (
    SELECT 1 FROM pg_attribute WHERE attrelid = pg_class.oid AND attname = 'env' AND NOT attisdropped) AS has_env
FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
ORDER BY relname
"""

_LEFT_OUT = {"merchant": "{envs,updated_at}", "api_key": "{last_used_at}"}
"""Columns that calls of either env may change."""

_CHILDREN = """
SELECT conrelid::regclass::text AS child, confrelid::regclass::text AS parent FROM pg_constraint
WHERE contype = 'f' AND connamespace = current_schema()::regnamespace AND conparentid = 0
"""


async def rows_of(db: Database) -> dict[str, list[str]]:
    """Return every row of every table as JSON, without the last use of keys and the envs of merchants.

    Identifiers are in the API's format.
    """
    found: dict[str, list[str]] = {}
    for table in await db.fetch(_TABLES):
        name = table["name"]
        rows = await db.fetch(
            f"SELECT (to_jsonb(each) - '{_LEFT_OUT.get(name, '{}')}'::text[])::text AS text "  # noqa: S608 - from the catalogue
            f"FROM {name} AS each ORDER BY 1"
        )
        found[name] = [_UUID.sub(lambda uuid: id_of(UUID(uuid[0]).bytes), row["text"]) for row in rows]
    return found


_STORED = """
SELECT quote_ident(attname) AS name FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
"""
"""The columns that a writer sets."""


async def mirror(gateway: Gateway, merchant_id: str) -> None:
    """Copy all rows of a merchant in the sandbox into live, under ids of their own.

    Receipts, references, phone numbers and Idempotency-Keys stay as they are: they may be the same in both envs.
    """
    db = gateway.db
    tables = {row["name"]: row["has_env"] for row in await db.fetch(_TABLES)}
    with_env = [name for name, has_env in tables.items() if has_env and name not in {"merchant", "api_key"}]
    chosen = {name for name in with_env if not name.startswith("sim_")}
    # Child tables without an env, such as a payment's steps.
    for row in await db.fetch(_CHILDREN):
        if row["parent"] in chosen and not tables[row["child"]]:
            chosen.add(row["child"])
    async with db.transaction():
        # Rows are written in any order; each names its own parents.
        await db.execute("SET LOCAL session_replication_role = replica")
        for name in sorted(chosen):
            columns = ", ".join(row["name"] for row in await db.fetch(_STORED, name))
            # The env is part of a form, so a copy has its body whole.
            whole = " || jsonb_build_object('form_id', NULL, 'stored_body', each.body)" if "form_id" in columns else ""
            for row in await db.fetch(f"SELECT (to_jsonb(each){whole})::text AS text FROM {name} AS each"):  # noqa: S608 - from the catalogue
                text: str = row["text"]
                if '"env": "live"' not in text:
                    await db.execute(
                        f"INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE "  # noqa: S608 - from the catalogue
                        # A row that a merchant may have only once is not copied.
                        f"SELECT {columns} FROM jsonb_populate_record(NULL::{name}, $1::text::jsonb) "
                        "ON CONFLICT DO NOTHING",
                        _in_live(text, merchant_id),
                    )

        assert await db.fetchval("SELECT count(*) FROM payment WHERE env = 'live'")
        await db.execute("UPDATE merchant SET envs = '{live,sandbox}' WHERE merchant_id = $1", merchant_id)
        await _seal_again(gateway)


async def _seal_again(gateway: Gateway) -> None:
    for row in await gateway.db.fetch(
        "SELECT shortcode.*, number FROM shortcode JOIN receiver USING (receiver_id) WHERE shortcode.env = 'live'"
    ):
        for name in ("consumer_key", "consumer_secret", "passkey", "security_credential"):
            if row[name] is not None:
                here, there = (aad(row["merchant_id"], env, row["number"], name) for env in ("sandbox", "live"))
                sealed = gateway.sealer.seal(gateway.sealer.open(row[name], aad=here), aad=there)
                await gateway.db.execute(
                    f"UPDATE shortcode SET {name} = $2 WHERE shortcode_id = $1",  # noqa: S608 - one of the names above
                    row["shortcode_id"],
                    sealed,
                )


def _in_live(text: str, merchant_id: str) -> str:
    stays = {merchant_id, str(UUID(bytes=uuid_of(merchant_id)))}

    def moved(found: re.Match[str]) -> str:
        # An identifier ends in the same bits, as text and as a UUID.
        end = "fffff" if "-" in found[0] else "zzzz"
        return found[0] if found[0] in stays else found[0][: -len(end)] + end

    row: dict[str, Any] = json.loads(_UUID.sub(moved, _ID.sub(moved, text)))
    for name, value in row.items():
        if name == "env" and value is not None:
            row[name] = "live"
        elif name in {"checkout_request_id", "handle"} and value:
            row[name] = f"{value}L"
        elif name == "address_id" and value is not None:
            row[name] = value + 1000
        elif name == "fingerprint" and "callback_id" in row:
            row[name] = f"{str(value)[:-8]}5a5a5a5a"
        elif name == "reference" and row.get("reference_is_ours"):
            row[name] = f"{'M' if str(value).startswith('L') else 'L'}{str(value)[1:]}"
        elif isinstance(value, str) and name == "stored_body":
            row[name] = value.replace('"env":"sandbox"', '"env":"live"')
        elif isinstance(value, dict) and "env" in value:
            row[name] = value | {"env": "live"}
    return json.dumps(row)


@dataclass
class RouteWalk:
    """Calls every route of a gateway with a key, and with the ids of the other env's objects."""

    gateway: Gateway
    key: str
    env: Env
    merchant_id: str
    leaks: list[str] = field(default_factory=list[str])
    statuses: Counter[str] = field(default_factory=Counter[str])

    async def go(self, exempt: Mapping[str, str]) -> list[str]:
        """Return one sentence for each leak. ``exempt`` names operations on objects without an env."""
        theirs = OTHER[self.env]
        before = await rows_of(self.gateway.db)
        hidden = _ids(text for rows in before.values() for text in rows if f'"env": "{theirs}"' in text)
        assert len(hidden) > 10, hidden
        for each in operations_of(self.gateway):
            if each.scope is None or str(each) in exempt:
                continue
            for ids in self._choices(each, hidden):
                said = await self._call(each, ids)
                self.statuses[f"{each} {said.status}"] += 1
                self._look(each, said, hidden)
                after = await rows_of(self.gateway.db)
                self.leaks += [f"{each} changed {text}" for text in _changed(before, after, self.env)]
                before = after
        return self.leaks

    def _choices(self, each: Operation, hidden: set[str]) -> list[dict[str, str]]:
        by_prefix: dict[str, list[str]] = {}
        for one in sorted(hidden):
            by_prefix.setdefault(one[:3], []).append(one)
        first = {prefix: ids[0] for prefix, ids in by_prefix.items()}
        named = {
            "merchant_id": self.merchant_id,
            "payment_id": first["pay"],
            "receipt": first["pay"],
            "refund_id": first["rfd"],
            "check_id": first["chk"],
            "run_id": first["run"],
            "line_id": first["txn"],
            "delivery_id": first["dlv"],
            "event_id": first["evt"],
        }
        unknown = [name for name in each.parameters if name not in named]
        if unknown:
            # A parameter that is unknown here is tried with an id of each kind.
            return [named | dict.fromkeys(unknown, one) for one in first.values()]
        kind = next((named[name][:3] for name in each.parameters if name != "merchant_id"), None)
        name = each.parameters[-1] if each.parameters else ""
        return [named] if kind is None else [named | {name: one} for one in by_prefix[kind]]

    async def _call(self, each: Operation, ids: Mapping[str, str]) -> AsgiAnswer:
        target = "/".join(ids[part[1:-1]] if part.startswith("{") else part for part in each.path.split("/"))
        headers = [(b"x-api-key", self.key.encode()), (b"idempotency-key", self.gateway.ids.new("key").encode())]
        content: tuple[bytes, ...] = ()
        if each.body is not None:
            about = ids[each.parameters[-1]] if each.parameters else ""
            example: dict[str, Any] = dict(getattr(each.body, "EXAMPLE", {}))
            example |= {name: ids[name] for name in each.body.__struct_fields__ if name in ids}
            example |= {"confirm": about} if "confirm" in each.body.__struct_fields__ else {}
            content = (msgspec.json.encode(example),)
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(content[0])).encode())]
        if each.query is not None:
            wanted = [f"{name}={ids[name]}" for name in each.query.__struct_fields__ if name in ids]
            target += f"?{wanted[0]}" if wanted else ""
        return await send_request(self.gateway.asgi, each.method, target.encode(), tuple(headers), content)

    def _look(self, each: Operation, said: AsgiAnswer, hidden: set[str]) -> None:
        text = said.body.decode()
        shown = sorted(_ids([text]) & hidden)
        # A refusal may repeat the id of its request.
        if shown and said.status < 400:
            self.leaks.append(f"{each} shows {shown[0]}")
        if said.status >= 500 and "PROVIDER" not in text:
            self.leaks.append(f"{each} answers {said.status}: {text}")
        if each.parameters and said.status < 400 and each.parameters != ("merchant_id",):
            self.leaks.append(f"{each} answers {said.status}")


def _ids(texts: Iterable[str]) -> set[str]:
    return {one for text in texts for one in _ID.findall(text) if not one.startswith(_WITHOUT_ENV)}


def _changed(before: dict[str, list[str]], after: dict[str, list[str]], env: Env) -> list[str]:
    """Return changed or deleted rows, and new rows that are not of ``env``.

    The audit log names the caller; a row without an env may be new if it refers to a new row of ``env``.
    """
    gone: list[str] = []
    new: list[tuple[str, str]] = []
    for name, rows in after.items():
        if name.startswith("sim_") and env == "sandbox":
            # The simulator's rows have no env: it serves the sandbox.
            continue
        known, present = Counter(before[name]), Counter(rows)
        its = f'"env": "{env}"'
        gone += [f"{name}: {text}" for text in (known - present) if its not in text]
        new += [(name, text) for text in (present - known) if its not in text]
    fresh = _ids(text for name in after for text in set(after[name]) - set(before[name]) if f'"env": "{env}"' in text)
    allowed = {"audit_entry", "merchant"}
    return gone + [f"{name}: {text}" for name, text in new if name not in allowed and not _ids([text]) & fresh]
