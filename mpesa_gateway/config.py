"""Settings from gateway.toml and the environment."""

import codecs
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from mpesa_gateway.dsn import DsnError, read_dsn
from mpesa_gateway.secret import Secret

ENVIRONMENT = "MPESA_GATEWAY_"
"""Prefix; ``__`` separates the parts of a setting's path."""

COMMAND_VARIABLES = frozenset({"CONFIG", "DATA", "MERCHANT"})
"""The settings file, the data folder of ``up``, and the merchant of commands."""

IGNORED_PREFIXES = ("TEST_",)

QueueName = Literal["deliveries", "daraja", "maintenance", "default"]
"""``default`` is for jobs of hosts and third parties."""

QUEUES: tuple[QueueName, ...] = get_args(QueueName)

S = TypeVar("S", bound=msgspec.Struct)

_SANDBOX_HOST, _LIVE_HOST = "sandbox.safaricom.co.ke", "api.safaricom.co.ke"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_NAME_SERVER = re.compile(
    r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?|[0-9a-fA-F:]+:[0-9a-fA-F:.]*", re.ASCII
)
Count = Annotated[int, msgspec.Meta(ge=1)]

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400, extra={"unit": "seconds"})]

WholeSeconds = Annotated[int, msgspec.Meta(ge=1, extra={"unit": "seconds"})]

Pause = Annotated[float, msgspec.Meta(ge=0, le=86_400, extra={"unit": "seconds"})]

Room = Annotated[int, msgspec.Meta(ge=0)]

Days = Annotated[int, msgspec.Meta(ge=0, le=36_500, extra={"unit": "days"})]
"""0 keeps rows without limit."""

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class ConfigError(Exception):
    """The text names the setting and the fix."""


class DatabaseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Connections to Postgres."""

    url: Secret | None = None
    direct_url: Secret | None = None
    owner_url: Secret | None = None
    schema: str = "mpesa"
    pool_min: Count = 1
    pool_max: Count = 20
    reserve: Room = 4
    connect_timeout: Seconds = 10.0
    statement_timeout: Seconds = 30.0


class ValkeyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Valkey: queues, limits and caches, all of which may be lost."""

    url: Secret | None = None
    sentinels: tuple[str, ...] = ()
    service: str = "mymaster"
    sentinel_password: Secret | None = None
    prefix: str = "mpesa"
    timeout: Seconds = 2.0


class SecurityConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Master key for sealing secrets, and trusted proxies."""

    master_key: Secret | None = None
    old_master_keys: tuple[Secret, ...] = ()
    master_key_file: str | None = None
    trusted_proxies: tuple[str, ...] = ()


class DarajaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Addresses, timeouts and public certificates of Safaricom's API."""

    sandbox_url: str = "https://sandbox.safaricom.co.ke"
    live_url: str = "https://api.safaricom.co.ke"
    connect_timeout: Seconds = 10.0
    timeout: Seconds = 30.0
    max_concurrent_per_key: Count = 100
    sandbox_certificate: str = "certs/SandboxCertificate.cer"
    live_certificate: str = "certs/ProductionCertificate.cer"


class DnsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Name servers, and the time limit of a look-up."""

    timeout: Seconds = 5.0
    servers: tuple[str, ...] = ()


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Listening address, limits and timeouts of ``mpesa-gateway serve``."""

    host: str = "127.0.0.1"
    port: Port = 8000
    max_body_bytes: Count = 65_536
    max_concurrent: Count = 16
    max_unanswered: Count = 256
    queue: Room = 100
    wait: Pause = 1.0
    connections: Count = 4000
    max_head_bytes: Count = 32_768
    head_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    stall_timeout: Seconds = 60.0
    anonymous_per_second: Count = 30
    anonymous_max_concurrent: Count = 16
    drain: Pause = 0.0


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Queues of a worker process, and concurrent jobs per queue."""

    queues: Annotated[tuple[QueueName, ...], msgspec.Meta(min_length=1)] = QUEUES
    deliveries: Count = 10
    daraja: Count = 20
    maintenance: Count = 10
    default: Count = 10
    grace: Annotated[int, msgspec.Meta(ge=0, extra={"unit": "seconds"})] = 20
    in_process: bool = False


class LogsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Format of the log."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits on failed authentication and on calls per key."""

    auth_failures: Count = 10
    auth_failures_window: WholeSeconds = 300
    account_failures: Count = 20
    requests_per_second: Count = 100
    burst: Count = 200


class OpenApiConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Contact and terms in the OpenAPI document."""

    contact_name: str = "The host of this gateway"
    contact_url: str | None = None
    contact_email: str | None = None
    terms_name: str = "The host's terms"
    terms_url: str | None = None


class RetentionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Days that rows are kept; plugins add their own."""

    idempotency_days: Days = 90
    tasks_days: Days = 30
    audit_days: Days = 2557
    batch: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 500
    pause: Pause = 0.05


class HasSettings(Protocol):
    """Settings of the kernel and the plugins."""

    config: "GatewayConfig"

    def settings(self, kind: type[S]) -> S: ...


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, described in config/gateway.toml.

    ``sections`` are the plugins', checked when plugins are loaded.
    """

    public_url: str = "http://127.0.0.1:8000"
    plugins: tuple[str, ...] = (
        "credentials",
        "callbacks",
        "transactions",
        "payments",
        "c2b",
        "refunds",
        "reconciliation",
        "qr",
        "webhooks",
        "ops",
    )
    database: DatabaseConfig = DatabaseConfig()
    valkey: ValkeyConfig = ValkeyConfig()
    security: SecurityConfig = SecurityConfig()
    daraja: DarajaConfig = DarajaConfig()
    dns: DnsConfig = DnsConfig()
    http: HttpConfig = HttpConfig()
    worker: WorkerConfig = WorkerConfig()
    logs: LogsConfig = LogsConfig()
    limits: LimitsConfig = LimitsConfig()
    openapi: OpenApiConfig = OpenApiConfig()
    retention: RetentionConfig = RetentionConfig()
    sections: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict[str, dict[str, Any]])

    @classmethod
    def load(cls, path: str | Path | None = None, environ: Mapping[str, str] | None = None) -> Self:
        """Read the file, overridden by the environment. Raises ConfigError."""
        values: dict[str, Any] = {}
        if path is not None:
            try:
                values = tomllib.loads(read_text_file(Path(path)))
            except OSError as problem:
                raise ConfigError(f"cannot read {path}: {problem.strerror}") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
                raise ConfigError(f"{path} is not valid TOML: {problem}") from None
        _overlay(values, os.environ if environ is None else environ)
        return cls.from_values(values)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """``values`` are laid out as in gateway.toml. Raises ConfigError."""
        own = {field.name for field in msgspec.structs.fields(cls)} - {"sections"}
        kernel = {name: value for name, value in values.items() if name in own}
        others = {name: value for name, value in values.items() if name not in own}
        for name, value in others.items():
            if not isinstance(value, dict):
                raise ConfigError(
                    f"unknown setting `{name}`: correct it or remove it (known: {', '.join(sorted(own))})"
                )
        config = decode(kernel, cls, "")
        config = msgspec.structs.replace(config, sections=others)
        _check(config)
        return config

    def refuse_unset(self) -> None:
        for name in ("database", "valkey"):
            if getattr(self, name).url is None:
                raise ConfigError(
                    f"`{name}.url` is not set: set MPESA_GATEWAY_{name.upper()}__URL, "
                    "or run `mpesa-gateway up`, which brings its own Postgres and Valkey"
                )

    def refuse_sections_except(self, plugins: Collection[str]) -> None:
        for name in self.sections:
            if name not in plugins:
                raise ConfigError(
                    f"unknown section `[{name}]`: it is neither a section of the gateway nor an enabled plugin's; "
                    "correct it, remove it, or add the plugin to `plugins`"
                )

    def section(self, name: str, kind: type[S]) -> S:
        return decode(_with_lists(self.sections.get(name, {}), kind), kind, name)


def read_text_file(path: Path) -> str:
    content = path.read_bytes()
    has_utf16_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if has_utf16_mark else "utf-8-sig")
    return text.replace("\r\n", "\n")


def decode(values: Any, kind: type[S], path: str) -> S:
    """Raise ConfigError with the path of the bad value."""
    try:
        return msgspec.convert(values, kind, strict=False, dec_hook=_decode_secret)
    except msgspec.ValidationError as problem:
        text, _, location = str(problem).partition(" - at `$")
        full = (path + location.rstrip("`")).strip(".")
        opening = "Object contains unknown field "
        if text.startswith(opening):
            unknown = text.removeprefix(opening).strip("`")
            known = ", ".join(sorted(field.name for field in msgspec.structs.fields(_struct_at(kind, location))))
            full = f"{full}.{unknown}".strip(".")
            raise ConfigError(f"unknown setting `{full}`: correct it or remove it (known: {known})") from None
        raise ConfigError(f"setting `{full}`: {text}") from None


def _with_lists(values: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The environment is read before the plugins' types are known."""
    hints = get_type_hints(kind)
    return {
        name: _split(value) if isinstance(value, str) and get_origin(hints.get(name)) is tuple else value
        for name, value in values.items()
    }


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _decode_secret(kind: type[Any], value: Any) -> Any:
    if kind is Secret:
        if not isinstance(value, str):
            raise TypeError("Expected `str`")
        return Secret(value)
    raise TypeError(f"cannot read a setting of type {kind.__name__}")


