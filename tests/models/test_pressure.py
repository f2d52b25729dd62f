"""Under pressure what is declared is shed, in its order: shadows first, then late facts; every fact is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from riverkeeper import PipelineError, Shed
from riverkeeper.models.fastpath import Raised
from riverkeeper.models.gate import LIMIT_US
from riverkeeper.models.pipeline import BACKLOG
from riverkeeper.models.serving import CHEAP_US, GRACE, Answers, Pressure, Serving, View, answer, punctual
from riverkeeper.topics.messages import Answer, Features, Reason, Source
from tests.models.test_serving import ROW, Says, pipeline, version, view


class Clock:
    """Seconds that pass only when a slow estimator lets them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Sleeps(Says):
    """Takes so many seconds over each row; like any estimator that River asks one by one."""

    fast = False

    def __init__(self, clock: Clock, seconds: Callable[[int], float], *answers: Answer | Raised) -> None:
        super().__init__(*answers)
        self._clock, self._seconds = clock, seconds

    def __call__(self, rows: Sequence[Features], names: tuple[str, ...]) -> list[Answer | Raised]:
        done = sum(map(len, self.rows))
        self._clock.seconds += sum(self._seconds(done + i) for i in range(len(rows)))
        return super().__call__(rows, names)


def served_by(model: str, scorer: Says, us: float | None = None) -> Serving:
    return Serving(model, 3, 0, 100, scorer, us)  # type: ignore[arg-type]  # what is called, answers


def asked(p: Any, seen: View, count: int, pressure: Pressure, clock: Clock | None = None) -> Answers:
    return answer(p, seen, [f"id{i}" for i in range(count)], [ROW] * count, clock or Clock(), pressure)


def reasons(answers: Answers) -> list[str]:
    return [said.reason for said in answers.served]


# Which facts are in time.


def test_without_a_deadline_nothing_is_late() -> None:
    assert punctual(Pressure(rest=1e9, ask=1e9), now=1e9) is None


def test_all_are_asked_for_when_the_oldest_can_wait_for_all_of_them() -> None:
    assert punctual(Pressure([10.0, 11.0], rest=1.0, ask=4.5), now=0.0) is None


def test_those_with_the_most_time_left_are_asked_for_as_many_as_fit() -> None:
    due = [0.5, 3.0, 1.0, 4.0, 3.5]
    assert punctual(Pressure(due, rest=0.5, ask=1.0), now=0.0) == frozenset(
        {3, 4}
    )  # 3.0 < 0.5 + three times 1.0
    assert punctual(Pressure(due, rest=0.5, ask=0.5), now=0.0) == frozenset({1, 3, 4})
    assert punctual(Pressure(due, rest=0.0, ask=0.0), now=5.0) == frozenset()


def test_no_larger_choice_would_be_in_time() -> None:
    due = [0.3 * (i % 11) + 0.05 * i for i in range(40)]
    chosen = punctual(Pressure(due, rest=0.2, ask=0.1), now=0.0)
    assert chosen is not None
    latest = sorted(due, reverse=True)
    assert all(0.2 + len(chosen) * 0.1 <= due[i] for i in chosen)
    assert 0.2 + (len(chosen) + 1) * 0.1 > latest[len(chosen)]


# What the late ones get.


def test_late_facts_get_a_cheap_fallback_and_no_other_model_is_asked() -> None:
    p = pipeline()
    main, fall, other = Says(5.0), Says(6.0), Says(4.0)
    seen = view(p, served_by("main", main), served_by("fall", fall, CHEAP_US), served_by("other", other))
    answers = asked(p, seen, 3, Pressure(due=[-1.0, 1.0, -2.0]))
    assert reasons(answers) == ["late", "", "late"]
    assert [said.value for said in answers.served] == [6.0, 5.0, 6.0]
    assert [said.source for said in answers.served] == [Source.FALLBACK, Source.MODEL, Source.FALLBACK]
    assert [said.model for said in answers.served] == ["fall", "main", "fall"]
    assert [len(rows) for rows in (main.rows[0], fall.rows[0], other.rows[0])] == [1, 3, 1]
    assert answers.spared == {"other": 2} and answers.punctual == 1


@pytest.mark.parametrize("us", [None, CHEAP_US + 1])
def test_they_get_the_constant_if_the_fallback_is_not_known_to_be_cheap(us: float | None) -> None:
    p = pipeline()
    fall = Says(6.0)
    seen = view(p, version("main", 5.0), served_by("fall", fall, us))
    answers = asked(p, seen, 2, Pressure(due=[-1.0, 1.0]))
    assert [(said.value, said.model, said.reason) for said in answers.served] == [
        (7.0, "constant", "late"),
        (5.0, "main", ""),
    ]
    assert len(fall.rows[0]) == 1


def test_what_became_late_while_models_were_asked_is_late() -> None:
    p, clock = pipeline(), Clock()
    slow = Sleeps(clock, lambda _: 0.05, 5.0)
    seen = view(p, served_by("main", slow), served_by("fall", Says(6.0), 1.0))
    answers = asked(p, seen, 2, Pressure(due=[0.06, 1.0]), clock)
    assert reasons(answers) == ["late", ""]
    assert answers.observed["main"].served == 1


