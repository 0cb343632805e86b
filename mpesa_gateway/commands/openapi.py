"""``mpesa-gateway openapi``: the OpenAPI document, without a running gateway."""

from pathlib import Path

import msgspec
import rich_click as click

from mpesa_gateway.commands.session import Session, pass_session
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import generate

_NOWHERE = {"database": Secret("postgresql://nobody@127.0.0.1/nowhere"), "valkey": Secret("redis://127.0.0.1/0")}
"""Placeholders for addresses that are not set. Nothing connects to them."""


@click.command()
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the document to this file instead of stdout.",
)
@pass_session
def openapi(session: Session, *, out: Path | None) -> None:
    """Print the OpenAPI document of the enabled plugins as JSON, as /schema/openapi.json serves it.

    No gateway has to run. Without a configured database, the document describes the `up` of this folder.
    """
    from mpesa_gateway.app import Gateway
    from mpesa_gateway.http.openapi import document_of

    document = document_of(Gateway(_describable(session)).asgi.litestar)
    shown = msgspec.json.format(msgspec.json.encode(document))
    if out is None:
        click.echo(shown.decode())
        return
    try:
        out.write_bytes(shown + b"\n")
    except OSError as problem:
        raise click.BadParameter(f"cannot write {out} ({problem.strerror})", param_hint="--out") from None


def _describable(session: Session) -> GatewayConfig:
    config = session.config()
    if config.database.url is None:
        config = session.running() or config
    for name, url in _NOWHERE.items():
        part = getattr(config, name)
        if part.url is None:
            config = msgspec.structs.replace(config, **{name: msgspec.structs.replace(part, url=url)})
    security = config.security
    if security.master_key is None and security.master_key_file is None:
        security = msgspec.structs.replace(security, master_key=Secret(generate()))
    return msgspec.structs.replace(config, security=security)
