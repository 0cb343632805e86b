"""Operators' use cases for the payments of all merchants."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from piccolo.columns.combination import WhereRaw

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.db.keyset import Conditions, KeysetPage, Total
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, InvalidFields, require_found
from mpesa_gateway.http.confirmation import require_reason
from mpesa_gateway.phone import Msisdn, mask_phones
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway.security.url_seal import Terms, UrlSeal
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.listing import PAYMENTS, conditions
from mpesa_gateway_payments.schemas import CheckView, PaymentFilters, TimelineEntry
from mpesa_gateway_payments.states import Cause, Status
from mpesa_gateway_payments.status_queries import StatusQueryService
from mpesa_gateway_payments.stk_queries import StkQueries
from mpesa_gateway_payments.tables import PaymentRow, StatusCheckRow
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.views import EXPORTED, exported

OPERATORS_EXPORTED = (*EXPORTED, "merchant_id")
"""The columns of the operators' CSV file."""

REVIEWED = "payment.reviewed"
_MOST_CHECKS = 50
"""Status queries shown for a payment."""


class OperatorPaymentFilters(PaymentFilters, frozen=True, kw_only=True):
    """Filters of the operators' list.

    ``payer`` is a sealed phone number, ``terms`` the sealed ``search`` and ``reference``; ``held`` selects payments
    that need review.
    """

    merchant: str | None = None
    payer: str | None = None
    terms: str | None = None
    held: bool = False
    cursor: str | None = None


