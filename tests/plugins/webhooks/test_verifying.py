"""Protects the checks in examples/webhooks: in each language they agree with the gateway's signatures."""

import base64
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from examples.webhooks.verify import is_ours
from mpesa_gateway.secret import Secret
from mpesa_gateway_webhooks import signing
from tests.house.tree import ROOT

EXAMPLES = ROOT / "examples" / "webhooks"
VECTORS = EXAMPLES / "vectors.tsv"
MAINS = Path(__file__).parent / "verifying"

NAMES = ("x-payments-timestamp", "x-payments-signature", "x-payments-signature-previous")


def read_vectors() -> list[list[str]]:
    """The vectors: name, verdict, now, secret, the three headers, body in base64."""
    return [line.split("\t") for line in VECTORS.read_text(encoding="ascii").splitlines()[1:]]


def verdicts() -> dict[str, bool]:
    """The expected verdict of each vector, by name."""
    return {name: verdict == "true" for name, verdict, *_ in read_vectors()}


def printed_verdicts(output: str) -> dict[str, bool]:
    """The verdicts that a check in another language printed."""
    pairs = (line.split(" ") for line in output.splitlines())
    return {name: {"true": True, "false": False}[verdict] for name, verdict in pairs}


def run(*command: str, cwd: Path | None = None) -> str:
    """The output of a command that must succeed."""
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_true_vectors_equal_the_gateways_headers() -> None:
    taken = [vector for vector in read_vectors() if vector[1] == "true"]
    assert {vector[0] for vector in taken} >= {"as_sent", "not_ascii", "replaced_secret"}
    for name, _, _, secret, timestamp, signature, previous, body in taken:
        secrets = [Secret(secret)]
        if previous:
            # The shop still uses the old secret; the gateway signs with the new one first.
            secrets.insert(0, Secret("whsec_bmV3IHNlY3JldCBuZXcgc2VjcmV0IG5ldyE="))
        at = datetime.fromtimestamp(int(timestamp), UTC)
        sent = signing.headers("evt_1", "payment.completed", base64.b64decode(body), at, secrets)
        lowered = {key.lower(): value for key, value in sent.items()}
        assert [lowered.get(key, "") for key in NAMES] == [timestamp, signature, previous], name


def test_check_in_python_returns_the_verdicts() -> None:
    found: dict[str, bool] = {}
    for name, _, now, secret, *headers, body in read_vectors():
        given = {key: value for key, value in zip(NAMES, headers, strict=True) if value}
        found[name] = is_ours(given, base64.b64decode(body), secret, float(now))
    assert found == verdicts()


def node() -> str:
    return run("node", str(MAINS / "main.mjs"), str(EXAMPLES / "verify.mjs"), str(VECTORS))


def php() -> str:
    return run("php", str(MAINS / "main.php"), str(EXAMPLES / "verify.php"), str(VECTORS))


def java(folder: Path) -> str:
    run("javac", "-d", str(folder), str(EXAMPLES / "Verify.java"), str(MAINS / "Main.java"))
    return run("java", "-cp", str(folder), "Main", str(VECTORS))


def go(folder: Path) -> str:
    for source in (EXAMPLES / "verify.go", MAINS / "main.go"):
        shutil.copy(source, folder)
    (folder / "go.mod").write_text("module verify\n\ngo 1.19\n", encoding="ascii")
    return run("go", "run", ".", str(VECTORS), cwd=folder)


# Only installed languages can be tried; Python always is.
HERE = [
    language
    for language, tool in (("node", "node"), ("php", "php"), ("javac", "javac"), ("go", "go"))
    if shutil.which(tool)
]


@pytest.mark.parametrize("language", HERE)
def test_check_in_other_languages_returns_the_verdicts(language: str, tmp_path: Path) -> None:
    checks: dict[str, Callable[[], str]] = {
        "node": node,
        "php": php,
        "javac": lambda: java(tmp_path),
        "go": lambda: go(tmp_path),
    }
    assert printed_verdicts(checks[language]()) == verdicts()


def test_checks_exist_in_all_languages() -> None:
    """A language was neither removed nor added without being run here."""
    assert {path.suffix for path in EXAMPLES.iterdir() if path.stem.lower() == "verify"} == {
        ".py",
        ".mjs",
        ".php",
        ".java",
        ".go",
    }
