"""Protects deploy/: settings, commands, port, user, allowlist and timeouts agree with the gateway."""

import re
import subprocess
from pathlib import Path

import pytest

from mpesa_gateway.cli import COMMANDS
from mpesa_gateway.config import COMMAND_VARIABLES, ENVIRONMENT, GatewayConfig
from mpesa_gateway_callbacks.settings import CallbacksSettings
from tests.house.test_documented import declared
from tests.house.tree import ROOT

DEPLOY = ROOT / "deploy"
ADDRESS = re.compile(r"\b196\.201\.21\d\.\d+\b")
COMMAND = re.compile(
    r"^(?:ExecStart=/opt/mpesa-gateway/bin/mpesa-gateway |Exec=|\s*command: \[|\s*args: \[)([a-z-]+)\]?$", re.MULTILINE
)


def files() -> dict[str, str]:
    """Return the text of each file by its name below deploy/, without secrets created on this machine."""
    found = [path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and "secrets" not in path.parts]
    return {path.relative_to(DEPLOY).as_posix(): path.read_text(encoding="utf-8") for path in found}


def test_deployment_settings_all_exist() -> None:
    known = set(declared())
    named = {
        (name, variable)
        for name, text in files().items()
        for variable in re.findall(rf"\b{ENVIRONMENT}([A-Z0-9_]+)\b", text)
    }
    assert len({variable for _, variable in named}) > 5
    unknown = {
        (name, variable)
        for name, variable in named
        if variable not in COMMAND_VARIABLES and not {_path(variable), _path(variable.removesuffix("_FILE"))} & known
    }
    assert unknown == set()


def _path(variable: str) -> str:
    return variable.lower().replace("__", ".")


def test_deployment_settings_all_parse() -> None:
    variables = dict(re.findall(rf"({ENVIRONMENT}[A-Z0-9_]+)=(\S+)", files()["kubernetes/kustomization.yaml"]))
    plain = {name: value for name, value in variables.items() if not name.endswith("__URL_FILE")}
    config = GatewayConfig.load(ROOT / "config/gateway.toml", plain)
    assert config.public_url == "https://pay.example.co.ke"
    assert config.http.drain > 2 * 3, "readiness is probed every 3 s, and twice"


def test_deployment_commands_all_exist() -> None:
    used = {name: COMMAND.findall(text) for name, text in files().items()}
    words = {word for found in used.values() for word in found}
    assert words == {"migrate", "serve", "worker"}
    assert words <= {entry.name for entry in COMMANDS}
    for folder, ending in (("quadlet", ".container"), ("systemd", ".service")):
        ours = [name for name in used if name.startswith(folder) and name.endswith(ending)]
        assert {word for name in ours for word in used[name]} == words


def test_deployment_port_is_the_port_of_the_image() -> None:
    port = str(GatewayConfig().http.port)
    image = (ROOT / "Containerfile").read_text(encoding="utf-8")
    assert f"EXPOSE {port}\n" in image
    found = files()
    assert f'"127.0.0.1:{port}:{port}"' in found["compose.yaml"]
    assert f"PublishPort=127.0.0.1:{port}:{port}\n" in found["quadlet/mpesa-gateway-api.container"]
    assert f"containerPort: {port}" in found["kubernetes/api.yaml"]
    assert f"server 127.0.0.1:{port};" in found["nginx/mpesa-gateway.conf"]
    assert f"reverse_proxy 127.0.0.1:{port} " in found["caddy/Caddyfile"]