def test_without_a_lease_or_traffic_that_is_the_reason_however_late() -> None:
    p = pipeline()
    assert reasons(asked(p, view(p, lease=False), 1, Pressure(due=[-1.0]))) == [Reason.NO_LEASE]


# Shadows.


def test_behind_models_without_traffic_are_asked_for_the_same_share_of_ids() -> None:
    p = pipeline(shed=Shed(shadows=0.3))
    count = 1_000
    seen = view(p, version("main", 1.0), version("other", 2.0), served_by("fall", Says(6.0), 1.0))
    whole = asked(p, seen, count, Pressure())
    sample = asked(p, seen, count, Pressure(behind=True))
    assert len(whole.shadows) == count and not whole.spared
    assert 0.25 * count < len(sample.shadows) < 0.35 * count
    assert [s.place for s in sample.shadows] == [i for i in range(count) if p.spared(f"id{i}")]
    assert sample.spared == {"other": count - len(sample.shadows)}
    assert sample.served == whole.served, "answers, baselines included, are none of what is shed"


@pytest.mark.parametrize(("shed", "left"), [(None, 50), (Shed(shadows=1.0), 50), (Shed(shadows=0.0), 0)])
def test_what_is_not_declared_is_not_shed(shed: Shed | None, left: int) -> None:
    p = pipeline(shed=shed)
    seen = view(p, version("main", 1.0), version("other", 2.0))
    assert len(asked(p, seen, 50, Pressure(behind=True)).shadows) == left


# A model that is slower than the gate allows.


def test_a_model_that_turned_slow_answers_some_facts_and_the_rest_say_so() -> None:
    p, clock = pipeline(), Clock()
    slow = Sleeps(clock, lambda _: 0.05, 5.0)
    answers = asked(p, view(p, served_by("main", slow), served_by("fall", Says(6.0))), 500, Pressure(), clock)
    said = sum(reason == "" for reason in reasons(answers))
    assert 0 < said < 20
    assert reasons(answers) == [""] * said + [Reason.TOO_SLOW.value] * (500 - said)
    assert all(each.value == 6.0 for each in answers.served[said:])
    observed = answers.observed["main"]
    assert (observed.asked, observed.served, observed.raised) == (500, said, 500 - said)
    assert clock.seconds < GRACE + 8 * 0.05 + 1e-9 + said * LIMIT_US / 1e6


def test_a_model_as_slow_as_the_gate_allows_answers_all() -> None:
    p, clock = pipeline(), Clock()
    slow = Sleeps(clock, lambda _: LIMIT_US / 1e6, 5.0)
    assert set(reasons(asked(p, view(p, served_by("main", slow)), 500, Pressure(), clock))) == {""}


# The declaration.


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"deadline": timedelta(0)}, "deadline is 0:00:00; it must be more than 0"),
        ({"shed": Shed(shadows=1.5)}, "shed shadows is 1.5; it is a share"),
        ({"shed": Shed(examples=-0.1)}, "shed examples is -0.1; it is a share"),
        ({"shed": Shed(after=timedelta(0))}, "backlog is 0:00:00; it must be more than 0"),
        ({"shed": Shed(learn_after=timedelta(0))}, "shed learn_after is 0:00:00"),
        (
            {"deadline": timedelta(seconds=1), "shed": Shed(after=timedelta(seconds=2))},
            "shed after 0:00:02 is beyond the deadline 0:00:01",
        ),
    ],
)
def test_a_declaration_that_makes_no_sense_is_an_error_at_import(changed: Any, says: str) -> None:
    with pytest.raises(PipelineError, match=f"p: {says}"):
        pipeline(**changed)


def test_shedding_begins_before_facts_are_late() -> None:
    second = timedelta(seconds=1)
    assert pipeline().backlog == BACKLOG
    assert pipeline(deadline=second).backlog == second / 2
    assert pipeline(deadline=second, shed=Shed(after=second / 4)).backlog == second / 4


def test_load_never_changes_which_outputs_there_are() -> None:
    shed = {"deadline": timedelta(seconds=1), "shed": Shed(examples=0.5)}
    assert pipeline(**shed).revision == pipeline().revision
    answers = asked(pipeline(**shed), View(view(pipeline()).routing, {}, True), 20, Pressure(due=[-1.0] * 20))
    assert len(answers.served) == 20


def test_as_many_examples_are_learned_as_declared_in_whole_stretches() -> None:
    p = pipeline(shed=Shed(examples=0.25))
    taught = [p.taught(0, offset) for offset in range(200_000)]
    assert 0.22 < sum(taught) / len(taught) < 0.28
    assert all(len(set(taught[at : at + 200])) == 1 for at in range(0, len(taught), 200))
    assert taught != [p.taught(1, offset) for offset in range(200_000)]
    assert all(pipeline(shed=Shed()).taught(0, o) for o in range(0, 200_000, 200))
