"""The table of docs/reliability.md is what the recorded runs of the faults came to."""

import json

from tests.faults.table import PAGE, RUNS, group_of, merged, page


def test_the_page_shows_the_runs() -> None:
    text = PAGE.read_text()
    assert page(text, json.loads(RUNS.read_text())) == text


def test_a_run_replaces_one_of_the_same_seed_only() -> None:
    def run(seed: int, *, passed: bool) -> dict[str, object]:
        found = {"fault": "kill_one[score]", "seed": seed, "passed": passed, "findings": {}}
        return {**found, "recovery_seconds": 1.0, "story": ["long"]}

    once = merged([], [run(1, passed=True), run(2, passed=False)], "a")
    again = merged(once, [run(2, passed=True)], "b")
    assert [(r["seed"], r["passed"], r["commit"]) for r in again] == [(1, True, "a"), (2, True, "b")]
    assert "story" not in again[0]


def test_each_fault_has_the_first_row_that_fits() -> None:
    assert group_of("line_half_open_for_good") != group_of("line_half_open")
    assert group_of("made_anew") != group_of("made_anew_where_outputs_cannot_be_told_apart")
