"""Protects the commands for merchants, API keys, master keys, erasure and the audit log."""

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import asyncpg

from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.security.sealing import generate
from tests.identifiers import identifier
from tests.kernel.cli.terminal import Host, address_of, is_refused

PENDING = identifier("pay", 2)
"""A payment that waits for the payer."""


def test_merchant_commands_from_create_to_deactivate(host: Host) -> None:
    merchant_id = host.output_of("merchants", "create", "Duka la Mtaa")
    assert merchant_id.startswith("mer_")
    assert f"{merchant_id}\tDuka la Mtaa\t\tyes" in host.output_of("merchants", "list")
    assert is_refused(host.run("merchants", "deactivate", merchant_id), 1, "add --yes")
    host.output_of("merchants", "deactivate", merchant_id, "--yes")
    assert f"{merchant_id}\tDuka la Mtaa\t\tno" in host.output_of("merchants", "list")
    assert is_refused(host.run("merchants", "deactivate", merchant_id, "--yes"), 1, "not active")
    assert is_refused(host.run("apikeys", "create", merchant_id), 1, "not active")
    printed = host.output_of("audit", "verify")
    assert "2 entries" in printed
    head = printed.split()[-1]
    assert head.startswith("2:")
    host.output_of("merchants", "create", "Another")
    assert "3 entries" in host.output_of("audit", "verify", "--noted", head)
    assert is_refused(host.run("audit", "verify", "--noted", "2:" + "0" * 64), 1, "rewritten")
    assert is_refused(host.run("audit", "verify", "--noted", "9:" + "0" * 64), 1, "cut off before it")
    assert host.run("audit", "verify", "--noted", "yesterday").returncode == 2


def test_receiver_commands_decide_who_may_use_a_live_receiver(host: Host) -> None:
    one, two = (host.output_of("merchants", "create", name) for name in ("Owner", "User"))
    assert is_refused(host.run("receivers", "list", "600001"), 1, "no merchant has stored live credentials")
    assert is_refused(host.run("receivers", "move", "600001", one), 1, "no merchant has stored live credentials")
    asyncio.run(_share(host.variables["DATABASE__URL"], one, two))
    shown = [line.split("\t") for line in host.output_of("receivers", "list", "600001").splitlines()[1:]]
    assert shown == [[one, "Owner", "yes", "yes", "no"], [two, "User", "no", "no", "no"]]
    host.output_of("receivers", "allow", "600001", two)
    assert f"{two}\tUser\tno\tyes\tno" in host.output_of("receivers", "list", "600001")
    host.output_of("receivers", "refuse", "600001", two)
    assert f"{two}\tUser\tno\tno\tno" in host.output_of("receivers", "list", "600001")
    host.output_of("receivers", "move", "600001", two)
    assert f"{one}\tOwner\tno\tno\tno" in host.output_of("receivers", "list", "600001")
    assert is_refused(host.run("receivers", "allow", "600001", "mer_nobody"), 1, "no such merchant")
    assert "5 entries" in host.output_of("audit", "verify")


async def _share(url: str, owner_id: str, user_id: str) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "mpesa"})
    await read_ids(connection)
    await connection.execute(
        "INSERT INTO receiver (receiver_id, env, number, kind, owner_id, created_at) "
        "VALUES ($2, 'live', '600001', 'paybill', $1, now())",
        owner_id,
        identifier("rcv"),
    )
    await connection.execute(
        "INSERT INTO shortcode (shortcode_id, merchant_id, env, receiver_id, consumer_key, consumer_secret, passkey, "
        "is_default, created_at, updated_at) "
        "SELECT shortcode_id, merchant_id, 'live', $3, 'v1.a', 'v1.a', 'v1.a', true, now(), now() "
        "FROM unnest($1::uuid[], $2::uuid[]) AS t(merchant_id, shortcode_id)",
        [owner_id, user_id],
        [identifier("shc", 1), identifier("shc", 2)],
        identifier("rcv"),
    )
    await connection.close()


def test_merchants_create_with_an_empty_name_is_refused(host: Host) -> None:
    done = host.run("merchants", "create", " ")
    assert done.returncode == 2
    assert "1 to 100 characters" in done.stderr


def test_api_key_is_printed_once_and_works_until_it_is_revoked(host: Host) -> None:
    merchant_id = host.output_of("merchants", "create", "Duka")
    key = host.output_of("apikeys", "create", merchant_id, "--name", "till 1")
    live = host.output_of("apikeys", "create", merchant_id, "--live", "--scope", "payments:read", "--days", "30")
    assert key.startswith("sk_test_")
    assert live.startswith("sk_live_")
    unknown = host.run("apikeys", "create", merchant_id, "--scope", "all")
    assert (unknown.returncode, "--scope: each scope must be one of admin" in unknown.stderr) == (2, True)
    listed = host.output_of("apikeys", "list", merchant_id)
    assert key not in listed
    assert live not in listed
    newest, oldest = listed.splitlines()[1:]
    assert newest.split("\t")[2:] == ["live", newest.split("\t")[3], "never", "payments:read"]
    assert newest.split("\t")[3].startswith("until ")
    assert "admin" not in oldest

    address = address_of(host.start("serve", "--port", "0"))
    assert status_of(address, key) == 200
    host.output_of("apikeys", "revoke", merchant_id, oldest.split("\t")[0], "--yes")
    assert status_of(address, key) == 401
    assert is_refused(host.run("apikeys", "revoke", merchant_id, oldest.split("\t")[0], "--yes"), 1, "revoked before")