class PaymentOperatorService:
    """Lists payments and performs operators' actions.

    ``within`` limits every list to a member's merchant; None for the host's people.
    """

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        audit: Audit,
        sealer: Sealer,
        transitions: Transitions,
        queries: StkQueries,
        checks: StatusQueryService,
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._payers = UrlSeal(sealer, "payer", place="payments")
        self.terms = Terms(sealer, place="payments")
        self._transitions = transitions
        self._queries = queries
        self._checks = checks

    def seal_payer(self, phone: Msisdn) -> str:
        """Return a number sealed for a URL."""
        return self._payers.seal(str(phone))

    def payer_of(self, filters: OperatorPaymentFilters) -> Msisdn | None:
        """Raises InvalidFields for a value that was not sealed here."""
        if filters.payer is None:
            return None
        try:
            return Msisdn(self._payers.open(filters.payer))
        except ValueError:
            raise InvalidFields.field_error("payer", "search for the number again") from None

    async def page(
        self, env: Env, filters: OperatorPaymentFilters, limit: int, *, within: str | None, sees_numbers: bool
    ) -> KeysetPage[Row]:
        """Raises InvalidFields. Without ``sees_numbers``, no search finds a part of a phone number."""
        found = self._conditions(env, filters, within=within, sees_numbers=sees_numbers)
        return await PAYMENTS.page(self._db, found, filters.cursor, limit)

    async def total(
        self, env: Env, filters: OperatorPaymentFilters, *, within: str | None, sees_numbers: bool
    ) -> Total:
        return await PAYMENTS.total(self._db, self._conditions(env, filters, within=within, sees_numbers=sees_numbers))

    async def count_newer(
        self, env: Env, filters: OperatorPaymentFilters, *, within: str | None, sees_numbers: bool
    ) -> int:
        found = self._conditions(env, filters, within=within, sees_numbers=sees_numbers)
        return await PAYMENTS.count_newer(self._db, found, filters.cursor)

    async def count_needing_review(self, env: Env, merchant_id: str | None = None) -> int:
        if merchant_id is None:
            return int(await self._db.fetchval(tables.COUNT_NEEDING_REVIEW, [env]))
        return int(await self._db.fetchval(tables.COUNT_NEEDING_REVIEW_OF, [env], merchant_id))

    def export(
        self, env: Env, filters: OperatorPaymentFilters, *, within: str | None
    ) -> AsyncGenerator[list[Sequence[Any]]]:
        """Return rows of OPERATORS_EXPORTED, of all merchants without a chosen one."""
        return PAYMENTS.export(
            self._db,
            self._conditions(env, filters, within=within, sees_numbers=True),
            lambda row: (*exported(row), row["merchant_id"]),
        )

    def _plain(self, filters: OperatorPaymentFilters) -> PaymentFilters:
        values: dict[str, Any] = {name: getattr(filters, name) for name in PaymentFilters.__struct_fields__}
        payer = self.payer_of(filters)
        if payer is not None:
            values["phone"] = str(payer)
        return PaymentFilters(**values)

    def _conditions(
        self, env: Env, filters: OperatorPaymentFilters, *, within: str | None, sees_numbers: bool
    ) -> Conditions:
        found = conditions(within or filters.merchant, env, self._plain(filters), sees_numbers=sees_numbers)
        if filters.held:
            found.add(tables.NEEDS_REVIEW)
        return found

    async def get(self, payment_id: str) -> Row:
        """Raises NotFound."""
        return require_found(await self._db.fetchrow(tables.READ, [payment_id]), "there is no such payment")

    async def steps(self, payment_id: str) -> list[TimelineEntry]:
        return [TimelineEntry(**dict(step)) for step in await self._db.fetch(tables.TIMELINE, payment_id)]

    async def actors_of(self, row: Row, steps: Sequence[TimelineEntry]) -> dict[str, str]:
        """Return the actors of a payment's steps by kind, without the merchant's own system."""
        found = {"requested": row["requested_by"]}
        if any(step.kind == "reviewed" for step in steps):
            newest = (await self._audit.page(1, None, REVIEWED, None, subject_id=row["payment_id"])).rows
            found["reviewed"] = newest[0].actor if newest else None
        return {kind: actor for kind, actor in found.items() if actor}

    async def checks(self, payment_id: str) -> list[CheckView]:
        rows = await self._checks_of(payment_id)
        return [CheckView(**{name: row[name] for name in CheckView.__struct_fields__}) for row in rows]

    async def handles(self, payment_id: str) -> list[str]:
        row = await self.get(payment_id)
        asked = await self._checks_of(payment_id)
        known = [row["checkout_request_id"], *(check["originator_conversation_id"] for check in asked)]
        return [handle for handle in known if handle]

    async def _checks_of(self, payment_id: str) -> list[Found]:
        rows: list[Found] = await self._db.run(
            StatusCheckRow.select()
            .where(StatusCheckRow.payment_id == payment_id)
            .order_by(StatusCheckRow.created_at)
            .limit(_MOST_CHECKS)
        )
        return rows

    async def query(self, payment_id: str) -> str:
        """Send an STK query; return the new status. Raises NotFound and NotQueryable."""
        row = await self.get(payment_id)
        await self._queries.query_now(row["merchant_id"], row["env"], payment_id)
        return str((await self.get(payment_id))["status"])

    async def check_status(self, payment_id: str) -> None:
        """Raises NotFound, NotQueryable, ProviderNotConfigured, ProviderRejected or ProviderUnavailable."""
        row = await self.get(payment_id)
        await self._checks.ask(row["merchant_id"], row["env"], payment_id)

    async def resolve(self, payment_id: str, reason: str, *, actor: str) -> None:
        """Record a review. Raises NotFound, InvalidFields, or Conflict if none is pending."""
        require_reason(reason, "what was done about it")
        now = self._clock.now()
        async with self._db.transaction():
            rows: list[Found] = await self._db.run(
                PaymentRow.update({PaymentRow.reviewed_at: now, PaymentRow.updated_at: now})
                .where(PaymentRow.payment_id == payment_id, WhereRaw(tables.NEEDS_REVIEW))
                .returning(PaymentRow.merchant_id, PaymentRow.env, PaymentRow.mismatch, PaymentRow.reversed_outside)
            )
            if not rows:
                await self.get(payment_id)
                raise Conflict("this payment does not need review")
            (row,) = rows
            await self._transitions.step(payment_id, now, "reviewed", Cause.OPERATOR, None, reason)
            await self._audit.record(
                REVIEWED,
                merchant_id=row["merchant_id"],
                actor=actor,
                subject_id=payment_id,
                env=row["env"],
                detail={"mismatch": row["mismatch"], "reversed_outside": row["reversed_outside"]},
            )


def audited(filters: OperatorPaymentFilters) -> dict[str, str]:
    """Return the filters without phone numbers."""
    chosen = {name: value for name, value in msgspec.structs.asdict(filters).items() if value and name != "cursor"}
    return {name: "one number" if name == "payer" else mask_phones(str(value)) for name, value in chosen.items()}


def needs_review(row: Row) -> bool:
    """True if reported money is unexplained and unreviewed."""
    if row["reviewed_at"] is None and row["reversed_outside"] is not None:
        return True
    is_open = row["status"] in {Status.PENDING.value, Status.FAILED.value}
    # Paid with other money than reported: the payer may have paid twice.
    is_other = None not in {row["receipt"], row["received_receipt"]} and row["receipt"] != row["received_receipt"]
    is_settled = row["receipt"] is not None and row["receipt"] == row["received_receipt"]
    is_other_amount = row["mismatch"] == "amount" and not is_settled
    is_later = row["mismatch"] == "receipt" or row["is_mismatch_of_paid"]
    is_uncounted = is_open or is_later or is_other or is_other_amount
    return row["mismatch"] is not None and row["reviewed_at"] is None and is_uncounted
