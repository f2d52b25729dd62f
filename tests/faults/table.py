"""Adds reports of `make faults` to tests/faults/runs.json, and writes the table of docs/reliability.md from it.

    make faults RUNS=1 ARGS="--seed 4 --report report.json"
    python -m tests.faults.table report.json

Runs add up over the days, each with the commit it was made of: a round takes half an hour. A run that failed stays
in the file, and shows in the table, until the same fault has been run again with the same seed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
RUNS = Path(__file__).with_name("runs.json")
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"

KINDS = ("lost", "doubled", "out_of_bounds")  # of the ledger's findings, those that are never to be

# What a row of the table is called, and the faults that are summed up in it; each belongs to the first that fits.
GROUPS = {
    "kill -9 of ingest, score, join, learn, or all in one process": "kill_",
    "kill -9 between any two steps of a turn, a checkpoint, a takeover, a hand-over": "crash_",
    "SIGSTOP past the session in mid-write, then SIGCONT: ingest, score, join, learn": "zombie|a_learner_deposed",
    "two to eight replicas and back; a rolling restart; a storm of rebalances": "two_to_eight|a_storm|a_rolling",
    "killed, or told to end, while it starts": "told_to_end|killed_while",
    "the one broker killed; stopped (SIGSTOP) past the session": "broker_(killed|stopped)",
    "connections that stand and are dead, for good": "line_half_open_for_good",
    "connections reset, cut, half-open, stranded, slow": "line_|connections_",
    "three brokers: a leader killed, stopped, moved; two of three lost and back": "leader|broker_of|two_of_three",
    "the broker's disk full": "disk_full",
    "an agent's store cut, or made anew": r"cut\[|made_anew_where",
    "topic missing, deleted, made anew, widened; retention passes an agent": (
        "missing|deleted|made_anew|partitions_added|retention"
    ),
    "a version cut, altered, signed with another key, of other features, forbidden, 50 MB of nonsense": "version",
    "10 000 poison events amid good ones": "poison",
    "a feature that raises, panics, hangs, or gives NaN, inf, a wrong type, 1 MB": "feature",
    "an estimator that raises, gives NaN, sleeps, hangs, turns slow, as it predicts or learns": (
        "predicts|learns|hangs|turns_slow"
    ),
    "a flood of 20 times the sustainable rate": "flood",
    "a clock an hour ahead or back, from the start or by a jump, in each process": "jump|wrong_from",
    "two producers of the same events; outcomes before their facts": "two_producers|outcomes_first",
    "supervisors: down while a model leaves its bounds, killed with a verdict in hand, two at once": (
        "a_supervisor|two_supervisors"
    ),
    "join killed for its memory, with all it holds pending": "join_out",
}


def group_of(fault: str) -> str:
    """Raises LookupError for a fault that has no row."""
    for group, pattern in GROUPS.items():
        if re.match(pattern, fault):
            return group
    raise LookupError(f"no row of GROUPS in {Path(__file__).name} fits the fault {fault}")


def merged(
    runs: Iterable[dict[str, Any]], fresh: Iterable[dict[str, Any]], commit: str
) -> list[dict[str, Any]]:
    """Each fault and seed once, the latest run of them."""
    found = {(run["fault"], run["seed"]): run for run in runs}
    for run in fresh:
        kept = {key: run[key] for key in ("fault", "seed", "passed", "findings", "recovery_seconds")}
        found[run["fault"], run["seed"]] = {**kept, "commit": commit}
    return [found[key] for key in sorted(found)]


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield "| fault | kinds | runs | failed | lost | doubled | out of bounds | recovery s, median | longest |"
    yield "|---" * 9 + "|"
    for group in GROUPS:
        yield _row(group, [run for run in runs if group_of(run["fault"]) == group])
    yield _row("**all**", runs)


def _row(name: str, runs: list[dict[str, Any]]) -> str:
    kinds = str(len({run["fault"] for run in runs}))
    return f"| {name} | " + " | ".join([kinds, *counts(runs), *recovery(runs)]) + " |"


def counts(runs: Collection[Mapping[str, Any]]) -> list[str]:
    """Runs, those that failed, and what was found of each of `KINDS`."""
    found = [sum(run["findings"].get(kind, 0) for run in runs) for kind in KINDS]
    return [str(n) for n in (len(runs), sum(not run["passed"] for run in runs), *found)]


def recovery(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Seconds: the median, and the longest."""
    seconds = [run["recovery_seconds"] for run in runs if run["recovery_seconds"] is not None]
    return [f"{median(seconds):.1f}", f"{max(seconds):.1f}"] if seconds else ["", ""]


def page(text: str, runs: list[dict[str, Any]]) -> str:
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n" + "\n".join(table(runs)) + f"\n{END}{after}"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("reports", nargs="*", type=Path, help="files that --report wrote")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    words.add_argument("--commit", default=commit, help="that the reports are of (default: this tree's)")
    given = words.parse_args()
    runs = json.loads(RUNS.read_text()) if RUNS.exists() else []
    for report in given.reports:
        runs = merged(runs, json.loads(report.read_text()), given.commit)
    RUNS.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    PAGE.write_text(page(PAGE.read_text(), runs))


if __name__ == "__main__":
    main()
