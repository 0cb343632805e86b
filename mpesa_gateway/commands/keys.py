"""``mpesa-gateway keys``: master keys, which seal stored secrets."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from mpesa_gateway.commands.listing import JSON, print_json
from mpesa_gateway.commands.session import CommandFailed, Session, actor, pass_session
from mpesa_gateway.config import read_text_file
from mpesa_gateway.security.sealing import generate as new_key
from mpesa_gateway.security.sealing import read_ring_file
from mpesa_gateway.standalone.data_folder import confirm_key_saved

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


@click.group()
def keys() -> None:
    """Generate master keys, and reseal stored secrets."""


@keys.command()
def generate() -> None:
    """Print a new master key: 32 random bytes in base64. Keep a copy in a safe place."""
    click.echo(new_key())


@keys.command()
@click.option(
    "--generate", "make_one", is_flag=True, help="First add a new key at the head of security.master_key_file."
)
@JSON
@pass_session
def rotate(session: Session, *, make_one: bool, as_json: bool) -> None:
    """Reseal every stored secret with the first master key, while the gateway runs.

    The old keys must still be listed (further lines of security.master_key_file, or security.old_master_keys).
    """
    from mpesa_gateway.security.master_key_rotation import KERNEL_SEALED, SealedColumn, reseal

    file = session.attached().security.master_key_file
    if make_one:
        if file is None:
            raise CommandFailed(
                "`--generate` writes to `security.master_key_file`, which is not set: make a key with "
                "`mpesa-gateway keys generate`, set it as security.master_key and move the present one to "
                "security.old_master_keys"
            )
        prepend_key(Path(file), new_key())
        click.echo(f"Put a new key at the head of {file}. Make a copy of that file now.", err=as_json)

    async def work(gateway: Gateway) -> tuple[str, dict[str, int]]:
        columns = [*KERNEL_SEALED, *gateway.contributed(SealedColumn)]
        counts = await reseal(gateway.db, gateway.sealer, columns)
        await gateway.audit.record(
            "master_key.rotated", merchant_id=None, actor=actor(), detail={"key_id": gateway.sealer.key_id, **counts}
        )
        return gateway.sealer.key_id, counts

    key_id, counts = session.run(work)
    if as_json:
        print_json({"key_id": key_id, "sealed_again": counts, "old_keys_may_go": not any(counts.values())})
        return
    for column, count in counts.items():
        click.echo(f"{count:>7} sealed again in {column}")
    where = f"{file} may lose its further lines" if file else "security.old_master_keys may be emptied"
    if any(counts.values()):
        click.echo(
            f"Everything is sealed with key {key_id}. Restart every process that still holds the old key first, "
            f"run this once more, and when it counts 0, the old keys may go: {where}."
        )
    else:
        click.echo(f"Everything was sealed with key {key_id} already: the old keys may go now, {where}.")


@keys.command()
@click.option("--data", metavar="FOLDER", help="The data folder of `up`; default: MPESA_GATEWAY_DATA, else ./data.")
@pass_session
def saved(session: Session, data: str | None) -> None:
    """Confirm that you hold a copy of the master key of `up`, apart from its data; ends the warning."""
    session.keep_data_in(data)
    file = session.data / "master.key"
    if not file.is_file():
        raise CommandFailed(f"there is no master key in {session.data}: name the folder of `up` with --data")
    confirm_key_saved(session.data, file)
    click.echo(f"Noted. `up` warns again when {file} changes.")


def prepend_key(path: Path, key: str) -> None:
    """Add a master key at the head of a ring file, atomically. Raises ConfigError for an unusable file."""
    # A mounted secret is often a link: its target is replaced.
    path = path.resolve()
    read_ring_file(path)
    owner = path.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{key}\n{read_text_file(path)}")
            file.flush()
            if os.geteuid() == 0:
                # The gateway may run as another account.
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
