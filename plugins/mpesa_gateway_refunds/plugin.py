"""The refunds plugin, declared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpesa_gateway.places import Places
from mpesa_gateway.plugin import Job, Plugin, Tables, inside
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.events import ReversalResulted, StatusResulted
from mpesa_gateway_credentials.api import Credentials, OpenWork
from mpesa_gateway_payments.api import RefundablePayments
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.desk import RefundDesk
from mpesa_gateway_refunds.doctor import CHECKS
from mpesa_gateway_refunds.endings import RefundEndings
from mpesa_gateway_refunds.erasure import REFUNDS
from mpesa_gateway_refunds.events import RefundFailed
from mpesa_gateway_refunds.invariants import INVARIANTS
from mpesa_gateway_refunds.jobs import ask, sweep
from mpesa_gateway_refunds.measures import READINGS
from mpesa_gateway_refunds.pages import PAGES
from mpesa_gateway_refunds.queries import RefundQueries
from mpesa_gateway_refunds.results import ReversalResults
from mpesa_gateway_refunds.reversing import ReversalSender
from mpesa_gateway_refunds.routes import routes
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.settings import RefundsSettings
from mpesa_gateway_refunds.tables import RefundRow

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def take_reversal_result(result: ReversalResulted, gateway: "Gateway") -> None:
    """Daraja told how a reversal ended."""
    await gateway.services.get(ReversalResults).take_result(result)


async def take_status_of_reversal(result: StatusResulted, gateway: "Gateway") -> None:
    """Daraja told what we asked about a reversal."""
    await gateway.services.get(ReversalResults).take_status(result)


async def _count_open(gateway: "Gateway", shortcode_ids: Sequence[str]) -> dict[str, int]:
    rows = await gateway.db.fetch(tables.OPEN_OF_SHORTCODES, shortcode_ids)
    return {row["shortcode_id"]: row["open"] for row in rows}


_ASKED_EACH = 2
"""Refunds of one merchant that one worker asks about at the same time."""


def _service(gateway: "Gateway") -> RefundService:
    return RefundService(
        db=gateway.db,
        reads=gateway.reads,
        clock=gateway.clock,
        ids=gateway.ids,
        settings=gateway.settings(RefundsSettings),
        audit=gateway.audit,
        outcomes=gateway.outcomes,
        public_url=gateway.url,
        see_through=gateway.see_through,
        payments=gateway.services.get(RefundablePayments),
        credentials=gateway.services.get(Credentials),
        sender=gateway.services.get(ReversalSender),
    )


def _queries(gateway: "Gateway") -> RefundQueries:
    return RefundQueries(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(RefundsSettings),
        tracer=gateway.tracer,
        places=Places(max(1, gateway.config.worker.daraja // 2), each=_ASKED_EACH),
        daraja=lambda: gateway.daraja,
        jobs=lambda: gateway.jobs,
        callbacks=gateway.services.get(Callbacks),
        credentials=gateway.services.get(Credentials),
        endings=gateway.services.get(RefundEndings),
        sender=gateway.services.get(ReversalSender),
    )


def _results(gateway: "Gateway") -> ReversalResults:
    return ReversalResults(
        db=gateway.db,
        clock=gateway.clock,
        callbacks=gateway.services.get(Callbacks),
        credentials=gateway.services.get(Credentials),
        endings=gateway.services.get(RefundEndings),
    )


def _sender(gateway: "Gateway") -> ReversalSender:
    return ReversalSender(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(RefundsSettings),
        tracer=gateway.tracer,
        daraja=lambda: gateway.daraja,
        outcomes=gateway.outcomes,
        callbacks=gateway.services.get(Callbacks),
        endings=gateway.services.get(RefundEndings),
    )


def _endings(gateway: "Gateway") -> RefundEndings:
    return RefundEndings(
        db=gateway.db,
        clock=gateway.clock,
        audit=gateway.audit,
        outbox=gateway.outbox,
        payments=gateway.services.get(RefundablePayments),
    )


plugin = Plugin(
    name="refunds",
    summary="Sends money back by reversal, never more than came in, and follows each reversal to its end.",
    requires=("credentials", "callbacks", "payments"),
    settings=RefundsSettings,
    routes=routes,
    jobs=(
        Job(ask, timeout=90, queue="daraja"),
        Job(sweep, timeout=30, cron="* * * * * */10", queue="maintenance"),
    ),
    publishes=(RefundFailed,),
    subscribers=(inside(ReversalResulted, take_reversal_result), inside(StatusResulted, take_status_of_reversal)),
    provides=(
        (RefundService, _service),
        (RefundQueries, _queries),
        (ReversalResults, _results),
        (ReversalSender, _sender),
        (RefundEndings, _endings),
        (RefundDesk, RefundDesk),
    ),
    erasers=(REFUNDS,),
    tables=Tables(models=(RefundRow,), migrations="mpesa_gateway_refunds.migrations"),
    pages=PAGES,
    contributes=(OpenWork("refunds", _count_open),),
    checks=CHECKS,
    invariants=INVARIANTS,
    readings=READINGS,
)
