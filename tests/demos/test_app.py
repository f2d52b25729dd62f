"""The app's account names what is missing, doubled or out of bounds, in the pipeline that it read at the time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from riverkeeper.demos.app import App
from tests.demos.test_ledger import Line


class Log:
    """Writes predictions and examples the way the agents do, and feeds them to an app."""

    def __init__(self) -> None:
        self.app = App(("old", "new"), (0.0, 100.0))
        self._ends: dict[str, int] = {}

    def prediction(self, pipeline: str, number: int, value: float = 5.0, **other: Any) -> None:
        said = {
            "id": f"p{number}",
            "value": value,
            "source": "model",
            "reason": "",
            "asked": "line",
            "model": "line",
        }
        cause = other.pop("cause", number)
        self._write(
            f"{pipeline}.predictions",
            {**said, "features": {"region": "uk"}, **other},
            f"{pipeline}.facts/0/{cause}/0",
        )

    def example(self, pipeline: str, number: int, served: float, label: float = 10.0) -> None:
        value = {"id": f"p{number}", "label": label, "served": served, "baseline": 7.0, "source": "model"}
        self._write(f"{pipeline}.examples", {**value, "features": {"region": "uk"}}, "")

    def _write(self, topic: str, value: object, origin: str) -> None:
        offset = self._ends.get(topic, 0)
        self._ends[topic] = offset + 1
        headers = [("origin", origin.encode())] if origin else []
        self.app.feed(Line(topic, offset, msgspec.json.encode(value), headers=headers))


@pytest.fixture
def log() -> Log:
    return Log()


def test_all_is_well(log: Log) -> None:
    for number in range(3):
        log.prediction("old", number)
    shown = log.app.shown(3)
    assert (shown.posts, shown.shown, shown.missing, shown.doubled, shown.out_of_bounds) == (3, 3, 0, 0, 0)


def test_a_post_without_an_answer_is_missing(log: Log) -> None:
    log.prediction("old", 0)
    assert (log.app.shown(2).shown, log.app.shown(2).missing) == (1, 1)


def test_from_the_move_on_only_the_second_pipeline_counts(log: Log) -> None:
    log.prediction("old", 0)
    log.prediction("old", 1)
    log.prediction("new", 0)
    log.app.moved = 1
    assert log.app.shown(2).missing == 1, "post 1 has no answer in the second pipeline"
    log.prediction("new", 1)
    assert log.app.shown(2).missing == 0
    assert log.app.shown(2).by == {"old/line": 1, "new/line": 1}


def test_a_copy_is_passed_over_and_a_second_answer_is_not(log: Log) -> None:
    log.prediction("old", 0)
    log.prediction("old", 0, value=6.0)
    assert (log.app.shown(1).doubled, log.app.shown(1).copies) == (0, 1)
    log.prediction("old", 0, cause=9)
    assert (log.app.shown(1).doubled, log.app.shown(1).copies) == (1, 1)


@pytest.mark.parametrize("value", [-0.5, 100.5])
def test_an_answer_out_of_bounds_counts_even_in_a_copy(log: Log, value: float) -> None:
    log.prediction("old", 0)
    log.prediction("old", 0, value=value)
    assert log.app.shown(1).out_of_bounds == 1


def test_who_answered_instead_is_known_by_reason_and_region(log: Log) -> None:
    log.prediction("old", 0, source="fallback", reason="out_of_bounds")
    log.prediction("old", 1, source="fallback", reason="quarantined")
    assert log.app.answered_instead("line", "out_of_bounds") == {"uk": 1}
    assert log.app.answered_instead("line", "too_slow") == {}


def test_pipelines_are_compared_over_the_same_posts(log: Log) -> None:
    log.example("old", 0, served=8.0)
    log.example("new", 1, served=0.0)
    log.example("new", 0, served=9.0)
    log.example("old", 2, served=9.0)
    log.example("new", 2, served=6.0)
    assert log.app.compared(0) == (2, 1.5, 2.5)
    assert log.app.compared(1) == (1, 1.0, 4.0)
    assert log.app.compared(3).posts == 0
