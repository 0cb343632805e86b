"""The document and the collection as files, by a host who has no server, no database and no key."""

import json

from mpesa_gateway.http.collection import STORY
from tests.kernel.cli.terminal import Host


def test_the_document_needs_nothing_that_runs(bare_host: Host) -> None:
    printed = bare_host.asks("openapi")
    assert printed.returncode == 0
    document = json.loads(printed.stdout)
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "http://127.0.0.1:8000"}]
    assert document["paths"]["/v1/payments"]["post"]["operationId"] == "create_payment"
    assert "/simulator/control/reset" not in document["paths"]


def test_it_describes_what_is_enabled_where_it_is_reached(bare_host: Host) -> None:
    bare_host.variables |= {"PLUGINS": "credentials,webhooks", "PUBLIC_URL": "https://pay.example.co.ke/"}
    document = json.loads(bare_host.asks("openapi").stdout)
    assert document["servers"] == [{"url": "https://pay.example.co.ke"}]
    assert "/v1/events" in document["paths"]
    assert "/v1/payments" not in document["paths"]


def test_a_file_takes_the_collection(bare_host: Host) -> None:
    done = bare_host.asks("openapi", "--postman", "--out", "collection.json")
    assert (done.returncode, done.stdout) == (0, "")
    collection = json.loads((bare_host.folder / "collection.json").read_text(encoding="utf-8"))
    assert collection["info"]["schema"].endswith("/v2.1.0/collection.json")
    assert collection["item"][0]["name"] == STORY


def test_a_file_that_cannot_be_written_is_named(bare_host: Host) -> None:
    done = bare_host.asks("openapi", "--out", "missing/document.json")
    assert done.returncode == 2
    assert "missing/document.json" in done.stderr
    assert "No such file" in done.stderr
