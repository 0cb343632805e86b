"""The command group ``mpesa-gateway refunds``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.commands.listing import JSON, print_json, show, show_fields
from mpesa_gateway.commands.session import LIVE, MERCHANT, Session, env_of, merchant_of, pass_session, read_time
from mpesa_gateway.phone import mask_within

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway_refunds.schemas import RefundView

_REFUND = click.argument("refund_id", metavar="RFD_…")


@click.group()
def refunds() -> None:
    """List refunds, show one, and query M-Pesa about one that has not ended."""


@refunds.command("list")
@click.option("--status", type=click.Choice(["pending", "completed", "failed"]), help="Only refunds with this status.")
@click.option("--payment", "payment_id", metavar="PAY_…", help="Only refunds of this payment.")
@click.option("--needs-review", is_flag=True, help="Only refunds whose result M-Pesa has not reported.")
@click.option("--since", metavar="TIME", help="Only refunds created since this time, such as 2026-11-23T08:00:00Z.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="Maximum number of refunds.")
@MERCHANT
@LIVE
@JSON
@pass_session
def list_(
    session: Session,
    status: Any,
    payment_id: str | None,
    since: str | None,
    limit: int,
    merchant_id: str | None,
    *,
    needs_review: bool,
    is_live: bool,
    as_json: bool,
) -> None:
    """List a merchant's refunds of one env, newest first."""
    from mpesa_gateway_refunds.listing import list_refunds
    from mpesa_gateway_refunds.schemas import RefundQuery

    filters = RefundQuery(
        status=status,
        payment_id=payment_id,
        since=None if since is None else read_time(since, "--since"),
        needs_attention=True if needs_review else None,
        limit=limit,
    )

    async def work(gateway: Gateway) -> list[RefundView]:
        merchant = await merchant_of(gateway, merchant_id)
        return (await list_refunds(gateway.db, merchant.merchant_id, env_of(is_live=is_live), filters)).data

    found = session.run(work)
    if as_json:
        print_json([_masked(refund) for refund in found])
        return
    show(
        ("refund_id", "created_at", "status", "amount", "payment_id", "outcome"),
        [(each.id, each.created_at, each.status, each.amount, each.payment_id, each.outcome) for each in found],
        absent="-",
    )


@refunds.command("show")
@_REFUND
@JSON
@pass_session
def show_(session: Session, refund_id: str, *, as_json: bool) -> None:
    """Show a refund. Phone numbers are masked."""
    from mpesa_gateway_refunds.operator_service import RefundOperatorService
    from mpesa_gateway_refunds.views import view

    async def work(gateway: Gateway) -> RefundView:
        return view(await gateway.port(RefundOperatorService).get(refund_id))

    refund = _masked(session.run(work))
    if as_json:
        print_json(refund)
    else:
        show_fields({name: value for name, value in refund.items() if value is not None})


@refunds.command()
@_REFUND
@JSON
@pass_session
def query(session: Session, refund_id: str, *, as_json: bool) -> None:
    """Query M-Pesa now about a pending refund; the result changes it when it arrives."""
    from mpesa_gateway_refunds.operator_service import RefundOperatorService
    from mpesa_gateway_refunds.status_queries import RefundStatusQueries

    async def work(gateway: Gateway) -> None:
        row = await gateway.port(RefundOperatorService).get(refund_id)
        await gateway.port(RefundStatusQueries).ask_now(row["merchant_id"], row["env"], refund_id)

    session.run(work)
    if as_json:
        print_json({"refund_id": refund_id, "queried": True})
    else:
        click.echo(f"Status query about {refund_id} sent. The result arrives as a callback.")


def _masked(refund: RefundView) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(refund)
    values |= {name: rfc3339(value) for name in values if name.endswith("_at") and (value := getattr(refund, name))}
    masked: dict[str, Any] = mask_within(values)
    return masked
