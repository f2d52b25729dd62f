"""Takes a remedy out of a copy of the tree and shows that its counterexample's test fails.

    python -m tests.counterexamples.without 7
    python -m tests.counterexamples.without all

Each numbered file here declares its remedies as `REMEDIES`: the text that is the remedy, and the text
that an obvious design would have in its place. Every file must pass as the tree is, and fail by an
assertion of its own without each of its remedies.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = "tests/counterexamples"
RUN_SECONDS = 300.0  # of one file, its broker's start in it; each is written to end in seconds
PASSES = "passes"

# How pytest words a failure that a test itself declared: an assertion, or pytest.fail and pytest.raises.
_ASSERTED = re.compile(r"^(AssertionError\b|assert\b|Failed: )")
_WHERE = "import riverkeeper, sys; sys.stdout.write(riverkeeper.__file__)"


class Misdeclared(Exception):
    """A remedy's text does not occur exactly once where it is said to stand."""


@dataclass(frozen=True)
class Remedy:
    """A stretch of production code, and what stands in its place in a design without the remedy."""

    file: str  # from the root of the tree
    text: str  # occurs exactly once in the file
    without: str
    also: tuple[Remedy, ...] = ()  # taken out together with it: neither alone shows anything
    what: str = ""  # what was taken out, in a few words; else the first line of the text

    @property
    def name(self) -> str:
        return self.what or self.text.strip().splitlines()[0]

    @property
    def parts(self) -> tuple[Remedy, ...]:
        return (self, *(part for other in self.also for part in other.parts))

    def removed(self, source: str) -> str:
        """The file's text without the remedy. Raises Misdeclared."""
        found = source.count(self.text)
        if found != 1:
            raise Misdeclared(f"{self.file}: {found} times, not once: {self.text!r}")
        if self.text == self.without:
            raise Misdeclared(f"{self.file}: nothing is taken out by {self.text!r}")
        return source.replace(self.text, self.without)


@dataclass(frozen=True)
class Outcome:
    """What one run of a numbered file came to."""

    number: int
    remedy: str  # "" is the tree as it is
    expected: bool
    says: str
    seconds: float


def numbered() -> dict[int, Path]:
    """The counterexamples there are, by number."""
    files = sorted((ROOT / FOLDER).glob("test_[0-9][0-9]_*.py"))
    by_number = {int(file.name[5:7]): file for file in files}
    if len(by_number) < len(files):
        raise Misdeclared(f"{FOLDER}: two files share a number")
    return by_number


def remedies(file: Path) -> Sequence[Remedy]:
    """Those that a numbered file declares."""
    module = importlib.import_module(".".join([*FOLDER.split("/"), file.stem]))
    declared: Sequence[Remedy] = module.REMEDIES
    return declared


@contextmanager
def copied() -> Iterator[Path]:
    """The tree as it is now, with what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with tempfile.TemporaryDirectory(prefix="riverkeeper-without-") as folder:
        tree = Path(folder)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if os.path.lexists(ROOT / name):
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
        found = subprocess.run(
            [sys.executable, "-c", _WHERE], cwd=tree, env=_environment(tree), check=True, capture_output=True
        )
        if not Path(found.stdout.decode()).is_relative_to(tree):
            raise RuntimeError(f"the copy is not what is imported, but {found.stdout.decode()}")
        yield tree


def _environment(tree: Path) -> dict[str, str]:
    # A mutated file may have the size and the second of the one before it: no bytecode is kept.
    path = os.pathsep.join([str(tree / "src"), str(tree)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def removed(remedy: Remedy, tree: Path) -> Iterator[None]:
    """Takes the remedy out of the copy, and puts it back."""
    kept = {tree / part.file: (tree / part.file).read_text() for part in remedy.parts}
    try:
        for part in remedy.parts:
            file = tree / part.file
            file.write_text(part.removed(file.read_text()))
        yield
    finally:
        for file, text in kept.items():
            file.write_text(text)


def run(tree: Path, file: str) -> str:
    """Runs a test file of the tree: PASSES, "fails: <tests>", or what else became of it."""
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    arguments = ["-q", "-p", "no:cacheprovider", f"--junit-xml={report}", file]
    try:
        subprocess.run(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=tree,
            env=_environment(tree),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RUN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {RUN_SECONDS:.0f} s"
    return judged(report.read_text()) if report.exists() else "breaks: pytest did not run"


def judged(report: str) -> str:
    """What a report of pytest says. A failure counts only if a test asserted it."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    if not cases or all(case.find("skipped") is not None for case in cases):
        return "breaks: nothing ran"
    asserted: list[tuple[str | None, str]] = []
    broken: list[tuple[str | None, str]] = []
    for case in cases:
        for kind in ("failure", "error"):
            if (fault := case.find(kind)) is not None:
                message = (fault.get("message") or "").strip()
                by_test = kind == "failure" and _ASSERTED.match(message) is not None
                (asserted if by_test else broken).append((case.get("name"), message.partition("\n")[0]))
    if asserted:
        return "fails: " + ", ".join(str(name) for name, _ in asserted)
    if broken:
        return "breaks: " + "; ".join(f"{name}: {message}" for name, message in broken)
    return PASSES


def outcomes(tree: Path, number: int, file: Path, declared: Sequence[Remedy]) -> Iterator[Outcome]:
    """The file as the tree is, then without each of its remedies."""
    name = f"{FOLDER}/{file.name}"
    yield _timed(number, "", tree, name)
    for remedy in declared:
        try:
            with removed(remedy, tree):
                yield _timed(number, remedy.name, tree, name)
        except Misdeclared as error:
            yield Outcome(number, remedy.name, False, f"misdeclared: {error}", 0.0)


def _timed(number: int, remedy: str, tree: Path, file: str) -> Outcome:
    began = time.monotonic()
    says = run(tree, file)
    expected = says.startswith("fails: ") if remedy else says == PASSES
    return Outcome(number, remedy, expected, says, time.monotonic() - began)


def shown(outcome: Outcome) -> str:
    mark = "  " if outcome.expected else "! "
    without = f"without: {outcome.remedy}" if outcome.remedy else "as it is"
    return f"{mark}{outcome.number:2d}  {without:<64.64}  {outcome.seconds:4.0f} s  {outcome.says}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.counterexamples.without", description=__doc__)
    parser.add_argument("numbers", nargs="+", help='numbers of counterexamples, or "all"')
    words = parser.parse_args(arguments).numbers
    known = numbered()
    wanted = sorted(known) if words == ["all"] else [int(word) for word in words]
    if unknown := [number for number in wanted if number not in known]:
        parser.error(f"no test of counterexample {unknown[0]} in {FOLDER}")
    declared = {number: remedies(known[number]) for number in wanted}
    failed = 0
    with copied() as tree:
        for number in wanted:
            for outcome in outcomes(tree, number, known[number], declared[number]):
                failed += not outcome.expected
                sys.stdout.write(shown(outcome) + "\n")
                sys.stdout.flush()
    sys.stdout.write(f"{failed} not as expected\n" if failed else "Each fails without its remedy.\n")
    return 1 if failed else 0


if __name__ == "__main__":
    # Through the package: run as a script, this file's classes would exist twice.
    sys.exit(importlib.import_module("tests.counterexamples.without").main())
