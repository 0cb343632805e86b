"""A reader's terminal: bash in a folder that isolates it from the machine."""

import asyncio
import os
import re
import shlex
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

PATIENCE = 240.0
"""Timeout of a block in seconds, without installations."""

ENGINES = ("docker", "podman", "kubectl", "systemctl", "useradd")
"""Commands that change the machine or need a server: stand-ins record their calls."""

STAND_IN = """#!/bin/sh
{ printf '%s\\n' "${0##*/}" "$@"; echo; } >>"${0%/*}/calls"
"""

ELSEWHERE = re.compile(r"(?<![\w./~$}-])/(?=(?:etc|opt)\b)")
"""Folders of the machine that are redirected into the reader's folder."""


class Broken(AssertionError):
    """A block did not have the shown effect. The text names the block and the result."""


class Shell:
    """One terminal. Its variables last from block to block, and the first failing line ends it."""

    def __init__(self, bash: Process, folder: Path, environ: Mapping[str, str], tools: Path) -> None:
        self._bash = bash
        self._folder = folder
        self._environ = environ
        self._tools = tools
        self._typing, keyboard = os.openpty()
        self._keyboard = os.ttyname(keyboard)
        self._keyboard_end = keyboard
        self._left: list[tuple[Process, Path]] = []

    def here(self, text: str) -> str:
        """Return the lines with the machine's folders redirected."""
        return ELSEWHERE.sub(f"{self._tools.parent}/", text)

    async def paste(self, text: str, *, typed: str = "", patience: float = PATIENCE) -> str:
        """Paste lines and type answers; returns all output. Raises Broken if a line fails."""
        pasted, output = self._tools / "pasted", self._tools / "output"
        pasted.write_text(self.here(text), encoding="utf-8")
        os.write(self._typing, typed.encode())
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f". {pasted} >{output} 2>&1 <{self._keyboard}; echo done\n".encode())
        status = await asyncio.wait_for(self._bash.stdout.readline(), patience)
        printed = _text(output)
        if status != b"done\n":
            raise Broken(f"a line of these failed:\n{text}\nThey printed:\n{printed}")
        return printed

    async def leave_running(self, text: str, until: str) -> None:
        """Run a line in another terminal until Ctrl-C, and wait for its first output."""
        output = self._tools / f"left-{len(self._left)}"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                "bash", "-euo", "pipefail", "-c", self.here(text),
                cwd=self._folder, env=self._environ, stdin=DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        self._left.append((process, output))
        await self.reads(until)

    async def reads(self, expected: str) -> None:
        """Wait until the program left running last has printed a match. Raises Broken if it exits first."""
        process, output = self._left[-1]
        async with asyncio.timeout(PATIENCE):
            while not re.search(expected, _text(output)):
                if process.returncode is not None:
                    raise Broken(f"{expected!r} was to be said, and it ended with:\n{_text(output)}")
                await asyncio.sleep(0.05)

    def calls(self) -> list[list[str]]:
        """Return the calls of the stand-ins since the last call."""
        file = self._tools / "calls"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        file.unlink(missing_ok=True)
        return [call.split("\n") for call in text.split("\n\n") if call]

    async def close(self) -> None:
        """Press Ctrl-C in every program and exit. Raises Broken for a program that does not end."""
        with suppress(ProcessLookupError):  # it has exited after a failed line
            self._bash.terminate()
        await self._bash.wait()
        try:
            for process, output in self._left:
                await _interrupt(process, output)
        finally:
            os.close(self._typing)
            os.close(self._keyboard_end)


def _prepared(tools: Path, path: str) -> dict[str, str]:
    """Fill the folder; returns additions to the terminal's environment."""
    (tools / "home").mkdir(parents=True)
    for name in ENGINES:
        (tools / name).write_text(STAND_IN, encoding="utf-8")
        (tools / name).chmod(0o755)
    # An error status fails curl, and so the line.
    (tools / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n", encoding="utf-8")
    return {"PATH": f"{tools}{os.pathsep}{path}", "CURL_HOME": str(tools), "HOME": str(tools / "home")}


def _text(output: Path) -> str:
    return output.read_text(encoding="utf-8", errors="replace")


async def _interrupt(process: Process, output: Path) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGINT)
    try:
        async with asyncio.timeout(30):
            status = await process.wait()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        status = await process.wait()
    if status not in {0, 130, -signal.SIGINT}:
        raise Broken(f"after Ctrl-C it ended with {status}:\n{_text(output)}")


@asynccontextmanager
async def terminal(folder: Path, tools: Path, environ: Mapping[str, str]) -> AsyncGenerator[Shell]:
    """Yield a terminal in this folder; ``tools`` is a new folder for the stand-ins."""
    environ = {**environ, **_prepared(tools, environ["PATH"])}
    bash = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", cwd=folder, env=environ, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    )
    shell = Shell(bash, folder, environ, tools)
    try:
        yield shell
    finally:
        await shell.close()


def words(text: str) -> list[list[str]]:
    """Return the simple commands of some shell lines, each as its words."""
    lexer = shlex.shlex(re.sub(r"\\\n\s*|(?:^|\s)#.*", " ", text), posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    lexer.commenters = ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&\n"):
            found.append([])
        else:
            found[-1].append(word)
    return [command for command in found if command]
