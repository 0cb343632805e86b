"""``mpesa-gateway doctor``: checks readiness for live, and the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click
from rich.console import Console

from mpesa_gateway.commands.session import Session, alone, pass_session, reaching, run
from mpesa_gateway.config import ConfigError, LogsConfig

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.doctor.ledger import InvariantResult
    from mpesa_gateway.doctor.printing import Printer
    from mpesa_gateway.doctor.run import DoctorReport


@click.command()
@click.option("--live", is_flag=True, help="Apply the requirements of live, even if no merchant is live yet.")
@click.option("--merchant", "merchants", multiple=True, metavar="MER_…", help="Only this merchant; repeat for more.")
@click.option("--quiet", is_flag=True, help="Hide results that are ok.")
@click.option("--ledger", is_flag=True, help="Check the ledger's invariants instead.")
@click.option(
    "--statement-timeout",
    type=click.FloatRange(0.1, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="With --ledger: timeout of one query.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 10_080),
    metavar="MINUTES",
    help="With --ledger: age at which a waiting row counts as stuck; default: 10, and 30 for reconciliations.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@pass_session
@click.pass_context
def doctor(
    context: click.Context,
    session: Session,
    live: bool,
    merchants: tuple[str, ...],
    quiet: bool,
    ledger: bool,
    statement_timeout: float,
    grace: float | None,
    as_json: bool,
) -> None:
    """Check everything that payments and webhooks depend on.

    Prints each result with its fix, and exits with 1 if there is a problem. It changes nothing. Run it before going
    live and after every change.
    """
    from mpesa_gateway import logs
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.check_result import Level
    from mpesa_gateway.doctor.printing import Printer

    logs.configure(LogsConfig(format="console", level="error"))
    printer = Printer(Console(quiet=as_json), quiet=quiet)
    if ledger:
        if live or merchants:
            raise click.UsageError("--ledger checks all merchants: omit --live and --merchant")
        minutes = None if grace is None else timedelta(minutes=grace)
        proofs = run(_read_ledger(Gateway(session.attached()), printer, statement_timeout, minutes))
        _finish(context, {"holds": all(proof.holds for proof in proofs), "invariants": proofs}, as_json, "holds")
        return
    seen = _examine(session, printer, merchants, is_live=live)
    levels = Counter(one.level for one in seen)
    report = {
        "ready": not levels[Level.PROBLEM],
        "levels": {level.value: levels[level] for level in Level},
        "observations": seen,
    }
    _finish(context, report, as_json, "ready")


def _finish(context: click.Context, report: dict[str, Any], as_json: bool, good: str) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    if not report[good]:
        context.exit(1)


def _examine(session: Session, printer: Printer, merchants: Sequence[str], *, is_live: bool) -> list[DoctorReport]:
    """Return all reports, printed as they arrive. Unusable settings are the only report."""
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.check_result import Level
    from mpesa_gateway.doctor.run import DoctorReport, examine
    from mpesa_gateway.http.auth import RouteError
    from mpesa_gateway.plugin import PluginError

    try:
        config = alone(session.attached())
        gateway = Gateway(config)
        _ = gateway.asgi.litestar
    except (ConfigError, PluginError, RouteError) as refusal:
        seen = [DoctorReport(title="Settings", name="settings.readable", level=Level.PROBLEM, text=str(refusal))]
        printer.print_result(seen[0])
        printer.print_summary(seen)
        return seen

    async def work() -> list[DoctorReport]:
        found: list[DoctorReport] = []
        async for one in examine(gateway, is_live=is_live, merchant_ids=merchants):
            found.append(one)
            printer.print_result(one)
        return found

    printer.print_header(config.public_url, str(session.config_path or "the environment"))
    with printer.print_progress():
        seen = run(work())
    printer.print_summary(seen)
    return seen


async def _read_ledger(
    gateway: Gateway, printer: Printer, patience: float, grace: timedelta | None
) -> Sequence[InvariantResult]:
    from mpesa_gateway.db.engine import Database
    from mpesa_gateway.doctor.ledger import invariants_of, read_ledger

    db = Database(msgspec.structs.replace(gateway.config.database, pool_min=1, pool_max=1))
    async with reaching(gateway.config.database.url):
        await db.start()
    proofs: list[InvariantResult] = []
    try:
        printer.print_ledger_header(len(invariants_of(gateway)) + 1)
        async with reaching(gateway.config.database.url):
            async for proof in read_ledger(gateway, db, patience=patience, grace=grace):
                proofs.append(proof)
                printer.print_invariant(proof)
    finally:
        await db.stop()
    printer.print_ledger_summary(proofs)
    return proofs
