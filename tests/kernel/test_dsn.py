"""Protects Postgres addresses as users paste them: understood, or refused by the name of the parameter."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.db.engine import connection_options
from mpesa_gateway.dsn import DsnError, read_dsn
from mpesa_gateway.secret import Secret

BASE = "postgresql://mpesa:s3cret%2F%3A@10.0.0.5:5432/shop"

UNDERSTOOD = {
    "": "",
    "?sslmode=require&channel_binding=prefer": "?sslmode=require",
    "?channel_binding=disable": "",
    "?connect_timeout=10": "",
    "?connect_timeout=0&sslmode=verify-full&sslrootcert=/etc/ca": "?sslmode=verify-full&sslrootcert=%2Fetc%2Fca",
    "?application_name=shop&client_encoding=utf8&gssencmode=prefer": "",
    "?target_session_attrs=read-write": "?target_session_attrs=read-write",
}

REFUSED = {
    "?channel_binding=require": "channel_binding",
    "?pgbouncer=true": "database.direct_url",
    "?schema=public": "database.schema",
    "?connection_limit=5": "database.pool_max",
    "?pool_size=5": "database.pool_max",
    "?statement_timeout=5": "database.statement_timeout",
    "?options=-c%20search_path%3Dx": "options",
    "?keepalives=1": "keepalives",
    "?tcp_user_timeout=1": "tcp_user_timeout",
    "?prepare_threshold=0": "prepare_threshold",
    "?sslmode=on": "sslmode",
    "?ssl=true": "sslmode",
    "?sslmode=": "sslmode",
    "?connect_timeout=soon": "connect_timeout",
    "?connect_timeout=-1": "connect_timeout",
    "?target_session_attrs=any-will-do": "target_session_attrs",
    "?gssencmode=require": "gssencmode",
    "?client_encoding=latin1": "client_encoding",
    "?sslcompression=1": "sslcompression",
    "?nonsense": "cannot be read",
    "#rest": "%23",
}


@pytest.mark.parametrize(("query", "kept"), UNDERSTOOD.items())
def test_read_dsn_passes_known_parameters_to_asyncpg(query: str, kept: str) -> None:
    assert read_dsn(Secret(BASE + query)).text == BASE + kept


@pytest.mark.parametrize("name", ["url", "direct_url", "owner_url"])
@pytest.mark.parametrize(("query", "says"), list(REFUSED.items())[:3])
def test_read_dsn_is_applied_to_every_address(name: str, query: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"setting `database.{name}`") as refusal:
        GatewayConfig.from_values({"database": {"url": BASE, name: BASE + query}})
    assert says in str(refusal.value)


@pytest.mark.parametrize(("query", "says"), REFUSED.items())
def test_read_dsn_of_an_unknown_parameter_names_it_without_the_password(query: str, says: str) -> None:
    with pytest.raises(DsnError) as refusal:
        read_dsn(Secret(BASE + query))
    assert says in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://mpesa@localhost/shop",
        "mysql://localhost/shop",
        "localhost:5432/shop",
        "postgresql://mpesa:pass@localhost:54321x/shop",
        "postgresql://mpesa:pass@localhost:99999/shop",
        "postgresql://mpesa:pa/ss@localhost:5432/shop",
        "postgresql://mpesa:pass@[::1/shop",
    ],
)
def test_database_url_that_is_no_postgres_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"setting `database\.url`"):
        GatewayConfig.from_values({"database": {"url": url}})


@pytest.mark.parametrize(
    "url",
    [
        "postgres://localhost/shop",
        "postgresql:///shop?host=/run/postgresql",
        "postgresql://a:5432,b:5433/shop",
        "postgresql://mpesa@[::1]:5432/shop",
        "postgresql://mpesa:a%40b@localhost/shop",
    ],
)
def test_read_dsn_of_other_libpq_forms_is_accepted(url: str) -> None:
    assert read_dsn(Secret(url)).text == url


@given(st.text(), st.text())
def test_read_dsn_of_any_text_is_accepted_or_refused(name: str, value: str) -> None:
    with suppress(DsnError):
        assert read_dsn(Secret(f"{BASE}?{name}={value}")).text.startswith(BASE)


def test_dsn_timeout_overrides_the_setting() -> None:
    config = GatewayConfig.from_values({"database": {"url": BASE, "connect_timeout": 7}}).database
    assert connection_options(Secret(BASE), config)["timeout"] == 7
    assert connection_options(Secret(BASE + "?connect_timeout=3"), config)["timeout"] == 3


async def test_gateway_with_known_parameters_in_its_url_runs(values: dict[str, Any]) -> None:
    values["database"]["url"] += "?channel_binding=prefer&connect_timeout=20&application_name=shop&sslmode=disable"
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        assert await gateway.db.fetchval("SELECT 1") == 1