def test_apikeys_create_for_an_unknown_merchant_is_refused(host: Host) -> None:
    assert is_refused(host.run("apikeys", "create", "mer_nobody"), 1, "no such merchant")


def test_keys_rotate_seals_everything_again(host: Host) -> None:
    ring = Path(host.variables["SECURITY__MASTER_KEY_FILE"])
    old = ring.read_text().strip()
    merchant_id = host.output_of("merchants", "create", "Duka")
    key = host.output_of("apikeys", "create", merchant_id)
    address = address_of(host.start("serve", "--port", "0"))

    printed = host.output_of("keys", "rotate", "--generate")
    assert "4 sealed again in gateway_secret.sealed" in printed
    new, kept = ring.read_text().split()
    assert kept == old
    assert ring.stat().st_mode & 0o777 == 0o600
    assert status_of(address, key) == 200
    assert "may go now" in host.output_of("keys", "rotate")

    ring.write_text(new)
    assert status_of(address_of(host.start("serve", "--port", "0")), key) == 200
    ring.write_text(old)
    assert is_refused(host.run("merchants", "list"), 2, "not the one that this database was sealed with")


def test_keys_rotate_generate_without_a_ring_file_is_refused(host: Host) -> None:
    del host.variables["SECURITY__MASTER_KEY_FILE"]
    host.variables["SECURITY__MASTER_KEY"] = generate()
    assert is_refused(host.run("keys", "rotate", "--generate"), 1, "security.old_master_keys")


def test_privacy_erase_with_confirmation_erases_the_payer(host: Host) -> None:
    merchant_id = host.output_of("merchants", "create", "Duka")
    asyncio.run(_pay(host.variables["DATABASE__URL"], merchant_id))
    erase = ("privacy", "erase", "0711000001")
    assert is_refused(host.run(*erase), 1, "2547****001 will be erased")
    rehearsed = host.output_of(*erase, "--dry-run").splitlines()
    assert [line.strip() for line in rehearsed] == [
        "1 payments would be erased",
        f"left {PENDING}: the payment is pending",
    ]
    assert host.output_of(*erase, "--merchant", merchant_id, "--yes").splitlines()[0].strip() == "1 payments erased"
    assert host.output_of(*erase, "--yes").strip() == f"left {PENDING}: the payment is pending"
    assert host.output_of("privacy", "erase", "0722000002", "--yes") == "2547****002 is in no record."
    for words in (("-",), ()):
        read = host.run("privacy", "erase", *words, "--dry-run", reads="+254711000001\n")
        assert (read.returncode, read.stdout.strip()) == (0, f"left {PENDING}: the payment is pending"), words
    unread = host.run("privacy", "erase", "0711", "--yes")
    assert (unread.returncode, "send a Kenyan mobile number" in unread.stderr) == (2, True)
    assert is_refused(host.run(*erase, "--before", "2999-01-01", "--yes"), 1, "at least 48 hours ago")
    assert is_refused(host.run(*erase, "--merchant", "mer_nobody", "--yes"), 1, "no such merchant")
    assert "8 entries" in host.output_of("audit", "verify")


async def _pay(url: str, merchant_id: str) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "mpesa"})
    await read_ids(connection)
    await connection.execute(
        "WITH made AS (INSERT INTO receiver (receiver_id, env, number, kind, created_at) "
        "VALUES ($2, 'sandbox', '174379', 'paybill', now()) RETURNING receiver_id) "
        "INSERT INTO shortcode (shortcode_id, merchant_id, env, receiver_id, is_default, created_at, updated_at, "
        "retired_at, wiped_at) SELECT $3, $1, 'sandbox', receiver_id, false, now(), now(), now(), now() FROM made",
        merchant_id,
        identifier("rcv"),
        identifier("shc"),
    )
    await connection.execute(
        "INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency, "
        "phone, reference, "
        "reference_is_ours, description, idempotency_key, status, failure_reason, due_at, expires_at, created_at, "
        "updated_at) SELECT payment_id, $1, 'sandbox', 'mpesa', '174379', $2, 500, 'KES', "
        "'254711000001', 'REF', "
        "false, 'Payment', status, status, CASE status WHEN 'failed' THEN 'other' END, "
        "CASE status WHEN 'pending' THEN now() END, now(), now() - interval '9 days', now() - interval '9 days' "
        "FROM unnest($3::uuid[], ARRAY['failed', 'pending']) AS t(payment_id, status)",
        merchant_id,
        identifier("shc"),
        [identifier("pay"), PENDING],
    )
    await connection.close()


def status_of(address: str, key: str) -> int:
    """Return the status of a merchant's simplest call."""
    request = urllib.request.Request(f"{address}/v1/merchant/me", headers={"X-API-Key": key})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as problem:
        problem.close()
        return problem.code
