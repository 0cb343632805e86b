"""The settings: read from gateway.toml and the environment, checked whole, refused by name when unknown."""

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
"""Every environment variable that we read starts with this; ``__`` stands for the dot in a setting's path."""

ELSEWHERE = frozenset({"CONFIG", "DATA"})
"""Variables with that prefix which the commands read themselves: where the file is, where ``up`` keeps its data."""

NOT_OURS = ("TEST_",)
"""Prefixes, after ours, of variables that are not settings: those of the test fixtures."""

QueueName = Literal["deliveries", "daraja", "maintenance", "default"]
"""One queue for each kind of work: webhooks; questions to M-Pesa; sweeps and upkeep; a host's and third parties'."""

QUEUES: tuple[QueueName, ...] = get_args(QueueName)

S = TypeVar("S", bound=msgspec.Struct)

_SANDBOX_HOST, _LIVE_HOST = "sandbox.safaricom.co.ke", "api.safaricom.co.ke"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_NAME_SERVER = re.compile(
    r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?|[0-9a-fA-F:]+:[0-9a-fA-F:.]*", re.ASCII
)
Count = Annotated[int, msgspec.Meta(ge=1)]
"""A number of things of which there must be one."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400, extra={"unit": "seconds"})]
"""A time to wait for something, in seconds: a day at most, and never none. The reference shows what the unit is."""

WholeSeconds = Annotated[int, msgspec.Meta(ge=1, extra={"unit": "seconds"})]
"""A time in whole seconds, however long, but never none."""

Pause = Annotated[float, msgspec.Meta(ge=0, le=86_400, extra={"unit": "seconds"})]
"""A time to let pass, in seconds: none, or a day at most."""

Room = Annotated[int, msgspec.Meta(ge=0)]
"""A number of things of which there may be none."""

Days = Annotated[int, msgspec.Meta(ge=0, le=36_500, extra={"unit": "days"})]
"""A time to keep something, in days; 0 for ever."""

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
"""A port to listen on; 0 takes a free one."""


class ConfigError(Exception):
    """The configuration cannot be used. The text names the setting and the fix."""


class DatabaseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Postgres, the only truth. With ``direct_url``, ``url`` leads through a pooler in transaction mode.

    ``owner_url`` is for ``mpesa-gateway migrate`` alone: the role that owns the tables, past any pooler. Without it the
    role of ``url`` owns them, and could change or remove whatever the gateway keeps.
    """

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
    """Valkey: the queue, limits and caches. All of it may vanish.

    With ``sentinels``, host and port are whatever these say of ``service``, and ``url`` tells the rest.
    """

    url: Secret | None = None
    sentinels: tuple[str, ...] = ()
    service: str = "mymaster"
    sentinel_password: Secret | None = None
    prefix: str = "mpesa"
    timeout: Seconds = 2.0


class SecurityConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The master key that seals secrets at rest, and who may speak for a client's address."""

    master_key: Secret | None = None
    old_master_keys: tuple[Secret, ...] = ()
    master_key_file: str | None = None
    trusted_proxies: tuple[str, ...] = ()


class DarajaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where Safaricom's API answers, for how long we wait for it, and the files with its public certificates."""

    sandbox_url: str = "https://sandbox.safaricom.co.ke"
    live_url: str = "https://api.safaricom.co.ke"
    connect_timeout: Seconds = 10.0
    timeout: Seconds = 30.0
    max_concurrent_per_key: Count = 100
    sandbox_certificate: str = "certs/SandboxCertificate.cer"
    live_certificate: str = "certs/ProductionCertificate.cer"


class DnsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How host names of webhooks and of Daraja are looked up: by whom, and for how many seconds at most."""

    timeout: Seconds = 5.0
    servers: tuple[str, ...] = ()


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where ``mpesa-gateway serve`` listens, how much it takes, in one request and at a time, and how long it waits.

    ``max_concurrent`` calls are worked on at a time, and ``max_unanswered`` are begun, those included that wait for
    others; ``queue`` more may wait for their turn, ``wait`` seconds at most. Callbacks and health wait for nobody.
    ``connections`` are served. ``anonymous_per_second`` requests without a known key and ``anonymous_max_concurrent``
    of their
    bodies and pages are taken from one address; more are slowed. Times are in seconds: ``head_timeout`` for a whole
    request line with its headers, ``body_timeout`` for a whole body, ``stall_timeout`` for a client that takes nothing
    of what it is sent. ``drain`` is for how long a server that is told to stop goes on serving while /health/ready
    says that nothing new is to be sent to it.
    """

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
    """The queues' workers: which queues a worker process serves, and how many jobs of each it runs at the same time."""

    queues: Annotated[tuple[QueueName, ...], msgspec.Meta(min_length=1)] = QUEUES
    deliveries: Count = 10
    daraja: Count = 20
    maintenance: Count = 10
    default: Count = 10
    grace: Annotated[int, msgspec.Meta(ge=0, extra={"unit": "seconds"})] = 20
    in_process: bool = False


class LogsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the log looks like."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a client may fail to authenticate, how often one account may, and how often a key may call."""

    auth_failures: Count = 10
    auth_failures_window: WholeSeconds = 300
    account_failures: Count = 20
    requests_per_second: Count = 100
    burst: Count = 200


class OpenApiConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the OpenAPI document tells merchants: whom to ask, and under which terms they use the API."""

    contact_name: str = "The host of this gateway"
    contact_url: str | None = None
    contact_email: str | None = None
    terms_name: str = "The host's terms"
    terms_url: str | None = None


class RetentionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """For how long things are kept, in days, 0 for ever; each plugin says so of its own.

    Every night what is older is deleted, ``batch`` rows at a time with a ``pause`` in between, in seconds.
    """

    idempotency_days: Days = 90
    tasks_days: Days = 30
    audit_days: Days = 2557
    batch: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 500
    pause: Pause = 0.05


class HasSettings(Protocol):
    """The settings of the kernel, and those of plugins by their class."""

    config: "GatewayConfig"

    def settings(self, kind: type[S]) -> S:
        """Return a plugin's settings. Raises KeyError when no enabled plugin has such settings."""
        ...


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. ``sections`` holds the plugins' own tables, checked when they are loaded."""

    public_url: str = "http://127.0.0.1:8000"
    plugins: tuple[str, ...] = (
        "credentials",
        "callbacks",
        "transactions",
        "payments",
        "refunds",
        "reconciliation",
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
        """Read the file (if one is named) and lay the environment over it.

        Raises ConfigError for a file that cannot be read, an unknown or wrongly typed kernel setting.
        """
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
        """A configuration from plain values, laid out as in gateway.toml. Raises ConfigError."""
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
        """Raise ConfigError where the address of Postgres or of Valkey is not set."""
        for name in ("database", "valkey"):
            if getattr(self, name).url is None:
                raise ConfigError(
                    f"`{name}.url` is not set: set MPESA_GATEWAY_{name.upper()}__URL, "
                    "or run `mpesa-gateway up`, which brings its own Postgres and Valkey"
                )

    def refuse_sections_except(self, plugins: Collection[str]) -> None:
        """Raise ConfigError for a section that belongs to no enabled plugin."""
        for name in self.sections:
            if name not in plugins:
                raise ConfigError(
                    f"unknown section `[{name}]`: it is neither a section of the gateway nor an enabled plugin's; "
                    "correct it, remove it, or add the plugin to `plugins`"
                )

    def section(self, name: str, kind: type[S]) -> S:
        """A plugin's settings; raises ConfigError for unknown or wrongly typed keys."""
        return decode(_with_lists(self.sections.get(name, {}), kind), kind, name)


def read_text_file(path: Path) -> str:
    """Return the text of a file in UTF-8, or in what its byte order mark says (Windows editors write one).

    Raises OSError, and UnicodeDecodeError for anything else.
    """
    content = path.read_bytes()
    has_utf16_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if has_utf16_mark else "utf-8-sig")
    return text.replace("\r\n", "\n")


