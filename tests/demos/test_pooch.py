"""The story of the pooch demo comes true, whole, on the embedded broker: act by act, and nothing wrong is ever served."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from riverkeeper.process import NAMES

COMMAND = [sys.executable, "-m", "riverkeeper", "demo", "pooch", "--json"]
RUN_SECONDS = 900  # on a machine that pauses; a minute and a half else
STOP_SECONDS = 5.0


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def incident(told: dict[str, Any], model: str, policy: str) -> list[str]:
    """The states of the first incident of this kind."""
    timelines = [i["timeline"] for i in told["incidents"] if (i["model"], i["policy"]) == (model, policy)]
    assert timelines, told["incidents"]
    return [step["state"] for step in timelines[0]]


def test_every_act_kept_its_promise(told: dict[str, Any]) -> None:
    assert [act["title"] for act in told["acts"] if not act["kept"]] == []
    assert len(told["acts"]) == 5


def test_the_counts_add_up(told: dict[str, Any]) -> None:
    assert told["facts"] + told["outcomes"] + told["dead"] == told["events"] - told["duplicates"]
    said = told["predictions"]
    assert said["total"] == told["facts"]
    assert said["model"] + said["fallback"] == said["total"]
    assert (said["out_of_bounds"], told["dead"], told["duplicates"]) == (0, 0, 0)


def test_nothing_wrong_reached_the_app(told: dict[str, Any]) -> None:
    app = told["app"]
    assert (app["missing"], app["doubled"], app["out_of_bounds"]) == (0, 0, 0)
    assert app["shown"] == app["posts"] == sum(app["by"].values()) > 0


def test_the_model_with_negative_likes_was_caught_by_its_bounds_and_healed(told: dict[str, Any]) -> None:
    states = incident(told, "line", "bounds")
    assert states[:2] == ["detected", "quarantined"]
    assert {"probation", "re-admitted"} <= {
        step["state"] for i in told["incidents"] if i["model"] == "line" for step in i["timeline"]
    }


def test_both_pipelines_were_served_from_in_turn(told: dict[str, Any]) -> None:
    by = told["app"]["by"]
    assert by["pooch/line"] > 0 and by["pooch/steady"] > 0
    assert by["pooch-2/tuned"] > 0


def test_the_slow_model_was_taken_out(told: dict[str, Any]) -> None:
    assert incident(told, "poet", "bounds")[:2] == ["detected", "quarantined"]


def test_every_agent_crashed_and_came_back(told: dict[str, Any]) -> None:
    assert told["crashes"] == dict.fromkeys(NAMES, True)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for its processes in /proc")
def test_ctrl_c_ends_it_and_its_processes_with_the_summary_so_far() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("2."):
                break
        started = children(process.pid)
        assert started
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - asked < STOP_SECONDS
    assert process.returncode == 0, err
    told = json.loads(out)
    assert told["predictions"]["out_of_bounds"] == 0
    assert [act["kept"] for act in told["acts"]][:1] == [True]
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
