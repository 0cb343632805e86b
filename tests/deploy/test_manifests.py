"""Protects deploy/: each file passes the linter or schema of its tool (`just deploy-check`)."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = ("1.29", "1.34")
"""The oldest and the newest Kubernetes release that the manifests are checked against."""

QUADLET = {
    "Unit": {"Description", "Requires", "Wants", "After"},
    "Container": {
        "ContainerName",
        "DropCapability",
        "Environment",
        "EnvironmentFile",
        "Exec",
        "HealthCmd",
        "HealthInterval",
        "HealthRetries",
        "HealthStartPeriod",
        "HealthTimeout",
        "Image",
        "Network",
        "NoNewPrivileges",
        "Notify",
        "PodmanArgs",
        "PublishPort",
        "ReadOnly",
        "Secret",
        "Tmpfs",
        "Volume",
    },
    "Network": {"NetworkName", "Subnet", "Gateway"},
    "Volume": {"VolumeName"},
    "Service": {"Restart", "TimeoutStartSec", "TimeoutStopSec", "Type", "RemainAfterExit"},
    "Install": {"WantedBy"},
}
"""The keys of podman-systemd.unit(5) since podman 5.0, as far as they are used here."""


def filled(text: str) -> str:
    """Return the file with its variables substituted as compose does: defaults and required values."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    text, count = re.subn(r"\$\{MPESA_GATEWAY_PUBLIC_URL:\?[^}]*\}", "https://pay.example.co.ke", text)
    assert count == 1
    return text.replace("$$", "$")


def test_compose_file_matches_its_schema() -> None:
    values = yaml.safe_load(filled((DEPLOY / "compose.yaml").read_text()))
    services = PyCompose.from_json(json.dumps(values)).service_names()
    assert set(services) == {"postgres", "valkey", "migrate", "api", "worker"}
    for name, service in values["services"].items():
        assert set(service["secrets"]) <= set(values["secrets"]), name
        named = {volume.partition(":")[0] for volume in service["volumes"]}
        assert {volume for volume in named if not volume.startswith("..")} <= set(values["volumes"]), name
        assert set(service.get("depends_on", {})) <= set(services)
        if name in {"migrate", "worker"}:
            assert service["healthcheck"] == {"disable": True}
        elif name != "api":
            assert service["healthcheck"]["test"]
    values["services"]["api"]["helthcheck"] = {}
    with pytest.raises(ValueError, match="helthcheck"):
        PyCompose.from_json(json.dumps(values))


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every Kubernetes object with its file."""
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text()):
            if each["kind"] != "Kustomization":
                yield path.name, each


@pytest.mark.parametrize("release", KUBERNETES)
def test_kubernetes_manifests_match_their_schema(release: str) -> None:
    kinds = []
    for _, each in objects():
        kubernetes_validate.validate(each, release, strict=True)
        kinds.append(each["kind"])
    assert set(kinds) == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "Ingress",
        "Job",
        "Namespace",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Secret",
        "Service",
    }
    deployment = next(each for _, each in objects() if each["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, release, strict=True)


def test_kustomization_names_every_manifest() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
    files = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert set(kustomization["resources"]) == files - {"kustomization.yaml", "secret.example.yaml"}
    assert [image["name"] for image in kustomization["images"]] == ["mpesa-gateway"]


def test_kubernetes_selectors_match_their_pods() -> None:
    pods = [
        each["spec"]["template"]["metadata"]["labels"] for _, each in objects() if each["kind"] in {"Deployment", "Job"}
    ]
    assert len(pods) == 3
    selectors = []
    for _, each in objects():
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            selectors.append(spec["selector"])
        elif each["kind"] in {"PodDisruptionBudget", "Deployment"}:
            selectors.append(spec["selector"]["matchLabels"])
        elif each["kind"] == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
    assert len(selectors) == 7
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in pods), selector


def units() -> list[Path]:
    """Return the systemd units."""
    return sorted((DEPLOY / "systemd").glob("*.service"))


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command to completion."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=60)


def test_systemd_units_pass_verification(tmp_path: Path) -> None:
    copies = []
    for path in units():
        copy = tmp_path / path.name
        # The programs that they start are not installed here.
        copy.write_text(path.read_text().replace("/opt/mpesa-gateway/bin/mpesa-gateway", shutil.which("true") or ""))
        copies.append(copy)
    assert len(copies) == 3
    done = run("systemd-analyze", "verify", *copies)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    copies[0].write_text(copies[0].read_text().replace("PrivateTmp=yes", "PrivateTemp=yes"))
    assert "PrivateTemp" in run("systemd-analyze", "verify", *copies).stderr


@pytest.mark.parametrize("path", units(), ids=lambda path: path.name)
def test_systemd_unit_exposure_is_low(path: Path) -> None:
    """`systemd-analyze security`, in tenths: 0 is no exposure, 100 is full exposure."""
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", path)
    assert done.returncode == 0, done.stdout[-300:]


def quadlets() -> list[Path]:
    """Return the units that podman's generator converts to systemd units."""
    return sorted(path for path in (DEPLOY / "quadlet").iterdir() if path.suffix != ".example")


def test_quadlet_files_have_known_keys_only() -> None:
    assert {path.suffix for path in quadlets()} == {".container", ".network", ".volume"}
    for path in quadlets():
        section = ""
        for line in path.read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
                assert section in QUADLET, path.name
            elif line and not line.startswith("#"):
                assert line.partition("=")[0] in QUADLET[section], (path.name, line)


def test_quadlet_references_exist() -> None:
    names = {path.name for path in quadlets()}
    services = {name.replace(".container", ".service") for name in names}
    for path in quadlets():
        for key, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE):
            for word in re.findall(r"[\w-]+\.(?:network|volume|service)\b", value):
                assert word in names | services, (path.name, key, word)


def test_quadlet_systemd_sections_pass_verification(tmp_path: Path) -> None:
    copies = []
    for path in quadlets():
        if path.suffix == ".container":
            text = re.sub(r"^\[Container\]\n(.*\n)*?(?=\[Service\])", "", path.read_text(), flags=re.MULTILINE)
            copy = tmp_path / path.name.replace(".container", ".service")
            copy.write_text(text.replace("[Service]", f"[Service]\nExecStart={shutil.which('true')}"))
            copies.append(copy)
    assert len(copies) == 5
    done = run("systemd-analyze", "verify", *copies)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