def _struct_at(kind: type[msgspec.Struct], location: str) -> type[msgspec.Struct]:
    found: Any = kind
    for name in location.strip("`").strip(".").split("."):
        inner = get_type_hints(found).get(name) if name else None
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found = inner
    return cast(type[msgspec.Struct], found)


def _overlay(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT):
            continue
        name = variable[len(ENVIRONMENT) :]
        if name in COMMAND_VARIABLES or name.startswith(IGNORED_PREFIXES):
            continue
        path = name.lower().split("__")
        # Environment files with Windows line ends leave a carriage return.
        text = environ[variable].rstrip("\r\n")
        if name.lower().endswith("url"):
            text = text.strip()
        kind = _kernel_type(path)
        if kind is None and path[-1].endswith("_file"):
            path[-1] = path[-1].removesuffix("_file")
            kind = _kernel_type(path)
            try:
                text = read_text_file(Path(text)).strip()
            except OSError as problem:
                raise ConfigError(f"{variable}: cannot read {text}: {problem.strerror}") from None
            except UnicodeDecodeError:
                raise ConfigError(f"{variable}: {text} is not text in UTF-8: save it as UTF-8") from None
        section: dict[str, Any] = values
        for part in path[:-1]:
            inner: Any = section.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{variable}: `{part}` is a setting, not a section")
            section = cast("dict[str, Any]", inner)
        section[path[-1]] = _read_text(text, kind, variable)


def _kernel_type(path: list[str]) -> Any:
    found: Any = GatewayConfig
    for part in path:
        if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
            return None
        found = get_type_hints(found).get(part)
    return found


def _read_text(text: str, kind: Any, variable: str) -> Any:
    if text.startswith(("[", "{")):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as problem:
            raise ConfigError(f"{variable} looks like JSON but is not: {problem}") from None
    if get_origin(kind) is tuple:
        return _split(text)
    return text


def _check(config: GatewayConfig) -> None:
    for name, url in (
        ("public_url", config.public_url),
        ("daraja.sandbox_url", config.daraja.sandbox_url),
        ("daraja.live_url", config.daraja.live_url),
    ):
        if (problem := _problem_of_url(url)) is not None:
            raise ConfigError(f"setting `{name}`: must be an http(s) address {problem}")
    _check_servers(config)
    for sentinel in config.valkey.sentinels:
        host, _, port = sentinel.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError("setting `valkey.sentinels`: must be addresses with a port, such as 10.0.0.1:26379")
    if config.valkey.sentinels and config.valkey.url is None:
        raise ConfigError("setting `valkey.sentinels`: needs `valkey.url` too, for password and database number")
    _check_daraja(config.daraja)
    if not all(map(_NAME_SERVER.fullmatch, config.dns.servers)):
        raise ConfigError("setting `dns.servers`: must be addresses, such as 10.0.0.2 or [fd00::53]:5353")
    schema = config.database.schema
    if not (schema.isascii() and schema.isidentifier() and schema == schema.lower()):
        raise ConfigError("setting `database.schema`: must be a plain lower-case name, such as mpesa")
    if not 1 <= config.database.pool_min <= config.database.pool_max:
        raise ConfigError("setting `database.pool_min`: must be at least 1 and at most `database.pool_max`")
    if config.security.master_key is not None and config.security.master_key_file is not None:
        raise ConfigError("set either `security.master_key` or `security.master_key_file`, not both")