def test_deployment_processes_do_not_run_as_root() -> None:
    (user,) = re.findall(r"^USER (\d+)$", (ROOT / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for name, text in files().items():
        if name.startswith("kubernetes/") and "containers:" in text:
            assert re.findall(r"(?:runAsUser|runAsGroup|fsGroup): (\d+)", text) == [user] * 3, name
        if name.startswith("quadlet/") and "Image=localhost/mpesa-gateway" in text:
            assert set(re.findall(r"[ug]id=(\d+)", text)) == {user}, name
        if name.startswith("systemd/") and name.endswith(".service"):
            assert "User=mpesa-gateway\n" in text


@pytest.mark.parametrize(
    "name", ["nginx/mpesa-gateway.conf", "caddy/Caddyfile", "kubernetes/ingress.yaml", "kubernetes/network-policy.yaml"]
)
def test_proxy_allowlist_equals_the_gateways(name: str) -> None:
    found = ADDRESS.findall(files()[name])
    assert sorted(found) == sorted(CallbacksSettings().allowlist)


def test_proxy_allowlist_equals_the_documented_list() -> None:
    """The page lists the addresses, with the reason for each on one list only."""
    page = (ROOT / "docs/callbacks.md").read_text(encoding="utf-8")
    listed = CallbacksSettings().allowlist
    assert "begins with the fourteen that integrations publish" in page
    assert len(set(listed)) == len(listed) == 14
    assert "196.201.212.128 and .132" in page
    assert {"196.201.212.128", "196.201.212.132"} <= set(listed)
    (left_out,) = re.findall(r"Addresses that only one list has \(([.0-9, ]+)\) are not", page)
    assert not {f"196.201.212{end}" for end in left_out.split(", ")} & set(listed)


def test_deployment_stop_timeout_exceeds_the_drain_time() -> None:
    """A call to Daraja may take its timeout and 5 seconds more, and a worker its grace period."""
    config = GatewayConfig()
    serving, working = config.daraja.timeout + 5, config.worker.grace
    found = files()
    (compose_api, compose_worker) = re.findall(r"stop_grace_period: (\d+)s", found["compose.yaml"])[1:]
    assert int(compose_api) > serving
    assert int(compose_worker) > working
    for name, least in (("api", serving), ("worker", working)):
        container = found[f"quadlet/mpesa-gateway-{name}.container"]
        (patience,) = re.findall(r"--stop-timeout=(\d+)", container)
        (systemds,) = re.findall(r"TimeoutStopSec=(\d+)", container)
        assert least < int(patience) < int(systemds)
        (alone,) = re.findall(r"TimeoutStopSec=(\d+)", found[f"systemd/mpesa-gateway-{name}.service"])
        assert int(alone) > least
        (pod,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", found[f"kubernetes/{name}.yaml"])
        (drain,) = re.findall(r"HTTP__DRAIN=(\d+)", found["kubernetes/kustomization.yaml"])
        assert int(pod) > least + (int(drain) if name == "api" else 0)


def test_deployment_files_contain_no_password() -> None:
    for name, text in files().items():
        for line in text.splitlines():
            if "PASSWORD" in line and not name.endswith("secret.example.yaml") and "make-secrets" not in name:
                assert "_PASSWORD_FILE" in line, (name, line)
    assert re.findall(r"(?:redis|postgres)[a-z]*://[^U:]*:(?!PASSWORD)", "\n".join(files().values())) == [
        "postgresql://mpesa:",
        "postgresql://mpesa_app:",
        "redis://:",
    ], "make-secrets alone writes addresses, with the passwords that it made"


def test_secret_script_run_twice_keeps_its_valid_secrets(tmp_path: Path) -> None:
    def made(folder: str) -> dict[str, str]:
        subprocess.run([DEPLOY / "make-secrets", tmp_path / folder], check=True, capture_output=True)
        return {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / folder).iterdir()}

    first = made("secrets")
    assert made("secrets") == first
    assert not set(first.values()) & set(made("others").values())
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    named = set(re.findall(r"file: secrets/([a-z_.]+)", files()["compose.yaml"]))
    assert named == set(first)
    folder = tmp_path / "secrets"
    config = GatewayConfig.load(
        None,
        {
            "MPESA_GATEWAY_DATABASE__URL_FILE": str(folder / "database_url"),
            "MPESA_GATEWAY_VALKEY__URL_FILE": str(folder / "valkey_url"),
            "MPESA_GATEWAY_SECURITY__MASTER_KEY_FILE": str(folder / "master_key"),
        },
    )
    assert config.database.url is not None
    assert first["postgres_password"].strip() not in config.database.url.reveal()
    assert first["postgres_password"].strip() in first["owner_url"]
    assert f"requirepass {first['valkey_password'].strip()}\n" in first["valkey.conf"]
    # `docker compose` and `podman secret create` pass secrets this way: one service reads the value of another.
    for name in ("postgres_password", "database_url", "owner_url", "valkey_url", "master_key", "valkey.conf"):
        quadlet = f"mpesa-gateway-{name.replace('_', '-').replace('.', '-')}"
        assert any(f"Secret={quadlet},type=mount,target={name}" in text for text in files().values()), name


def test_migration_unit_connects_as_the_owner() -> None:
    named = {
        name for name, text in files().items() if "OWNER_URL_FILE" in text and not name.startswith("kubernetes/kust")
    }
    assert named == {
        "compose.yaml",
        "kubernetes/migrate.yaml",
        "quadlet/mpesa-gateway-migrate.container",
        "systemd/mpesa-gateway-migrate.service",
        "systemd/mpesa-gateway",
    }
    compose = files()["compose.yaml"]
    assert compose.count("OWNER_URL_FILE") == 1
    before = compose.partition("OWNER_URL_FILE")[0]
    assert re.findall(r"^  (\w+):$", before, re.MULTILINE)[-1] == "migrate"


def test_unit_notified_by_health_has_a_health_check() -> None:
    """An image in the OCI format, the default of Podman, has no health check."""
    for name, text in files().items():
        if "Notify=healthy" in text:
            assert "\nHealthCmd=" in text, name
    assert "podman build --format docker" in (ROOT / "docs/deploying.md").read_text(encoding="utf-8")


def test_documented_command_runs_with_settings_and_secrets() -> None:
    page, found = (ROOT / "docs/deploying.md").read_text(encoding="utf-8"), files()
    secrets = {f"{ENVIRONMENT}{name}_FILE" for name in ("DATABASE__URL", "VALKEY__URL", "SECURITY__MASTER_KEY")}

    def set_in(text: str) -> set[str]:
        return set(re.findall(rf"^[\s-]*(?:Environment=)?({ENVIRONMENT}\w+_FILE)[:=]", text, re.MULTILINE))

    compose = found["compose.yaml"]
    (common, services) = compose.split("\nservices:\n")
    assert set_in(common) == secrets
    assert "docker compose -f deploy/compose.yaml exec api mpesa-gateway doctor" in page
    assert re.search(r"^  api:\n    <<: \*\w+\n", services, re.MULTILINE)
    quadlet = found["quadlet/mpesa-gateway-api.container"]
    (name,) = re.findall(r"^ContainerName=(\S+)$", quadlet, re.MULTILINE)
    assert f"podman exec {name} mpesa-gateway doctor" in page
    assert set_in(quadlet) == secrets
    api = found["kubernetes/api.yaml"]
    (name,) = re.findall(r"^kind: Deployment\nmetadata:\n  name: (\S+)$", api, re.MULTILINE)
    assert f"exec deploy/{name} -- mpesa-gateway doctor" in page
    assert "configMapRef: {name: mpesa-gateway}" in api
    assert set_in(found["kubernetes/kustomization.yaml"]) == secrets
    assert "sudo mpesa-gateway doctor" in page


def test_documented_podman_command_has_the_settings_and_secrets_of_the_units(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    for name in ("database_url", "owner_url", "valkey_url", "master_key"):
        (tmp_path / "secrets" / name).write_text(name)
    (tmp_path / "gateway.env").write_text(
        '# A comment\n\nMPESA_GATEWAY_PUBLIC_URL=https://pay.example.co.ke\nMPESA_GATEWAY_LOGS__LEVEL="debug"\n'
        "MPESA_GATEWAY_X=$(touch nothing) `id` a b"
    )

    def started_with(*arguments: str) -> dict[str, str]:
        environ = {"PATH": "/usr/bin:/bin", "GATEWAY_ETC": str(tmp_path), "GATEWAY_PROGRAM": "/usr/bin/env"}
        done = subprocess.run(
            [DEPLOY / "systemd/mpesa-gateway", *arguments], env=environ, capture_output=True, text=True, check=True
        )
        parts = [line.partition("=") for line in done.stdout.splitlines()]
        return {name: value for name, _, value in parts}

    found = started_with()
    unit = files()["systemd/mpesa-gateway-api.service"]
    secrets = {name: value for name, value in found.items() if name.endswith("_FILE")}
    assert set(secrets) == set(re.findall(r"^Environment=(\w+_FILE)=", unit, re.MULTILINE))
    assert all(Path(value).read_text() == Path(value).name for value in secrets.values())
    assert found["MPESA_GATEWAY_PUBLIC_URL"] == "https://pay.example.co.ke"
    assert found["MPESA_GATEWAY_LOGS__LEVEL"] == "debug"
    assert found["MPESA_GATEWAY_X"] == "$(touch nothing) `id` a b"
    assert found["MPESA_GATEWAY_SECURITY__TRUSTED_PROXIES"] == "127.0.0.1,::1"
    # `env migrate` starts a program of that name: a stub records the arguments and environment it gets.
    text = (DEPLOY / "systemd/mpesa-gateway").read_text(encoding="utf-8")
    assert '"${1:-}" = migrate' in text
