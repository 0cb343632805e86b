"""Merchants, API keys, master keys and the audit log, from the command line."""

import urllib.error
import urllib.request
from pathlib import Path

from mpesa_gateway.security.sealing import generate
from tests.kernel.cli.terminal import Host, address_of, is_refused


def test_a_merchant_from_first_to_last(host: Host) -> None:
    merchant_id = host.gets("merchants", "create", "Duka la Mtaa")
    assert merchant_id.startswith("mer_")
    assert f"{merchant_id}\tDuka la Mtaa\tsandbox\tyes" in host.gets("merchants", "list")
    assert is_refused(host.types("merchants", "deactivate", merchant_id), 1, "add --yes")
    host.gets("merchants", "deactivate", merchant_id, "--yes")
    assert f"{merchant_id}\tDuka la Mtaa\tsandbox\tno" in host.gets("merchants", "list")
    assert is_refused(host.types("merchants", "deactivate", merchant_id, "--yes"), 1, "not active")
    assert is_refused(host.types("apikeys", "create", merchant_id), 1, "not active")
    printed = host.gets("audit", "verify")
    assert "2 entries" in printed
    head = printed.split()[-1]
    assert head.startswith("2:")
    host.gets("merchants", "create", "Another")
    assert "3 entries" in host.gets("audit", "verify", "--noted", head)
    assert is_refused(host.types("audit", "verify", "--noted", "2:" + "0" * 64), 1, "written anew")
    assert is_refused(host.types("audit", "verify", "--noted", "9:" + "0" * 64), 1, "cut off before it")
    assert host.types("audit", "verify", "--noted", "yesterday").returncode == 2


def test_an_empty_name_is_refused(host: Host) -> None:
    done = host.types("merchants", "create", " ")
    assert done.returncode == 2
    assert "1 to 100 characters" in done.stderr


def test_a_key_is_printed_once_and_works_until_it_is_revoked(host: Host) -> None:
    merchant_id = host.gets("merchants", "create", "Duka")
    key = host.gets("apikeys", "create", merchant_id, "--name", "till 1")
    live = host.gets("apikeys", "create", merchant_id, "--live", "--scope", "payments:read", "--days", "30")
    assert key.startswith("sk_test_")
    assert live.startswith("sk_live_")
    listed = host.gets("apikeys", "list", merchant_id)
    assert key not in listed
    assert live not in listed
    newest, oldest = listed.splitlines()[1:]
    assert newest.split("\t")[2:] == ["live", newest.split("\t")[3], "never", "payments:read"]
    assert newest.split("\t")[3].startswith("until ")
    assert "admin" not in oldest

    address = address_of(host.starts("serve", "--port", "0"))
    assert status_of(address, key) == 200
    host.gets("apikeys", "revoke", merchant_id, oldest.split("\t")[0], "--yes")
    assert status_of(address, key) == 401
    assert is_refused(host.types("apikeys", "revoke", merchant_id, oldest.split("\t")[0], "--yes"), 1, "revoked before")


def test_a_key_for_nobody_is_refused(host: Host) -> None:
    assert is_refused(host.types("apikeys", "create", "mer_nobody"), 1, "no such merchant")


def test_rotation_seals_everything_again(host: Host) -> None:
    ring = Path(host.variables["SECURITY__MASTER_KEY_FILE"])
    old = ring.read_text().strip()
    merchant_id = host.gets("merchants", "create", "Duka")
    key = host.gets("apikeys", "create", merchant_id)
    address = address_of(host.starts("serve", "--port", "0"))

    printed = host.gets("keys", "rotate", "--generate")
    assert "4 sealed again in gateway_secret.sealed" in printed
    new, kept = ring.read_text().split()
    assert kept == old
    assert ring.stat().st_mode & 0o777 == 0o600
    assert status_of(address, key) == 200
    assert "may go now" in host.gets("keys", "rotate")

    ring.write_text(new)
    assert status_of(address_of(host.starts("serve", "--port", "0")), key) == 200
    ring.write_text(old)
    assert is_refused(host.types("merchants", "list"), 2, "not the one that this database was sealed with")


def test_generating_needs_a_ring_file(host: Host) -> None:
    del host.variables["SECURITY__MASTER_KEY_FILE"]
    host.variables["SECURITY__MASTER_KEY"] = generate()
    assert is_refused(host.types("keys", "rotate", "--generate"), 1, "security.old_master_keys")


def status_of(address: str, key: str) -> int:
    """The status of a merchant's simplest call."""
    request = urllib.request.Request(f"{address}/v1/merchant/me", headers={"X-API-Key": key})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as problem:
        problem.close()
        return problem.code