def decode(values: Any, kind: type[S], path: str) -> S:
    """Turn plain values into a settings struct; raises ConfigError with the path of what is wrong."""
    try:
        return msgspec.convert(values, kind, strict=False, dec_hook=_decode_secret)
    except msgspec.ValidationError as problem:
        text, _, where = str(problem).partition(" - at `$")
        full = (path + where.rstrip("`")).strip(".")
        opening = "Object contains unknown field "
        if text.startswith(opening):
            unknown = text.removeprefix(opening).strip("`")
            known = ", ".join(sorted(field.name for field in msgspec.structs.fields(_struct_at(kind, where))))
            full = f"{full}.{unknown}".strip(".")
            raise ConfigError(f"unknown setting `{full}`: correct it or remove it (known: {known})") from None
        raise ConfigError(f"setting `{full}`: {text}") from None


def _with_lists(values: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A plugin's values, a list's split at their commas: the environment was read before the types were known."""
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


def _struct_at(kind: type[msgspec.Struct], where: str) -> type[msgspec.Struct]:
    found: Any = kind
    for name in where.strip("`").strip(".").split("."):
        inner = get_type_hints(found).get(name) if name else None
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found = inner
    return cast(type[msgspec.Struct], found)


def _overlay(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT):
            continue
        name = variable[len(ENVIRONMENT) :]
        if name in ELSEWHERE or name.startswith(NOT_OURS):
            continue
        path = name.lower().split("__")
        # Files of variables with Windows line ends leave a carriage return at the end of each value.
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
    """The declared type of a kernel setting, or None for anything else (a plugin's, or unknown)."""
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
    """Addresses that can be read, and mean what they say."""
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
"""What a URL is written with (RFC 3986): no spaces, control characters, quotes, angle brackets or back slashes."""

_HOST = re.compile(r"(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)\.?\Z", re.ASCII)
_ODD_SEGMENT = re.compile(r"//|/\.\.?(?:/|\Z)")
_EXAMPLE = "such as https://pay.example.co.ke"


def _problem_of_url(url: str) -> str | None:
    """Return what is wrong with an address that others are told, with the fix; None where it can be used."""
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
    """Real money goes to Safaricom's live API and to nothing else; what is tried goes nowhere near it."""
    sandbox, live = urlsplit(config.sandbox_url), urlsplit(config.live_url)
    if sandbox.hostname == _LIVE_HOST:
        raise ConfigError(f"setting `daraja.sandbox_url`: {_LIVE_HOST} moves real money: sandbox merchants stay away")
    if live.hostname == _SANDBOX_HOST:
        raise ConfigError(f"setting `daraja.live_url`: {_SANDBOX_HOST} moves no money: leave this setting out")
    if "simulator" in unquote(live.path).lower().split("/"):
        raise ConfigError("setting `daraja.live_url`: that is a simulator, which moves no money: leave it out")
    if _place(sandbox) == _place(live):
        raise ConfigError("settings `daraja.sandbox_url` and `daraja.live_url`: they must not be the same")
    if live.scheme != "https" and live.hostname not in _LOOPBACK:
        raise ConfigError("setting `daraja.live_url`: must be https, since it carries the keys to real money")


def _place(url: SplitResult) -> tuple[str | None, int | None, str]:
    """What an address leads to, however it is spelt."""
    return url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme), unquote(url.path).rstrip("/")


def masked_setting(value: Any) -> Any:
    """A configuration as it may be printed: secrets masked, nothing else changed."""
    if isinstance(value, msgspec.Struct):
        return {field.name: masked_setting(getattr(value, field.name)) for field in msgspec.structs.fields(value)}
    if isinstance(value, Secret):
        return value.masked
    if isinstance(value, tuple | list):
        return [masked_setting(item) for item in cast("list[Any]", value)]
    return value


def is_secret(kind: Any) -> bool:
    """Whether a setting's declared type holds a secret."""
    if get_origin(kind) in {Union, UnionType, tuple}:
        return any(is_secret(part) for part in get_args(kind))
    return kind is Secret
