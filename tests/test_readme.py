"""What README.md promises runs: its pipeline, its commands, a foreign client, in the order of the page."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
# Run elsewhere: the two commands by CI itself, the installation by both.
ELSEWHERE = ("make demo", "pip install riverkeeper")
PATIENCE = 60.0  # seconds for one block; a pipeline starts in two


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README) if kind == language]


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_pipeline_has_thirty_lines() -> None:
    (pipeline,) = blocks("python")
    body = pipeline.split("\n\n\n", 1)[1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30


@pytest.fixture
def shell(tmp_path: Path, kafka: "object") -> Iterator["Shell"]:
    (pipeline,) = blocks("python")
    (tmp_path / "my_module.py").write_text(pipeline)
    address: str = kafka.address  # type: ignore[attr-defined]
    shell = Shell(tmp_path, address)
    yield shell
    shell.close()


class Shell:
    """One bash that reads the page's blocks, as a user's would."""

    def __init__(self, folder: Path, broker: str) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "BROKER": broker, "RIVERKEEPER_PORT": "0"}
        self._log = (folder / "log").open("w+")
        self._bash = subprocess.Popen(
            ["bash", "-eu", "-o", "pipefail"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._folder = folder
        self._ran = 0

    def run(self, block: str) -> str:
        """What the block printed to its standard output."""
        self._ran += 1
        out, done = self._folder / f"out{self._ran}", self._folder / f"done{self._ran}"
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{{\n{block}\n}} > {shlex.quote(str(out))}\ntouch {shlex.quote(str(done))}\n")
        self._bash.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        while not done.exists():
            assert self._bash.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return out.read_text()

    def log(self) -> str:
        self._log.flush()
        return (self._folder / "log").read_text()

    def close(self) -> None:
        os.killpg(self._bash.pid, signal.SIGTERM)
        self._bash.wait(timeout=10)
        self._log.close()
        assert self._bash.stdin is not None
        self._bash.stdin.close()


def test_a_pipeline_of_ones_own_and_a_foreign_client(shell: Shell) -> None:
    shown = [shell.run(block) for block in blocks("sh") if not any(word in block for word in ELSEWHERE)]
    topics, _, read = shown
    assert "rides.events" in topics
    prediction, status = read.split("\n", 1)
    expected = re.search(r'"value": ([\d.]+), "source": "fallback"', README)
    assert expected is not None
    assert '"id":"r1"' in prediction and f'"value":{expected.group(1)}' in prediction
    assert "learned" in status and "live" in status
