"""Configurations of ``up``'s processes: the host's own plus the embedded servers."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mpesa_gateway import toml
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.standalone.data_folder import read_state
from mpesa_gateway.standalone.process import write_private
from mpesa_gateway.standalone.sample_credentials import make_certificate

SIMULATOR = "simulator"
SIMULATOR_PATH = "/simulator"

OPS = "ops"


@dataclass(frozen=True)
class Embedded:
    """Values that ``up`` fills in.

    ``owner_url`` is for migrations only; None if the role of ``database_url`` owns the tables.
    """

    database_url: Secret
    owner_url: Secret | None
    valkey_url: Secret
    master_key_file: Path | None
    port: int
    simulator_port: int | None
    sandbox_certificate: Path | None


def gateway_config(base: GatewayConfig, embedded: Embedded) -> GatewayConfig:
    """Return the settings of the role that owns nothing."""
    replace = msgspec.structs.replace
    config = replace(
        base,
        public_url=public_url(base.public_url, embedded.port),
        plugins=tuple(name for name in base.plugins if name != SIMULATOR),
        database=replace(base.database, url=embedded.database_url, owner_url=None),
        valkey=replace(base.valkey, url=embedded.valkey_url),
        http=replace(base.http, port=embedded.port),
        worker=replace(base.worker, in_process=False),
        sections={name: section for name, section in base.sections.items() if name != SIMULATOR},
    )
    if embedded.master_key_file is not None:
        config = replace(config, security=replace(config.security, master_key_file=str(embedded.master_key_file)))
    if embedded.simulator_port is not None:
        url = f"http://127.0.0.1:{embedded.simulator_port}{SIMULATOR_PATH}"
        config = replace(config, daraja=replace(config.daraja, sandbox_url=url))
    if embedded.sandbox_certificate is not None:
        path = str(embedded.sandbox_certificate)
        config = replace(config, daraja=replace(config.daraja, sandbox_certificate=path))
    return config


def owner_config(config: GatewayConfig, embedded: Embedded) -> GatewayConfig:
    replace = msgspec.structs.replace
    return replace(config, database=replace(config.database, owner_url=embedded.owner_url))


def simulator_config(base: GatewayConfig, gateway: GatewayConfig, port: int) -> GatewayConfig:
    replace = msgspec.structs.replace
    return replace(
        gateway,
        public_url=f"http://127.0.0.1:{port}",
        plugins=(SIMULATOR,),
        valkey=replace(gateway.valkey, prefix=f"{gateway.valkey.prefix}-{SIMULATOR}"),
        http=replace(gateway.http, host="127.0.0.1", port=port),
        sections={name: section for name, section in base.sections.items() if name == SIMULATOR},
    )


def public_url(configured: str, port: int) -> str:
    """Return a loopback address with the served port; any other address unchanged."""
    parts = urlsplit(configured)
    if parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost"}:
        return f"http://127.0.0.1:{port}{parts.path}"
    return configured


def write_config(path: Path, config: GatewayConfig) -> None:
    write_private(path, toml.dumps(_plain(config)))


def master_key_file(base: GatewayConfig, data: Path) -> Path | None:
    """Return the master key's file, created for a new folder; None if the host has set a key.

    Raises ConfigError if the key of a used folder is missing: a new one could decrypt nothing.
    """
    security = base.security
    if security.master_key is not None or security.master_key_file is not None:
        return None
    path = data / "master.key"
    if path.exists():
        return path
    if read_state(data):
        raise ConfigError(
            f"the master key {path} is missing: restore it from your copy; without it the stored credentials cannot "
            "be read. To start without the stored data, give --data another folder"
        )
    write_private(path, generate() + "\n")
    return path


def sandbox_certificate(base: GatewayConfig, data: Path, now: datetime) -> Path | None:
    """Return the simulator's certificate, created if missing; None if the host has one."""
    if Path(base.daraja.sandbox_certificate).exists():
        return None
    path = data / "simulator-certificate.pem"
    if not path.exists():
        write_private(path, make_certificate(now).decode())
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, GatewayConfig):
        values = {field.name: _plain(getattr(value, field.name)) for field in msgspec.structs.fields(value)}
        return {name: part for name, part in values.items() if name != "sections"} | values["sections"]
    if isinstance(value, msgspec.Struct):
        values = {field.name: _plain(getattr(value, field.name)) for field in msgspec.structs.fields(value)}
        return {name: part for name, part in values.items() if part is not None}
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
