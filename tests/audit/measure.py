"""Audits a healthy log of so many facts, and prints the records, the seconds and the memory in kB.

`python -m tests.audit.measure FACTS`, a process of its own for each: memory is that of the process.
"""

from __future__ import annotations

import resource
import sys
import time

from tests.audit.synthetic import Synthetic
from tests.system.pipelines import gauges


def main(count: int) -> None:
    log = Synthetic(gauges("gauges"), count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    notes = log.audited()
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    records = sum(notes.counts[name] for name in ("events", "facts", "outcomes", "predictions", "examples"))
    sys.stdout.write(f"{records} {seconds:.2f} {before} {after} {sum(notes.found.values())}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
