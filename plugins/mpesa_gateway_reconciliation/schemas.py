"""Wire schemas of reconciliation."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec

from mpesa_gateway.db.engine import Found, Row
from mpesa_gateway.env import Environment
from mpesa_gateway.http.envelope import Meta
from mpesa_gateway.http.field_rules import SHORTCODE
from mpesa_gateway.http.fields import Receipt, Yes, example_id, id_field, named
from mpesa_gateway.http.query import Limit, Moment
from mpesa_gateway.phone import mask_phones
from mpesa_gateway_payments.api import Finding, PaymentId

RunId = Annotated[str, id_field("run")]
LineId = Annotated[str, id_field("txn")]

_LineFinding = Literal["new", Finding]


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """A shortcode with Pull enabled."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"shortcode": "174379", "response_code": "0", "response_desc": "Success"}

    env: Environment
    shortcode: str
    response_code: str
    response_desc: str
    registered_at: datetime


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The window to reconcile: from ``start`` to ``end`` within the last 48 hours, by default the last two hours.

    ``shortcode`` is the number that payers pay, by default the default one.
    """

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"shortcode": SHORTCODE}
    EXAMPLE: ClassVar[Mapping[str, Any]] = {}

    start: Moment | None = None
    end: Moment | None = None
    shortcode: str | None = None


class RegistrationQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shortcode to register, by default the default one."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {"shortcode": SHORTCODE}

    shortcode: str | None = None


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A reconciliation run with its counts. ``malformed`` rows were unreadable and are not counted as lines."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "cause": "cron",
        "status": "completed",
        "shortcode": "174379",
        "lines": 3,
        "malformed": 0,
        "already_known": 2,
        "not_found": 0,
        "mismatched": 0,
        "ambiguous": 0,
        "error": None,
    }

    id: RunId
    env: Environment
    cause: Annotated[Literal["cron", "manual"], named("RunCause")]
    status: Annotated[Literal["running", "completed", "failed"], named("RunStatus")]
    shortcode: str
    start: datetime
    end: datetime
    pages: int
    lines: int
    malformed: int
    already_known: int
    recovered: int
    not_found: int
    mismatched: int
    ambiguous: int
    error: str | None
    started_at: datetime
    finished_at: datetime | None


class LineView(msgspec.Struct, frozen=True, kw_only=True):
    """A line of M-Pesa's statement with its finding; ``payment_id`` if it belongs to a payment.

    ``asked_at`` is the time of the status query about it, sent if several payments fit.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "amount": "500.00",
        "phone": "2547****149",
        "reference": "order 1041",
        "kind": "Customer Merchant Payment",
        "finding": "recovered",
        "asked_at": None,
    }

    id: LineId
    env: Environment
    receipt: Receipt
    amount: str
    phone: str | None
    reference: str | None
    kind: str | None
    at: datetime
    finding: Annotated[_LineFinding, named("LineFinding")]
    payment_id: PaymentId | None
    asked_at: datetime | None


class RunWithRows(RunView, frozen=True, kw_only=True):
    """A run with its lines."""

    rows: list[LineView]


class RunPage(msgspec.Struct, frozen=True, kw_only=True):
    """A run with one page of its lines."""

    success: Yes = True
    data: RunWithRows
    meta: Meta


class RunsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Page of the list of runs."""

    limit: Limit = 50
    cursor: str | None = None
    count: bool = False


class RowsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filter and page of a run's lines."""

    limit: Limit = 50
    cursor: str | None = None
    outcome: Annotated[Finding, named("Finding")] | None = None


class Assignment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The payment that a person assigns to a statement line."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"payment_id": example_id("pay")}

    payment_id: str


def run_view(row: Found) -> RunView:
    return RunView(**_run_values(row))


def run_with_rows(row: Found, rows: list[LineView]) -> RunWithRows:
    return RunWithRows(**_run_values(row), rows=rows)


def line_view(row: Row, finding: Finding | None = None) -> LineView:
    return LineView(
        id=row["line_id"],
        env=row["env"],
        receipt=row["receipt"],
        amount=row["amount_text"] if row["amount"] is None else f"{row['amount']}.00",
        phone=None if row["phone"] is None else mask_phones(row["phone"]),
        reference=row["reference"],
        kind=row["kind"],
        at=row["moments"][0],
        finding=cast(_LineFinding, finding or row["finding"]),
        payment_id=row["payment_id"],
        asked_at=row["asked_at"],
    )


def _run_values(row: Found) -> dict[str, Any]:
    renamed = {"id": row["run_id"], "start": row["window_start"], "end": row["window_end"]}
    return renamed | {name: row[name] for name in RunView.__struct_fields__ if name not in renamed}