def _check_servers(config: GatewayConfig) -> None:
    database = config.database
    for name, url in (
        ("database.url", database.url),
        ("database.direct_url", database.direct_url),
        ("database.owner_url", database.owner_url),
        ("valkey.url", config.valkey.url),
    ):
        if url is not None and not url:
            raise ConfigError(f"setting `{name}` is empty: give it an address, or remove it")
        if url is not None and name.startswith("database."):
            try:
                read_dsn(url)
            except DsnError as refusal:
                raise ConfigError(f"setting `{name}` {refusal}") from None


_URL = re.compile(r"[!#-;=?-\[\]_a-z~]*\Z", re.ASCII)

_HOST = re.compile(r"(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)\.?\Z", re.ASCII)
_ODD_SEGMENT = re.compile(r"//|/\.\.?(?:/|\Z)")
_EXAMPLE = "such as https://pay.example.co.ke"


def _problem_of_url(url: str) -> str | None:
    if not _URL.match(url):
        return f"without spaces, control characters or letters outside ASCII, {_EXAMPLE}"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        return f"whose host and port can be read, {_EXAMPLE}"
    problems = (
        (parts.scheme not in {"http", "https"} or not host, "with a host"),
        ("@" in parts.netloc, "without user name and password: remove what is before the `@`"),
        ("?" in url or "#" in url, "without query and fragment: remove what follows `?` or `#`"),
        (port == 0 or parts.netloc.endswith(":"), "with a port from 1 to 65535 or none"),
        (":" not in host and not _HOST.match(host), "with a host name of letters, digits, dots and dashes"),
        (bool(_ODD_SEGMENT.search(parts.path)), "without empty or dot segments in its path"),
    )
    return next((f"{text}, {_EXAMPLE}" for is_wrong, text in problems if is_wrong), None)


def _check_daraja(config: DarajaConfig) -> None:
    """Sandbox requests must never reach the live API, nor live requests anything else."""
    sandbox, live = urlsplit(config.sandbox_url), urlsplit(config.live_url)
    if sandbox.hostname == _LIVE_HOST:
        raise ConfigError(f"setting `daraja.sandbox_url`: {_LIVE_HOST} moves real money: set another address")
    if live.hostname == _SANDBOX_HOST:
        raise ConfigError(f"setting `daraja.live_url`: {_SANDBOX_HOST} moves no money: remove this setting")
    if "simulator" in unquote(live.path).lower().split("/"):
        raise ConfigError("setting `daraja.live_url`: that is a simulator, which moves no money: remove it")
    if _place(sandbox) == _place(live):
        raise ConfigError("settings `daraja.sandbox_url` and `daraja.live_url`: they must not be the same")
    if live.scheme != "https" and live.hostname not in _LOOPBACK:
        raise ConfigError("setting `daraja.live_url`: must be https, since it carries the keys to real money")


def _place(url: SplitResult) -> tuple[str | None, int | None, str]:
    return url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme), unquote(url.path).rstrip("/")


def masked_setting(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {field.name: masked_setting(getattr(value, field.name)) for field in msgspec.structs.fields(value)}
    if isinstance(value, Secret):
        return value.masked
    if isinstance(value, tuple | list):
        return [masked_setting(item) for item in cast("list[Any]", value)]
    return value


def is_secret(kind: Any) -> bool:
    if get_origin(kind) in {Union, UnionType, tuple}:
        return any(is_secret(part) for part in get_args(kind))
    return kind is Secret
