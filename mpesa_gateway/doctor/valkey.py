"""Valkey: reachable, supported, without eviction, persistent."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from valkey.exceptions import AuthenticationError, ResponseError, ValkeyError

from mpesa_gateway.check_result import CheckContext, CheckResult, note, ok, problem, warning
from mpesa_gateway.queues import connect
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.server_address import valkey_address

_OLDEST = (6, 2)
"""The first version with BLMOVE, with which the queue hands over jobs without loss."""


async def check_valkey(gateway: Runtime, _: CheckContext) -> AsyncIterator[CheckResult]:
    where = valkey_address(gateway.config.valkey)
    client = connect(gateway.config.valkey)
    try:
        info: Mapping[str, Any] = await client.info()
    except (AuthenticationError, ResponseError) as refusal:
        yield problem("valkey.reachable", f"Valkey at {where} refuses us ({refusal})", "correct valkey.url")
        return
    except (ValkeyError, OSError, TimeoutError) as fault:
        yield problem(
            "valkey.reachable",
            f"Valkey at {where} cannot be reached ({type(fault).__name__}): payments are accepted, and their "
            "follow-up jobs wait",
            "start it, allow connections to it, or correct valkey.url",
        )
        return
    finally:
        with suppress(ValkeyError, OSError, TimeoutError):
            await client.aclose()
    name, version = ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
    yield ok("valkey.reachable", f"{name} {version} answers at {where}")
    for observation in (*version_result(name, version), memory_result(info), *persistence_result(info)):
        yield observation


def version_result(name: str, version: str) -> Sequence[CheckResult]:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers >= _OLDEST:
        return []
    return [
        problem(
            "valkey.version", f"{name} {version} is too old for the queue", "upgrade it: 6.2 has what the queue needs"
        )
    ]


def memory_result(info: Mapping[str, Any]) -> CheckResult:
    policy, most, used = (
        info.get("maxmemory_policy", "unknown"),
        int(info.get("maxmemory", 0)),
        int(info["used_memory"]),
    )
    if policy not in {"noeviction", "unknown"}:
        return warning(
            "valkey.eviction",
            f"maxmemory-policy is {policy}: when memory is short it evicts jobs and limits, and work is late until a "
            "sweeper finds it",
            "set maxmemory-policy noeviction, and keep no cache in the same Valkey",
        )
    if most and used > most * 0.9:
        return warning(
            "valkey.eviction",
            f"{used * 100 // most} % of its maxmemory is used: at 100 % it rejects jobs",
            "raise maxmemory, or find out what else fills it (`valkey-cli --bigkeys`)",
        )
    return ok("valkey.eviction", "it evicts nothing when memory is short (noeviction)")


def persistence_result(info: Mapping[str, Any]) -> Sequence[CheckResult]:
    failed = [
        what
        for what, status in (("AOF", "aof_last_write_status"), ("snapshot", "rdb_last_bgsave_status"))
        if info.get(status, "ok") != "ok"
    ]
    if failed:
        return [
            problem(
                "valkey.persistence",
                f"its last {' and '.join(failed)} could not be written: it may refuse every job",
                "read its log: usually the disk is full",
            )
        ]
    if info.get("aof_enabled"):
        return [ok("valkey.persistence", "its jobs survive a restart (appendonly)")]
    return [
        note(
            "valkey.persistence",
            "without appendonly its jobs are gone after a restart: sweepers find the work in Postgres, seconds later",
            "set appendonly yes",
        )
    ]
