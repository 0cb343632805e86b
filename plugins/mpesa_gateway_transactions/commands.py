"""The command group ``mpesa-gateway transactions``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import msgspec
import rich_click as click

from mpesa_gateway.commands.listing import JSON, print_json, show, show_fields
from mpesa_gateway.commands.session import LIVE, MERCHANT, Session, actor, env_of, merchant_of, pass_session
from mpesa_gateway.phone import mask_within
from mpesa_gateway_transactions.money_kinds import MoneyKind

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway_transactions.schemas import TransactionDetails, TransactionView

_F = TypeVar("_F", bound=Callable[..., Any])

_FILTERS = (
    click.option("--direction", type=click.Choice(["in", "out"]), help="Only money in, or only money out."),
    click.option("--kind", type=click.Choice(get_args(MoneyKind)), help="Only money of this kind."),
    click.option("--allocated/--unallocated", default=None, help="Only money with, or without, a subject."),
    click.option("--shortcode", metavar="NUMBER", help="Only money of this paybill or till."),
    click.option("--account-number", metavar="TEXT", help="Only money with this account number, in any case."),
    click.option("--phone", metavar="NUMBER", help="Only money of this payer."),
    click.option("--receipt", metavar="CODE", help="Only the money with this receipt."),
    click.option("--since", metavar="TIME", help="Only money reported since this time, such as 2026-11-23T08:00:00Z."),
    click.option("--until", metavar="TIME", help="Only money reported before this time."),
    click.option("--min-amount", metavar="KES", help="Only money of at least this amount."),
    click.option("--max-amount", metavar="KES", help="Only money of at most this amount."),
    click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="Maximum number of rows."),
)


def _filtered(command: _F) -> _F:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group()
def transactions() -> None:
    """List the money that M-Pesa moved, show one transaction, and allocate incoming money."""


@transactions.command("list")
@_filtered
@MERCHANT
@LIVE
@JSON
@pass_session
def list_(session: Session, /, merchant_id: str | None, *, is_live: bool, as_json: bool, **filters: Any) -> None:
    """List a merchant's transactions of one env, newest first. Phone numbers are masked."""
    from mpesa_gateway.http.validation import read_query
    from mpesa_gateway_transactions.schemas import TransactionQuery
    from mpesa_gateway_transactions.service import TransactionService

    given = {name: [_parameter(value)] for name, value in filters.items() if value is not None}
    wanted = read_query(given, TransactionQuery)

    async def work(gateway: Gateway) -> list[TransactionView]:
        merchant = await merchant_of(gateway, merchant_id)
        service = gateway.port(TransactionService)
        return (await service.page(merchant.merchant_id, env_of(is_live=is_live), wanted)).data

    found = session.run(work)
    if as_json:
        print_json([_masked(one) for one in found])
        return
    show(
        ("transaction_id", "occurred_at", "direction", "kind", "amount", "receipt", "account_number", "allocated_to"),
        [
            (
                one.id,
                one.occurred_at,
                one.direction,
                one.kind,
                one.amount,
                one.receipt,
                mask_within(one.account_number),
                None if one.allocated_to is None else one.allocated_to.id,
            )
            for one in found
        ],
        absent="-",
    )


@transactions.command("show")
@click.argument("transaction_id", metavar="TXN_…")
@LIVE
@JSON
@pass_session
def show_(session: Session, transaction_id: str, *, is_live: bool, as_json: bool) -> None:
    """Show a transaction with its witnesses and allocations. Phone numbers are masked."""
    from mpesa_gateway_transactions.service import TransactionService

    async def work(gateway: Gateway) -> TransactionDetails:
        return await gateway.port(TransactionService).get(None, env_of(is_live=is_live), transaction_id)

    _print(session.run(work), as_json=as_json)


@transactions.command()
@click.argument("transaction_id", metavar="TXN_…")
@click.option("--payment", "payment_id", metavar="PAY_…", help="The payment that the money pays.")
@click.option("--note", metavar="TEXT", help="What the money is for; without --payment it is marked as dealt with.")
@LIVE
@JSON
@pass_session
def allocate(
    session: Session, transaction_id: str, payment_id: str | None, note: str | None, *, is_live: bool, as_json: bool
) -> None:
    """Allocate incoming money to a payment, or with a note alone mark it as dealt with. The first decision stays."""
    from mpesa_gateway.http.validation import read_body
    from mpesa_gateway_transactions.schemas import Allocate
    from mpesa_gateway_transactions.service import TransactionService

    if payment_id is None and note is None:
        raise click.UsageError("name a payment with --payment, or state with --note what the money is for")
    given = {"payment_id": payment_id, "note": note}
    wanted = read_body(msgspec.json.encode({name: value for name, value in given.items() if value}), Allocate)
    env = env_of(is_live=is_live)

    async def work(gateway: Gateway) -> TransactionDetails:
        service = gateway.port(TransactionService)
        await service.allocate(None, env, transaction_id, wanted, actor=actor())
        return await service.get(None, env, transaction_id)

    _print(session.run(work), as_json=as_json)


def _parameter(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _print(found: TransactionDetails, *, as_json: bool) -> None:
    details = _masked(found)
    if as_json:
        print_json(details)
        return
    witnesses, decisions = details.pop("witnesses"), details.pop("allocations")
    to, payer = details.pop("allocated_to"), details.pop("payer")
    details |= {"payer": payer["phone"], "payer_name": payer["name"], "occurred_at": found.occurred_at}
    details["allocated_to"] = "nothing" if to is None else f"{to['type']} {to['id']}"
    show_fields({name: value for name, value in details.items() if value is not None})
    click.echo()
    seen = zip(witnesses, found.witnesses, strict=True)
    show(("seen_at", "source", "detail"), [(at.seen_at, one["source"], one["detail"]) for one, at in seen], absent="-")
    if decisions:
        click.echo()
        decided = zip(decisions, found.allocations, strict=True)
        show(
            ("at", "allocated_to", "by", "note"),
            [(at.at, one["allocated_to"]["id"], one["by"], one["note"]) for one, at in decided],
            absent="-",
        )


def _masked(transaction: TransactionView) -> dict[str, Any]:
    masked: dict[str, Any] = mask_within(msgspec.to_builtins(transaction))
    return masked
