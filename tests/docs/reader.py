"""Runs a page's blocks in order, as its reader would."""

import ast
import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncGenerator, Collection, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec

from mpesa_gateway.app import Gateway
from mpesa_gateway.commands.session import RUNNING_CONFIG
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.migrator import migrate
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import Api
from tests.docs.blocks import Block
from tests.docs.blocks import blocks as blocks_of
from tests.docs.claims import READERS, complaints, noted
from tests.docs.how import How, Job, Page
from tests.docs.shell import Broken, Shell, terminal
from tests.forking import forks
from tests.house.tree import ROOT
from tests.machine import Machine

RUN = ("sh", "python", "sql")
"""Languages of which every block is run."""

NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".bench", ".hypothesis", ".*_cache", "__pycache__", "data", "dist")


def copied(checkout: Path) -> None:
    """Copy the files of a checkout into this new folder."""
    shutil.copytree(ROOT, checkout, ignore=NOT_COPIED)


def quickstart_credentials() -> Any:
    """Return the credentials that a reader of the quickstart has stored. No page may need more unless it stores it."""
    (shown,) = [one.text for one in blocks_of("docs/quickstart.md") if "/v1/merchant/providers" in one.text]
    return json.loads(shown[shown.index("'{") + 1 : shown.rindex("}'") + 1])


@dataclass(frozen=True)
class Demo:
    """A running `up` for the pages, its API, the key of its one merchant, and a checkout to copy."""

    machine: Machine
    checkout: Path
    url: str
    key: str

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment of the reader's terminal."""
        ours = {"MPESA_GATEWAY_DATA": str(self.machine.data), "URL": self.url, "KEY": self.key}
        ours["SIMULATOR"] = self.machine.simulator
        environ = self.machine.environ
        return environ | ours | {"PATH": f"{forks.command()}{os.pathsep}{environ['PATH']}"}

    async def is_as_it_was(self) -> None:
        """Undo the changes of a previous page: store the quickstart's credentials, remove the webhook."""
        api = Api(self.url, self.key)
        stored = await api.call("PUT", "/v1/merchant/providers", quickstart_credentials())
        removed = await api.call("DELETE", "/v1/merchant/webhook")
        await api.close()
        assert (stored.status, stored.data["provider"]) == (200, "mpesa")
        assert removed.status in {200, 404}

    @asynccontextmanager
    async def program(self, checkout: Path) -> AsyncGenerator[Receiver]:
        """Run the reader's own program, which has received a webhook."""
        api = Api(self.url, self.key)
        async with receiving() as receiver:
            secret = (await api.call("PUT", "/v1/merchant/webhook", {"webhook_url": receiver.url})).data[
                "webhook_secret"
            ]
            assert (await api.call("POST", "/v1/merchant/webhook/test")).data
            # Events of payments that an earlier page made may arrive, too.
            one = (await receiver.wait_for(1))[0]
            webhook = {"secret": secret, "headers": one.headers, "body": one.body.decode()}
            (checkout / "webhook.json").write_text(json.dumps(webhook), encoding="utf-8")
            yield receiver
        await api.close()

    @asynccontextmanager
    async def shop_database(self) -> AsyncGenerator[asyncpg.Connection]:
        """Create a database `shop` with the tables of one; the role `mpesa` owns it."""
        config = GatewayConfig.load(self.machine.data / RUNNING_CONFIG, {})
        assert config.database.url is not None
        parts = urlsplit(config.database.url.reveal())
        password = (self.machine.data / "postgres.password").read_text(encoding="ascii").strip()
        url = parts._replace(netloc=f"mpesa:{password}@{parts.hostname}:{parts.port}").geturl()
        shop_url = urlsplit(url)._replace(path="/shop").geturl()
        server = await asyncpg.connect(url)
        await server.execute("CREATE DATABASE shop")
        try:
            of_shop = msgspec.structs.replace(config.database, url=Secret(shop_url))
            gateway = Gateway(msgspec.structs.replace(config, database=of_shop))
            await gateway.db.start()
            await migrate(gateway.db, gateway.migrations)
            await gateway.db.stop()
            shop = await asyncpg.connect(shop_url, server_settings={"search_path": config.database.schema})
            yield shop
            await shop.close()
        finally:
            await server.execute("DROP DATABASE shop WITH (FORCE)")
            await server.close()


async def read(
    blocks: Sequence[Block],
    page: Page,
    folder: Path,
    environ: Mapping[str, str],
    *,
    demo: Demo | None = None,
    jobs: Collection[Job] = (),
) -> None:
    """Run all blocks of a page in ``folder``. Blocks for the ``jobs`` are run, those for other jobs only checked.

    Raises Broken, with page and line, for a block that does not have the shown effect.
    """
    checkout = folder / "checkout"
    if any(block.language in RUN for block in blocks):
        if demo is None:
            copied(checkout)
        else:
            copying = await asyncio.create_subprocess_exec("cp", "-R", demo.checkout, checkout)
            assert await copying.wait() == 0
        (checkout / ".venv").symlink_to(sys.prefix)
    else:
        checkout.mkdir()
    async with AsyncExitStack() as stack:
        if page.program and demo is not None:
            at = urlsplit((await stack.enter_async_context(demo.program(checkout))).url).netloc
            blocks = [replace(block, text=block.text.replace(page.program, at)) for block in blocks]
        shell = await stack.enter_async_context(terminal(checkout, folder / "tools", environ))
        left: How | None = None
        for block in blocks:
            how = page.how(block)
            with _named(block):
                if how.ready:
                    await shell.leave_running(block.text, how.ready)
                    left = how
                elif how.job is not None and how.job not in jobs:
                    _look_at(block, checkout)
                else:
                    await _follow(block, how, shell, checkout, demo)
        if left is not None:
            await shell.reads(left.says)


async def _follow(block: Block, how: How, shell: Shell, checkout: Path, demo: Demo | None) -> None:
    printed = ""
    if block.language == "sh":
        printed = await shell.paste(f"{how.before}\n{block.text}\n{how.after}", typed=how.typed, patience=how.patience)
        _refuse([problem for call in shell.calls() for problem in noted(call, checkout)])
    elif block.language == "python":
        name = f"block_{block.line}.py"
        (checkout / name).write_text(f"{how.before}\n{block.text}\n{how.after}", encoding="utf-8")
        printed = await shell.paste(f"python {name}")
    elif block.language == "sql":
        assert demo is not None
        async with demo.shop_database() as shop:
            await shop.execute(block.text)
    elif block.language in READERS:
        READERS[block.language](block.text)
    else:
        raise Broken(
            f"no test runs or checks {block.language or 'code without a language'!r}: name one of "
            f"{', '.join((*RUN, *READERS))} behind the fence, or teach tests/docs another"
        )
    if not re.search(how.says, printed):
        raise Broken(f"{how.says!r} was to be said, and this was:\n{printed}")


def _look_at(block: Block, checkout: Path) -> None:
    """Check a block that is run elsewhere, perhaps in a language that is run only there."""
    if block.language == "sh":
        _refuse(complaints(block.text, checkout))
    elif block.language == "python":
        ast.parse(block.text)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise Broken("\n".join(problems))


@contextmanager
def _named(block: Block) -> Generator[None]:
    """Add page and line to the error of a block."""
    try:
        yield
    except Exception as problem:
        raise Broken(f"{block}: {problem}") from problem
