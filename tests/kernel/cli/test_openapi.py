"""Protects the `openapi` command: the document without a server, a database or a key."""

import json

from tests.kernel.cli.terminal import Host


def test_openapi_command_needs_no_running_server(bare_host: Host) -> None:
    printed = bare_host.run_in_process("openapi")
    assert printed.returncode == 0
    document = json.loads(printed.stdout)
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "http://127.0.0.1:8000"}]
    assert document["paths"]["/v1/payments"]["post"]["operationId"] == "create_payment"
    assert "/simulator/control/reset" not in document["paths"]


def test_openapi_command_describes_enabled_plugins_at_the_public_url(bare_host: Host) -> None:
    bare_host.variables |= {"PLUGINS": "credentials,webhooks", "PUBLIC_URL": "https://pay.example.co.ke/"}
    document = json.loads(bare_host.run_in_process("openapi").stdout)
    assert document["servers"] == [{"url": "https://pay.example.co.ke"}]
    assert "/v1/events" in document["paths"]
    assert "/v1/payments" not in document["paths"]


def test_openapi_command_writes_the_document_to_a_file(bare_host: Host) -> None:
    done = bare_host.run_in_process("openapi", "--out", "openapi.json")
    assert (done.returncode, done.stdout) == (0, "")
    document = json.loads((bare_host.folder / "openapi.json").read_text(encoding="utf-8"))
    assert document["openapi"].startswith("3.1")


def test_openapi_command_with_an_unwritable_file_names_the_file(bare_host: Host) -> None:
    done = bare_host.run_in_process("openapi", "--out", "missing/document.json")
    assert done.returncode == 2
    assert "missing/document.json" in done.stderr
    assert "No such file" in done.stderr
