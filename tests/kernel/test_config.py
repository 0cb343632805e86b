"""Protects settings: read from file and environment, complete or refused, and each refusal names its setting."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mpesa_gateway.commands.keys import prepend_key
from mpesa_gateway.config import ConfigError, GatewayConfig, decode, is_secret, masked_setting
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import generate, read_ring_file

URL = "postgresql://mpesa:hunter2-and-more@127.0.0.1:5432/shop"
KEY = "k" * 43 + "="


class ShopSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plugin's settings with lists."""

    sources: tuple[str, ...] = ()
    pauses: tuple[int, ...] = ()


def load(environ: dict[str, str], file: Path | None = None) -> GatewayConfig:
    """Return the settings with these variables, named without MPESA_GATEWAY_."""
    return GatewayConfig.load(file, {f"MPESA_GATEWAY_{name}": value for name, value in environ.items()})


@pytest.mark.parametrize(
    ("values", "path", "known"),
    [
        ({"bogus": 1}, "bogus", "database"),
        ({"database": {"urll": "x"}}, "database.urll", "pool_max"),
        ({"http": {"port": 1, "hosts": "x"}}, "http.hosts", "max_body_bytes"),
        ({"security": {"masterkey": "x"}}, "security.masterkey", "master_key"),
    ],
)
def test_unknown_setting_is_refused_with_the_known_ones(values: dict[str, Any], path: str, known: str) -> None:
    with pytest.raises(ConfigError) as refused:
        GatewayConfig.from_values(values)
    assert str(refused.value).startswith(f"unknown setting `{path}`: ")
    assert known in str(refused.value).partition("(known: ")[2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"http": {"port": "many"}}, "setting `http.port`: Expected `int`"),
        ({"worker": {"in_process": "perhaps"}}, "setting `worker.in_process`: "),
        ({"logs": {"level": "loud"}}, "setting `logs.level`: "),
        ({"database": {"url": 5}}, "setting `database.url`: "),
        ({"security": {"trusted_proxies": 5}}, "setting `security.trusted_proxies`: "),
        ({"database": "postgresql://x"}, "setting `database`: Expected `object`"),
        ({"plugins": [1]}, "setting `plugins[0]`: "),
        ({"public_url": "pay.example.co.ke"}, "setting `public_url`: must be an http(s) address"),
        ({"public_url": "ftp://pay.example.co.ke"}, "setting `public_url`: "),
        ({"public_url": "https://pay.example.co.ke/?a=1"}, "setting `public_url`: "),
        ({"public_url": "https:///path"}, "setting `public_url`: "),
        ({"daraja": {"live_url": "x"}}, "setting `daraja.live_url`: "),
        ({"daraja": {"sandbox_url": ""}}, "setting `daraja.sandbox_url`: "),
        ({"daraja": {"sandbox_url": "https://api.safaricom.co.ke"}}, "`daraja.sandbox_url`: api.safaricom.co.ke"),
        ({"daraja": {"live_url": "https://sandbox.safaricom.co.ke/"}}, "setting `daraja.live_url`: sandbox."),
        ({"daraja": {"live_url": "https://pay.example/simulator"}}, "setting `daraja.live_url`: that is a simulator"),
        ({"daraja": {"live_url": "https://pay.example/x/%53imulator/"}}, "`daraja.live_url`: that is a simulator"),
        ({"daraja": {"live_url": "https://A.b:443/", "sandbox_url": "https://a.b"}}, "must not be the same"),
        ({"daraja": {"live_url": "http://api.safaricom.co.ke"}}, "setting `daraja.live_url`: must be https"),
        ({"daraja": {"live_url": "https://a.b/", "sandbox_url": "https://a.b"}}, "must not be the same"),
        ({"database": {"schema": 'x"; DROP'}}, "setting `database.schema`: must be a plain lower-case name"),
        ({"database": {"schema": "Shop"}}, "setting `database.schema`: "),
        ({"database": {"direct_url": ""}}, "setting `database.direct_url` is empty"),
        (
            {"database": {"replica_url": "postgresql://x"}},
            "unknown setting `database.replica_url`: correct it or remove",
        ),
        ({"database": {"replica_max_lag": 0.25}}, "unknown setting `database.replica_max_lag`: correct it or remove"),
        ({"valkey": {"url": "valkey://a", "sentinels": ["10.0.0.1"]}}, "setting `valkey.sentinels`: must be addresses"),
        ({"valkey": {"url": "valkey://a", "sentinels": [":26379"]}}, "setting `valkey.sentinels`: must be addresses"),
        ({"valkey": {"sentinels": ["10.0.0.1:26379"]}}, "setting `valkey.sentinels`: needs `valkey.url`"),
        ({"database": {"pool_min": 5, "pool_max": 4}}, "setting `database.pool_min`: must be at least 1 and at most"),
        ({"database": {"pool_min": 0}}, "setting `database.pool_min`: "),
        ({"security": {"master_key": KEY, "master_key_file": "x"}}, "either `security.master_key` or"),
        ({"database": {"url": ""}}, "setting `database.url` is empty"),
        ({"valkey": {"url": ""}}, "setting `valkey.url` is empty"),
        ({"http": {"port": 65_536}}, "setting `http.port`: Expected `int` <= 65535"),
        ({"worker": {"daraja": 0}}, "setting `worker.daraja`: Expected `int` >= 1"),
        ({"worker": {"concurrency": 20}}, "unknown setting `worker.concurrency`"),
        ({"worker": {"queues": []}}, "setting `worker.queues`: Expected `array` of length >= 1"),
        ({"worker": {"queues": ["webhooks"]}}, "setting `worker.queues[0]`: Invalid enum value 'webhooks'"),
        ({"limits": {"requests_per_second": 0}}, "setting `limits.requests_per_second`: Expected `int` >= 1"),
        ({"daraja": {"timeout": float("inf")}}, "setting `daraja.timeout`: Expected `float` <= 86400"),
        ({"daraja": {"timeout": float("nan")}}, "setting `daraja.timeout`: Expected `float`"),
    ],
)
def test_invalid_setting_is_refused_by_its_path(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        GatewayConfig.from_values(values)
    assert words in str(refused.value)


def test_refusal_of_a_setting_shows_no_secret() -> None:
    for values in ({"database": {"url": [URL]}}, {"security": {"master_key": {"is": KEY}}}):
        with pytest.raises(ConfigError) as refused:
            GatewayConfig.from_values(values)
        assert "hunter2" not in str(refused.value)
        assert KEY not in str(refused.value)


def test_environment_two_underscores_separate_the_path() -> None:
    config = load(
        {
            "DATABASE__URL": URL,
            "DATABASE__POOL_MAX": "7",
            "WORKER__IN_PROCESS": "true",
            "HTTP__PORT": "9001",
            "LOGS__LEVEL": "debug",
            "DARAJA__TIMEOUT": "2.5",
            "PUBLIC_URL": "https://pay.example.co.ke",
            "PAYMENTS__EXPIRE_AFTER": "60",
            "SHOP__DEEP__SETTING": "x",
        }
    )
    assert config.database.url == Secret(URL)
    assert (config.database.pool_max, config.worker.in_process, config.http.port) == (7, True, 9001)
    assert (config.logs.level, config.daraja.timeout) == ("debug", 2.5)
    assert config.public_url == "https://pay.example.co.ke"
    assert config.sections == {"payments": {"expire_after": "60"}, "shop": {"deep": {"setting": "x"}}}


def test_environment_numbers_of_a_plugin_are_read_from_text() -> None:
    class Shop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        size: int = 1
        is_open: bool = False
        key: Secret | None = None

    config = load({"SHOP__SIZE": "5", "SHOP__IS_OPEN": "true", "SHOP__KEY": "open-sesame-please"})
    assert config.section("shop", Shop) == Shop(size=5, is_open=True, key=Secret("open-sesame-please"))
    with pytest.raises(ConfigError, match=r"unknown setting `shop\.sizes`.*\(known: is_open, key, size\)"):
        load({"SHOP__SIZES": "5"}).section("shop", Shop)
    with pytest.raises(ConfigError, match=r"setting `shop\.size`: Expected `int`"):
        load({"SHOP__SIZE": "big"}).section("shop", Shop)


@pytest.mark.parametrize("text", ["credentials, payments", '["credentials", "payments"]', "credentials,payments,"])
def test_environment_list_is_written_with_commas_or_as_json(text: str) -> None:
    assert load({"PLUGINS": text}).plugins == ("credentials", "payments")


def test_environment_list_of_a_plugin_is_written_with_commas() -> None:
    config = load({"SHOP__SOURCES": "192.0.2.1, 192.0.2.0/24", "SHOP__PAUSES": "5,10"})
    assert config.section("shop", ShopSettings) == ShopSettings(sources=("192.0.2.1", "192.0.2.0/24"), pauses=(5, 10))


def test_environment_invalid_json_is_refused_by_its_variable() -> None:
    with pytest.raises(ConfigError, match="MPESA_GATEWAY_PLUGINS looks like JSON but is not"):
        load({"PLUGINS": '["credentials"'})


def test_environment_unknown_variable_is_refused_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting `database\.ulr`"):
        load({"DATABASE__ULR": "x"})
    with pytest.raises(ConfigError, match=r"unknown setting `port`"):
        load({"PORT": "1"})
    with pytest.raises(ConfigError, match=r"MPESA_GATEWAY_PUBLIC_URL__HOST: `public_url` is a setting, not a sec"):
        load({"PUBLIC_URL": "https://pay.example.co.ke", "PUBLIC_URL__HOST": "x"})


def test_environment_variables_that_are_no_settings_are_ignored() -> None:
    assert load({"CONFIG": "x", "DATA": "y", "TEST_DATABASE_URL": "z"}) == GatewayConfig()
    assert GatewayConfig.load(None, {"DATABASE__URL": "x", "PATH": "/bin"}) == GatewayConfig()


def test_environment_of_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MPESA_GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MPESA_GATEWAY_HTTP__PORT", "9002")
    assert GatewayConfig.load().http.port == 9002
    assert GatewayConfig.load(None, {}).http.port == 8000


def test_environment_secret_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
    (tmp_path / "token").write_text("open-sesame-please\n")
    config = load({"DATABASE__URL_FILE": str(tmp_path / "url"), "SHOP__TOKEN_FILE": str(tmp_path / "token")})
    assert config.database.url == Secret(URL)
    assert config.sections == {"shop": {"token": "open-sesame-please"}}


def test_environment_master_key_file_is_a_setting_of_its_own(tmp_path: Path) -> None:
    config = load({"SECURITY__MASTER_KEY_FILE": str(tmp_path / "ring")})
    assert config.security.master_key_file == str(tmp_path / "ring")
    assert config.security.master_key is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_settings_files_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    """Editors on Windows and PowerShell write one."""
    settings, secret, key = tmp_path / "gateway.toml", tmp_path / "url", tmp_path / "master.key"
    settings.write_bytes('public_url = "https://pay.example"\r\n[ops]\r\n'.encode(encoding))
    secret.write_bytes("postgresql://x\r\n".encode(encoding))
    key.write_bytes(f"{generate()}\r\n{generate()}\r\n".encode(encoding))
    config = GatewayConfig.load(settings, {"MPESA_GATEWAY_DATABASE__URL_FILE": str(secret)})
    assert config.public_url == "https://pay.example"
    assert config.database.url == Secret("postgresql://x")
    assert len(read_ring_file(key)) == 2
    prepend_key(key, generate())
    assert len(read_ring_file(key)) == 3


def test_secret_file_that_is_not_text_is_refused_by_its_variable(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_bytes(b"postgresql://\xff\x00")
    with pytest.raises(ConfigError, match=r"MPESA_GATEWAY_DATABASE__URL_FILE: .*save it as UTF-8"):
        GatewayConfig.load(None, {"MPESA_GATEWAY_DATABASE__URL_FILE": str(file)})


def test_secret_file_that_is_missing_is_refused_by_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MPESA_GATEWAY_DATABASE__URL_FILE: cannot read .*gone: No such file"):
        load({"DATABASE__URL_FILE": str(tmp_path / "gone")})


def test_environment_overrides_single_settings_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        "public_url = 'https://file.example'\nplugins = ['credentials']\n"
        "[http]\nport = 9000\nhost = '0.0.0.0'\n[payments]\ncreate_lease = 99\nexpire_after = 5\n"
    )
    config = load({"HTTP__PORT": "9001", "PAYMENTS__CREATE_LEASE": "98"}, file)
    assert (config.http.port, config.http.host, config.plugins) == (9001, "0.0.0.0", ("credentials",))  # noqa: S104
    assert config.public_url == "https://file.example"
    assert config.sections == {"payments": {"create_lease": "98", "expire_after": 5}}
    assert load({}, file).http.port == 9000


@pytest.mark.parametrize(
    ("content", "words"), [(b"= 1", "is not valid TOML"), (b"\xff", "is not valid TOML"), (None, "cannot read")]
)
def test_settings_file_that_cannot_be_read_is_refused_by_its_name(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{words}|{words}.*mine\.toml"):
        load({}, file)


def test_settings_representation_shows_no_secret() -> None:
    config = load(
        {
            "DATABASE__URL": URL,
            "VALKEY__URL": "valkey://:swordfish-and-more@127.0.0.1:1/0",
            "SECURITY__MASTER_KEY": KEY,
            "SECURITY__OLD_MASTER_KEYS": "o" * 44,
        }
    )
    for text in (repr(config), str(config), repr(masked_setting(config)), f"{config.database}", repr(config.security)):
        for secret in ("hunter2", "swordfish", KEY, "o" * 44):
            assert secret not in text
    assert masked_setting(config)["database"]["url"] == "****shop"
    assert masked_setting(config)["security"]["old_master_keys"] == ["****oooo"]
    assert masked_setting(config)["http"]["port"] == 8000
    assert config.database.url is not None
    assert config.database.url.reveal() == URL


def test_is_secret_is_decided_by_the_type() -> None:
    assert [is_secret(kind) for kind in (Secret, Secret | None, tuple[Secret, ...])] == [True] * 3
    assert [is_secret(kind) for kind in (str, str | None, tuple[str, ...], int)] == [False] * 4


def test_setting_of_an_unsupported_type_is_refused() -> None:
    class Odd(msgspec.Struct, frozen=True):
        where: Path

    with pytest.raises(ConfigError, match=r"setting `odd\.where`: cannot read a setting of type Path"):
        decode({"where": "x"}, Odd, "odd")


# -- public addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["https://pay.example.co.ke\r", "https://pay.example.co.ke\r\n", "  https://pay.example.co.ke \t\n"]
)
def test_public_url_of_the_environment_is_stripped(text: str) -> None:
    config = GatewayConfig.load(environ={"MPESA_GATEWAY_PUBLIC_URL": text})
    assert config.public_url == "https://pay.example.co.ke"


def test_environment_carriage_return_at_the_end_is_stripped() -> None:
    config = GatewayConfig.load(
        environ={"MPESA_GATEWAY_HTTP__PORT": "9001\r", "MPESA_GATEWAY_SECURITY__MASTER_KEY": "secret\r\n"}
    )
    assert (config.http.port, config.security.master_key) == (9001, Secret("secret"))


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("https://pay.example.co.ke/a\rb", "without spaces, control characters"),
        ("https://pay.exa mple.co.ke", "without spaces"),
        ("https://pay.example.co.ke\x00", "control characters"),
        ("https://p\u00e4y.example.co.ke", "letters outside ASCII"),
        ("https://pay.example.co.ke\\ops", "without spaces"),
        ('https://pay.example.co.ke/"', "without spaces"),
        ("https://user:p@pay.example.co.ke", "remove what is before the `@`"),
        ("https://user@pay.example.co.ke", "remove what is before the `@`"),
        ("https://@pay.example.co.ke", "remove what is before the `@`"),
        ("https://pay.example.co.ke?", "remove what follows `?` or `#`"),
        ("https://pay.example.co.ke/#ops", "remove what follows `?` or `#`"),
        ("https://pay.example.co.ke#", "remove what follows `?` or `#`"),
        ("https://pay.example.co.ke:0", "a port from 1 to 65535"),
        ("https://pay.example.co.ke:", "a port from 1 to 65535"),
        ("https://pay.example.co.ke:99999", "whose host and port can be read"),
        ("https://pay.example.co.ke:https", "whose host and port can be read"),
        ("https://[::1", "whose host and port can be read"),
        ("https://pay..example.co.ke", "a host name of letters"),
        ("https://-pay.example.co.ke", "a host name of letters"),
        ("https://pay.example.co.ke//ops", "without empty or dot segments"),
        ("https://pay.example.co.ke/a/../b", "without empty or dot segments"),
    ],
)
@pytest.mark.parametrize("setting", ["public_url", "sandbox_url", "live_url"])
def test_address_that_is_unusable_is_refused_by_name_and_fix(setting: str, url: str, fix: str) -> None:
    values = {setting: url} if setting == "public_url" else {"daraja": {setting: url}}
    with pytest.raises(ConfigError) as refused:
        GatewayConfig.from_values(values)
    assert f"{setting}`: must be an http(s) address" in str(refused.value)
    assert fix in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://pay.example.co.ke",
        "https://pay.example.co.ke/",
        "http://127.0.0.1:8000",
        "http://[::1]:8000/payments",
        "http://pay_gateway:8000/a%20b",
        "HTTPS://PAY.EXAMPLE.CO.KE:443/a/b/",
        "http://localhost",
    ],
)
def test_public_url_in_any_usual_form_is_accepted(url: str) -> None:
    assert GatewayConfig.from_values({"public_url": url}).public_url == url
