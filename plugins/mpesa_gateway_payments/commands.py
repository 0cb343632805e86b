"""The command group ``mpesa-gateway payments``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.commands.listing import JSON, print_json, show, show_fields
from mpesa_gateway.commands.session import (
    LIVE,
    MERCHANT,
    Session,
    env_of,
    merchant_of,
    names_of_actors,
    pass_session,
    read_time,
)
from mpesa_gateway.phone import Msisdn, mask_phones, mask_within
from mpesa_gateway_payments.states import Status

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway_payments.schemas import PaymentView


@click.group()
def payments() -> None:
    """List payments, show one, and query M-Pesa about one that has not ended."""


@payments.command("list")
@click.option(
    "--status", type=click.Choice([status.value for status in Status]), help="Only payments with this status."
)
@click.option("--since", metavar="TIME", help="Only payments created since this time, such as 2026-11-23T08:00:00Z.")
@click.option("--search", metavar="TEXT", help="A receipt, an id, a reference, an idempotency key or a phone number.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="Maximum number of payments.")
@MERCHANT
@LIVE
@JSON
@pass_session
def list_(
    session: Session,
    status: str | None,
    since: str | None,
    search: str | None,
    limit: int,
    merchant_id: str | None,
    *,
    is_live: bool,
    as_json: bool,
) -> None:
    """List a merchant's payments of one env, newest first. Phone numbers are masked."""
    from mpesa_gateway_payments.schemas import PaymentQuery
    from mpesa_gateway_payments.service import PaymentService

    filters = PaymentQuery(
        status=None if status is None else Status(status),
        since=None if since is None else read_time(since, "--since"),
        search=search,
        limit=limit,
    )

    async def work(gateway: Gateway) -> list[PaymentView]:
        merchant = await merchant_of(gateway, merchant_id)
        return (await gateway.port(PaymentService).page(merchant.merchant_id, env_of(is_live=is_live), filters)).data

    found = session.run(work)
    if as_json:
        print_json([_masked(payment) for payment in found])
        return
    show(
        ("payment_id", "created_at", "status", "amount", "phone", "receipt", "reference"),
        [
            (
                payment.id,
                payment.created_at,
                Status(payment.status).value,
                payment.amount,
                Msisdn(payment.phone).masked,
                payment.receipt,
                mask_phones(payment.reference),
            )
            for payment in found
        ],
        absent="-",
    )


@payments.command("show")
@click.argument("payment_id", metavar="PAY_…")
@JSON
@pass_session
def show_(session: Session, payment_id: str, *, as_json: bool) -> None:
    """Show a payment with its timeline. The phone number is masked."""
    from mpesa_gateway_payments.operator_service import PaymentOperatorService
    from mpesa_gateway_payments.service import PaymentService

    async def work(gateway: Gateway) -> tuple[PaymentView, dict[str, str]]:
        service = gateway.port(PaymentOperatorService)
        row = await service.get(payment_id)
        actors = await service.actors_of(row, await service.steps(payment_id))
        names = await names_of_actors(gateway, actors.values())
        found = await gateway.port(PaymentService).get(row["merchant_id"], row["env"], payment_id)
        return found, {kind: names.get(actor, actor) for kind, actor in actors.items()}

    found, actors = session.run(work)
    payment = _masked(found)
    if as_json:
        print_json(payment)
        return
    steps = payment.pop("timeline")
    payment |= {name: getattr(found, name) for name in payment if name.endswith("_at")}
    show_fields({name: value for name, value in payment.items() if value is not None and value != {}})
    click.echo()
    show(
        ("at", "step", "result", "detail"),
        [
            (
                datetime.fromisoformat(step["at"]),
                f"{step['kind']} by {actors.get(step['kind'], step['cause'])}",
                step["result_code"],
                step["detail"],
            )
            for step in steps
        ],
        absent="-",
    )


@payments.command()
@click.argument("payment_id", metavar="PAY_…")
@JSON
@pass_session
def query(session: Session, payment_id: str, *, as_json: bool) -> None:
    """Query M-Pesa now about a pending payment; the answer changes it as a callback would."""
    from mpesa_gateway_payments.operator_service import PaymentOperatorService

    async def work(gateway: Gateway) -> str:
        return await gateway.port(PaymentOperatorService).query(payment_id)

    status = session.run(work)
    if as_json:
        print_json({"payment_id": payment_id, "status": status})
    else:
        click.echo(f"{payment_id} is {status}.")


def _masked(payment: PaymentView) -> dict[str, Any]:
    """The phone number is masked in every field."""
    values: dict[str, Any] = msgspec.to_builtins(payment)
    values |= {name: rfc3339(value) for name in values if (value := getattr(payment, name)) and name.endswith("_at")}
    masked: dict[str, Any] = mask_within(values | {"phone": Msisdn(payment.phone).masked})
    return masked
