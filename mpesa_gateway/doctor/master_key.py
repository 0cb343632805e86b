"""The master key: its source, its file mode, and the secrets sealed with each key."""

import os
import stat
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from mpesa_gateway.check_result import CheckContext, CheckResult, Level, note, ok, problem, warning
from mpesa_gateway.config import ENVIRONMENT
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.master_key_rotation import KERNEL_SEALED, SealedColumn


async def check_master_key(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    yield _source(gateway, examination)
    used = await _count_by_key(gateway)
    present, *old = gateway.sealer.key_ids
    unknown = sorted(set(used) - {present, *old})
    if unknown:
        count = sum(used[key_id] for key_id in unknown)
        yield problem(
            "master_key.sealed",
            f"{count} secrets are sealed with keys that are not listed ({', '.join(unknown)}): they cannot be read",
            "add those keys after the present one (security.old_master_keys, or further lines of the key file)",
        )
    elif left := sum(used[key_id] for key_id in old):
        yield note(
            "master_key.sealed",
            f"{left} of {used.total()} secrets are sealed with a former key",
            "run `mpesa-gateway keys rotate`",
        )
    else:
        yield ok("master_key.sealed", f"all {used.total()} stored secrets are sealed with it")
    if idle := [key_id for key_id in old if not used[key_id]]:
        yield note(
            "master_key.old",
            f"former keys are listed although no secret is sealed with them: {', '.join(idle)}",
            "remove them from security.old_master_keys (or the key file) once no process runs that started with them",
        )
    if examination.is_live:
        yield note(
            "master_key.backup",
            "without this key the stored credentials are lost, and this check cannot see whether you keep a copy",
            "keep a copy apart from the database's backups, and test once that both can be restored",
        )


def _source(gateway: Runtime, examination: CheckContext) -> CheckResult:
    file = gateway.config.security.master_key_file
    if file is None:
        if ENVIRONMENT + "SECURITY__MASTER_KEY" in os.environ:
            return note(
                "master_key.source",
                "the master key is read from an environment variable, which every process of this account can read",
                "keep it in a file of mode 0600, and name that in security.master_key_file",
            )
        return warning(
            "master_key.source",
            "the master key is in the settings: every reader or copy of them can decrypt every credential",
            "keep it in a file of mode 0600, and name that in security.master_key_file",
        )
    mode = stat.S_IMODE(Path(file).stat().st_mode)
    if mode & 0o077:
        return CheckResult(
            name="master_key.source",
            level=Level.PROBLEM if examination.is_live else Level.WARNING,
            text=f"the master key is read from {file}, which other accounts of this machine can read (mode {mode:04o})",
            fix=f"chmod 600 {file}",
        )
    return ok(
        "master_key.source", f"the master key is read from {file}, which no other account can read (mode {mode:04o})"
    )


async def _count_by_key(gateway: Runtime) -> Counter[str]:
    columns = [*KERNEL_SEALED, *gateway.contributed(SealedColumn)]
    used: Counter[str] = Counter()
    for column in columns:
        # raw SQL: aggregate - over any table that declares a sealed column.
        # Table and column names come from the plugins' own declarations, never from a caller.
        rows = await gateway.db.fetch(
            f"SELECT split_part({column.column}, '.', 2) AS key_id, count(*) AS count FROM {column.table} "  # noqa: S608
            f"WHERE {column.column} IS NOT NULL GROUP BY 1"
        )
        for row in rows:
            used[row["key_id"]] += row["count"]
    return used
