"""What an audit holds in memory does not grow with the log: half a million records take no more than a fifth of it."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

from tests.system.harness import ROOT

SMALL, LARGE = 17_000, 85_000  # facts: 102 000 and 510 000 records
# kB; two caches of pages and sorts of 16 MB fill up meanwhile, and Python's heap keeps what it once had.
ROOM = 48 * 1024


class Measured(NamedTuple):
    records: int
    seconds: float
    before: int  # kB, resident
    after: int
    findings: int


def measured(facts: int) -> Measured:
    words = [sys.executable, "-m", "tests.audit.measure", str(facts)]
    out = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout
    records, seconds, before, after, findings = out.split()
    return Measured(int(records), float(seconds), int(before), int(after), int(findings))


def test_memory_does_not_grow_with_the_log() -> None:
    small, large = measured(SMALL), measured(LARGE)
    assert (small.records, large.records) == (6 * SMALL, 6 * LARGE)
    assert small.findings == large.findings == 0
    assert large.after - small.after < ROOM, (small, large)
