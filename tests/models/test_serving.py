"""Every fact gets one answer inside the bounds, and the record says who gave it and why."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from river import linear_model

from riverkeeper import Bounds, Fact, Label, Model, Pipeline
from riverkeeper.models.fastpath import Raised
from riverkeeper.models.features import FeatureFailure
from riverkeeper.models.routing import Routing
from riverkeeper.models.serving import Answers, Serving, View, answer, moments
from riverkeeper.models.sketch import merged
from riverkeeper.topics.messages import Answer, Features, Reason, Source, State, Verdict


class Ask(Fact):
    id: str
    zone: str
    x: float


class Came(Fact):
    id: str
    y: float


def pipeline(**changed: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "p",
        "facts": Ask,
        "outcomes": Came,
        "key": "zone",
        "join": "id",
        "features": ["x"],
        "label": Label("y", within=timedelta(hours=1)),
        "models": {
            "main": Model(linear_model.LinearRegression, warmup=10),
            "other": linear_model.LinearRegression,
            "fall": linear_model.LinearRegression,
        },
        "serve": "main",
        "fallback": "fall",
        "bounds": Bounds(0.0, 100.0),
        "constant": 7.0,
    }
    return Pipeline(**{**declared, **changed})


class Says:
    """A scorer that answers what it was told, row by row."""

    fast = True

    def __init__(self, *answers: Answer | Raised) -> None:
        self.answers = answers
        self.rows: list[Sequence[Features]] = []

    def __call__(self, rows: Sequence[Features], names: tuple[str, ...]) -> list[Answer | Raised]:
        self.rows.append([{name: row[name] for name in names} for row in rows])
        return [self.answers[i % len(self.answers)] for i in range(len(rows))]


def version(model: str, *answers: Answer | Raised, line: int = 0, learned: int = 100) -> Serving:
    return Serving(model, 3, line, learned, Says(*answers))  # type: ignore[arg-type]  # what is called, answers


def view(p: Pipeline, *versions: Serving, lease: bool = True, **states: State) -> View:
    routing = Routing.declared(p.models, p.serving)
    for model, state in states.items():
        routing = routing.obey(
            routing.offset + 1,
            Verdict(
                model=model,
                state=state,
                follows=routing.routes[model].offset,
                policy="t",
                reason="t",
                at_ms=0,
            ),
        )
    return View(routing, {each.model: each for each in versions}, lease)


def asked(p: Pipeline, seen: View, rows: Sequence[Features | FeatureFailure]) -> Answers:
    return answer(p, seen, [f"id{i}" for i in range(len(rows))], rows, lambda: 0.0)


ROW: Features = {"x": 1.0}


def test_a_live_model_with_a_version_answers() -> None:
    p = pipeline()
    said = asked(p, view(p, version("main", 5.0), version("fall", 6.0)), [ROW]).served[0]
    assert (said.value, said.source, said.reason, said.model, said.version) == (
        5.0,
        Source.MODEL,
        "",
        "main",
        3,
    )
    assert said.baseline == 6.0


@pytest.mark.parametrize(
    ("versions", "states", "lease", "row", "reason"),
    [
        ([version("fall", 6.0)], {}, True, ROW, Reason.NO_VERSION),
        ([version("main", 5.0, line=1), version("fall", 6.0)], {}, True, ROW, Reason.NO_VERSION),
        ([version("main", 5.0, learned=9), version("fall", 6.0)], {}, True, ROW, Reason.WARMING),
        (
            [version("main", 5.0), version("fall", 6.0)],
            {"main": State.QUARANTINED},
            True,
            ROW,
            Reason.QUARANTINED,
        ),
        (
            [version("main", 5.0), version("fall", 6.0)],
            {"main": State.PROBATION},
            True,
            ROW,
            Reason.QUARANTINED,
        ),
        ([version("main", 100.5), version("fall", 6.0)], {}, True, ROW, Reason.OUT_OF_BOUNDS),
        ([version("main", math.nan), version("fall", 6.0)], {}, True, ROW, Reason.OUT_OF_BOUNDS),
        ([version("main", Raised(ValueError())), version("fall", 6.0)], {}, True, ROW, Reason.RAISED),
    ],
)
def test_the_fallback_model_answers_and_says_why(
    versions: list[Serving], states: dict[str, State], lease: bool, row: Features, reason: Reason
) -> None:
    p = pipeline()
    said = asked(p, view(p, *versions, lease=lease, **states), [row]).served[0]
    assert (said.value, said.source, said.reason, said.asked, said.model) == (
        6.0,
        Source.FALLBACK,
        reason,
        "main",
        "fall",
    )


def test_the_facts_of_a_barred_slice_are_answered_by_others_and_the_model_is_not_asked() -> None:
    p = pipeline(features=["x", "zone"], slices=["zone"])
    main, fall = version("main", 5.0), version("fall", 6.0)
    seen = view(p, main, fall)
    barred = Verdict(
        model="main", state=State.QUARANTINED, slice="zone=a", follows=-1, policy="t", reason="t", at_ms=0
    )
    seen = replace(seen, routing=seen.routing.obey(0, barred))
    rows: list[Features] = [{"x": float(i), "zone": zone} for i, zone in enumerate("abab")]
    said = asked(p, seen, rows)
    assert [(each.model, each.reason) for each in said.served] == [
        ("fall", "quarantined"),
        ("main", ""),
    ] * 2
    assert {each.asked for each in said.served} == {"main"}
    (to_main,) = main.scorer.rows  # type: ignore[attr-defined]  # Says
    assert [row["zone"] for row in to_main] == ["b", "b"]
    assert said.observed["main"].asked == said.observed["main"].served == 2


@pytest.mark.parametrize(
    ("versions", "lease", "row", "reason"),
    [
        ([version("main", 5.0, learned=9), version("fall", 6.0, learned=99)], True, ROW, Reason.WARMING),
        ([version("main", 5.0), version("fall", 6.0)], False, ROW, Reason.NO_LEASE),
        (
            [version("main", 5.0), version("fall", 6.0)],
            True,
            FeatureFailure("x", ValueError()),
            Reason.FEATURE_FAILED,
        ),
        ([version("main", 500.0), version("fall", 600.0)], True, ROW, Reason.OUT_OF_BOUNDS),
        ([], True, ROW, Reason.NO_VERSION),
    ],
)
def test_the_constant_answers_where_no_model_may(
    versions: list[Serving], lease: bool, row: Features | FeatureFailure, reason: Reason
) -> None:
    p = pipeline()
    said = asked(p, view(p, *versions, lease=lease), [row]).served[0]
    assert (said.value, said.reason, said.model, said.version, said.baseline) == (
        7.0,
        reason,
        "constant",
        0,
        None,
    )


def test_no_model_is_asked_without_a_lease_or_in_quarantine() -> None:
    p = pipeline()
    main, fall = version("main", 5.0), version("fall", 6.0)
    asked(p, view(p, main, fall, lease=False), [ROW])
    asked(p, view(p, main, main=State.QUARANTINED), [ROW])
    asked(p, view(p, main, main=State.DESTROYED), [ROW])
    assert main.scorer.rows == [] == fall.scorer.rows  # type: ignore[attr-defined]


def test_one_bad_row_costs_its_own_answer_only() -> None:
    p = pipeline()
    rows: list[Features | FeatureFailure] = [ROW, FeatureFailure("x", ValueError()), ROW, ROW]
    answers = asked(p, view(p, version("main", 1.0, 1e9, 3.0), version("fall", 6.0)), rows)
    assert [said.reason for said in answers.served] == ["", "feature_failed", "out_of_bounds", ""]
    assert [said.value for said in answers.served] == [1.0, 7.0, 6.0, 3.0]


def test_shares_split_traffic_and_each_model_is_asked_its_own_only() -> None:
    p = pipeline(serve={"main": 0.7, "other": 0.3})
    main, other = version("main", 1.0), version("other", 2.0)
    answers = asked(p, view(p, main, other, version("fall", 6.0)), [ROW] * 1000)
    served = [said.model for said in answers.served]
    assert 620 < served.count("main") < 780 and served.count("main") + served.count("other") == 1000
    assert answers.observed["main"].asked == served.count("main")
    assert answers.shadows == []


def test_models_without_traffic_answer_in_shadow_and_the_fallback_in_every_prediction() -> None:
    p = pipeline()
    rows: list[Features | FeatureFailure] = [ROW, FeatureFailure("x", ValueError()), ROW]
    answers = asked(
        p, view(p, version("main", 1.0), version("other", 2.0, 200.0), version("fall", 6.0)), rows
    )
    assert [(s.place, s.model, s.value, s.reason) for s in answers.shadows] == [
        (0, "other", 2.0, ""),
        (2, "other", None, "out_of_bounds"),
    ]
    assert [said.baseline for said in answers.served] == [6.0, None, 6.0]


def test_a_model_on_probation_answers_in_shadow() -> None:
    p = pipeline()
    answers = asked(p, view(p, version("main", 1.0), version("fall", 6.0), main=State.PROBATION), [ROW])
    assert [(s.model, s.value) for s in answers.shadows] == [("main", 1.0)]
    assert answers.served[0].value == 6.0


def test_what_is_observed_counts_every_answer_once() -> None:
    p = pipeline()
    said = (1.0, 500.0, Raised(ValueError()), 3.0)
    observed = asked(p, view(p, version("main", *said), version("fall", 6.0)), [ROW] * 4).observed["main"]
    counts = (observed.asked, observed.served, observed.out_of_bounds, observed.raised)
    assert counts == (4, 2, 1, 1)
    assert (observed.answers.count, observed.answers.low, observed.answers.high) == (2, 1.0, 3.0)


def test_moments_merge_as_if_taken_together() -> None:
    a, b = [1.0, -2.0, 3.5], [10.0, 0.0]
    assert merged(moments(a), moments(b)) == moments(a + b)
    assert merged(moments([]), moments(b)) == moments(b) == merged(moments(b), moments([]))


# A canary.


def on_trial(p: Pipeline, share: float, state: State = State.CANARY) -> View:
    seen = view(p, version("main", 1.0), version("other", 2.0), version("fall", 3.0))
    verdict = Verdict(model="other", state=state, follows=-1, share=share, policy="t", reason="t", at_ms=0)
    return View(seen.routing.obey(0, verdict), seen.versions, lease=True)


KEYS = [f"zone{i}" for i in range(400)]


def by_key(share: float, state: State = State.CANARY) -> dict[str, str]:
    p = pipeline()
    rows: list[Features | FeatureFailure] = [{"x": 1.0} for _ in KEYS]
    ids = [f"id{i}" for i in range(len(KEYS))]
    answers = answer(p, on_trial(p, share, state), ids, rows, lambda: 0.0, keys=KEYS)
    return {key: said.model for key, said in zip(KEYS, answers.served, strict=True)}


def test_a_canary_has_its_share_of_the_keys_and_keeps_them_as_it_grows() -> None:
    small, large = by_key(0.2), by_key(0.5)
    had = {key for key, model in small.items() if model == "other"}
    assert 0.15 < len(had) / len(KEYS) < 0.25
    assert had < {key for key, model in large.items() if model == "other"}
    assert set(large.values()) == {"main", "other"}


def test_a_promoted_canary_has_all_and_the_one_before_stands_by_in_shadow() -> None:
    p = pipeline()
    seen = on_trial(p, 1.0, State.LIVE)
    answers = answer(p, seen, ["a"], [{"x": 1.0}], lambda: 0.0, keys=["k"])
    assert answers.served[0].model == "other"
    assert [shadow.model for shadow in answers.shadows] == ["main"]


def test_a_canary_that_is_taken_out_gives_its_keys_back_at_once() -> None:
    assert set(by_key(0.5, State.QUARANTINED).values()) == {"main"}
    assert set(by_key(0.5, State.SHADOW).values()) == {"main"}


def test_without_a_canary_keys_decide_nothing() -> None:
    assert set(by_key(0.0).values()) == {"main"}
