"""The demo as it is started, whole, on the embedded broker."""

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from riverkeeper.demos.flights_data import faulted, rows, stream, tally

ROWS = 2_500
STOP_SECONDS = 5.0


def demo(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "riverkeeper", "demo", "flights", "--rows", str(ROWS), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_sums(found: dict[str, Any]) -> None:
    assert found["facts"] + found["outcomes"] + found["dead"] == found["events"] - found["duplicates"]
    said = found["predictions"]
    assert said["total"] == found["facts"]
    assert said["model"] + said["fallback"] == said["total"]
    assert said["out_of_bounds"] == 0


def test_a_slice_of_january_adds_up() -> None:
    found = summary(demo("--json"))
    declared = tally(rows(limit=ROWS))
    assert found.keys() == {
        "events",
        "duplicates",
        "facts",
        "outcomes",
        "dead",
        "predictions",
        "examples",
        "versions",
        "error",
        "incidents",
        "seconds",
    }
    check_sums(found)
    assert (found["events"], found["facts"]) == (declared.events, declared.departures)
    assert (found["outcomes"], found["examples"]) == (declared.arrivals, declared.arrivals)
    assert (found["dead"], found["duplicates"]) == (0, 0)
    assert found["predictions"]["model"] > 0
    assert found["versions"] >= 4
    assert found["error"]["metric"] == "MAE"


def test_a_storm_becomes_duplicates_and_dead_letters() -> None:
    done = demo("--json", "--fault", "storm")
    found = summary(done)
    flights = list(rows(limit=ROWS))
    declared = tally(flights)
    check_sums(found)
    sent = sum(1 for _ in faulted(stream(flights), "storm", declared.events))
    assert found["events"] == sent
    assert (found["facts"], found["outcomes"]) == (declared.departures, declared.arrivals)
    assert found["duplicates"] > 0
    assert found["dead"] > 0


def test_people_are_told_what_was_counted_and_what_to_try() -> None:
    done = demo()
    assert done.returncode == 0, done.stderr
    assert "adds up" in done.stdout
    assert "MAE of what was served" in done.stdout
    assert "what to try next" in done.stdout
    assert "of 4 9" in done.stderr, "progress goes to standard error"


@pytest.mark.parametrize("after", ["starting", "playing:"])
def test_ctrl_c_ends_it_with_the_summary_so_far(after: str) -> None:
    command = [sys.executable, "-m", "riverkeeper", "demo", "flights", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if f" {after}" in line and " s  " in line:
                break
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert time.monotonic() - asked < STOP_SECONDS
    assert process.returncode == 0
    assert json.loads(out)["predictions"]["out_of_bounds"] == 0
