"""Under a scheduler that crashes, pauses, cuts and reorders at every await, every sum of the ledger holds; and a
rule that is taken out of the code is missed within some hundreds of runs.

A failing seed is repeated by the command that it prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.simulator.bugs import BUGS

SEEDS = int(os.environ.get("SEEDS", "10000"))
PATIENCE_S = 1_800.0  # ten times what it takes on two idle cores


def simulator(*words: str) -> tuple[int, str]:
    """Its exit status, and what it said. In a process of its own, as it leaves half-dead tasks behind."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulator", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout


def test_every_seed_comes_right() -> None:
    status, said = simulator("--seeds", str(SEEDS))
    assert status == 0, said
    assert f"{SEEDS} seeds in " in said
    for kind in ("crash", "cut", "pause", "stall", "stop"):
        assert re.search(rf"\d+ {kind}\b", said), f"no {kind} in any run: {said}"


@pytest.mark.parametrize("seed", [3, 15, 1346])
def test_a_seed_is_the_same_run_every_time(seed: int) -> None:
    first, again = (simulator("--seed", str(seed), "--trace") for _ in range(2))
    assert first == again
    assert len(first[1].splitlines()) > 10


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    within = BUGS[name].within
    status, said = simulator("--seeds", str(within), "--bug", name, "--until-wrong")
    assert status == 1, f"{BUGS[name].what}: not found among {within} seeds; {said}"
    found = re.search(r"--seed (\d+) --trace --bug", said)
    assert found is not None, said
    status, again = simulator("--seed", found[1], "--bug", name)
    assert status == 1, f"seed {found[1]} goes wrong among others, and alone it does not: {again}"
