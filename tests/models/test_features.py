"""Features: composed by name, checked at import, compiled, contained, restored and fingerprinted."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverkeeper.models.features import (
    Declared,
    Feature,
    FeatureFailure,
    FoldState,
    Graph,
    PipelineError,
    feature,
    fold,
)
from riverkeeper.topics.messages import Envelope, Fact, Features


class Kind(StrEnum):
    PASSENGER = "passenger"


class Departure(Fact, frozen=True):
    origin: str
    carrier: str = "UA"
    scheduled: datetime = datetime(2013, 1, 1, 17, tzinfo=UTC)
    delay: float = 0.0
    kind: Kind = Kind.PASSENGER
    gate: str | None = None


class Arrival(Fact, frozen=True):
    delay: float


@feature
def hour(f: Departure) -> int:
    return f.scheduled.hour


@feature
def rush(hour: int) -> bool:
    return 16 <= hour <= 20


@fold(key="origin", start=0.0)
def total(level: float, f: Departure) -> float:
    return level + f.delay


@feature
def busy(total: float) -> bool:
    return total > 5


def resolve(features: Sequence[Any], wanted: Sequence[str] | None = None) -> Graph:
    if wanted is None:
        wanted = [each if isinstance(each, str) else each.name for each in features]
    return Graph.resolve("flights", features, wanted, Departure, "origin")


def departures(*delays: float, origin: str = "JFK") -> list[Envelope[Departure]]:
    return [
        Envelope(
            id=str(n),
            type="departure",
            time=datetime(2013, 1, 1, tzinfo=UTC),
            key=origin,
            data=Departure(origin=origin, delay=delay),
        )
        for n, delay in enumerate(delays)
    ]


def extract(graph: Graph, *delays: float, folds: FoldState | None = None) -> list[Features | FeatureFailure]:
    return graph.extract(FoldState() if folds is None else folds, departures(*delays))


# Composition


def test_features_compose_by_parameter_name_whatever_the_order_of_the_list() -> None:
    assert extract(resolve([rush, hour]), 1.0) == [{"rush": True, "hour": 17}]


def test_a_row_has_the_wanted_features_only_in_the_order_of_the_list() -> None:
    graph = resolve([busy, rush, total, hour, "carrier"], wanted=["carrier", "rush", "busy"])
    assert graph.wanted == ("busy", "rush", "carrier")
    (row,) = extract(graph, 1.0)
    assert isinstance(row, dict)
    assert list(row.items()) == [("busy", False), ("rush", True), ("carrier", "UA")]


def test_what_nobody_wants_never_runs() -> None:
    ran: list[str] = []

    @feature
    def unwanted(delay: float) -> float:
        ran.append("unwanted")
        return delay

    @fold(key="origin", start=0)
    def unwanted_fold(state: int, f: Departure) -> int:
        ran.append("fold")
        return state

    declared: list[Declared] = [hour, "delay", unwanted, unwanted_fold]
    folds = FoldState()
    assert extract(resolve(declared, ["hour"]), 1.0, folds=folds) == [{"hour": 17}]
    assert ran == [] and folds.changes() == {}
    extract(resolve(declared, ["unwanted", "unwanted_fold"]), 1.0)
    assert ran == ["unwanted", "fold"]


def test_declaring_and_resolving_runs_nothing() -> None:
    @feature
    def explosive(delay: float) -> float:
        raise AssertionError("ran")

    resolve(["delay", explosive])


def test_a_keyword_only_parameter_is_filled_too() -> None:
    @feature
    def double(*, delay: float) -> float:
        return 2 * delay

    assert extract(resolve(["delay", double], ["double"]), 4.0) == [{"double": 8.0}]


def test_a_declared_feature_is_still_the_function() -> None:
    assert rush(18) is True and rush(3) is False
    assert total(1.0, Departure(origin="JFK", delay=2.0)) == 3.0


def test_functions_made_in_a_loop_are_named_apart() -> None:
    def is_carrier(code: str) -> Feature[..., bool]:
        @feature(name=f"is_{code}")
        def indicator(carrier: str) -> bool:
            return carrier == code

        return indicator

    graph = resolve(["carrier", is_carrier("UA"), is_carrier("DL")], ["is_UA", "is_DL"])
    assert extract(graph, 0.0) == [{"is_UA": True, "is_DL": False}]


def test_enums_and_numpy_numbers_become_what_json_carries() -> None:
    @feature
    def root(delay: float) -> np.float64:
        return np.float64(delay) ** 0.5

    (row,) = extract(resolve(["kind", "gate", "delay", root], ["kind", "gate", "root"]), 4.0)
    assert row == {"kind": "passenger", "gate": None, "root": 2.0}
    assert isinstance(row, dict) and type(row["root"]) is float and type(row["kind"]) is str


# Faults, at import


def test_an_unknown_name_is_named_with_who_asks_and_what_was_meant() -> None:
    @feature
    def rush(hours: int) -> bool:
        return hours > 16

    message = r"^flights: feature 'rush' asks for 'hours', which nothing provides \(did you mean 'hour'\?\)$"
    with pytest.raises(PipelineError, match=message):
        resolve([hour, rush])


def test_a_field_that_is_not_listed_is_an_error_that_says_to_list_it() -> None:
    with pytest.raises(PipelineError, match="'late' asks for 'delay'.*a field of Departure: add 'delay'"):
        resolve([late])


@feature
def late(delay: float) -> bool:
    return delay > 15


def test_a_cycle_names_its_members() -> None:
    @feature
    def chicken(egg: int) -> int:
        return egg

    @feature
    def egg(chicken: int) -> int:
        return chicken

    with pytest.raises(
        PipelineError, match="^flights: .*cycle: '(chicken|egg)' asks for '(chicken|egg)' asks"
    ):
        resolve([chicken, egg])


def test_faults_are_found_in_what_nobody_wants() -> None:
    with pytest.raises(PipelineError, match="'late' asks for 'delay'"):
        resolve([hour, late], wanted=["hour"])


def test_two_providers_of_a_name_are_an_error() -> None:
    with pytest.raises(PipelineError, match="^flights: feature 'hour' and another feature of that name"):
        resolve([hour, hour])
    with pytest.raises(PipelineError, match="^flights: field 'delay' and another feature of that name"):
        resolve(["delay", feature(name="delay")(hour.function)])


@pytest.mark.parametrize("wanted", [str, bool, list[int], str | None])
def test_a_mistyped_parameter_names_both_sides(wanted: Any) -> None:
    @feature
    def rush(hour):  # type: ignore[no-untyped-def]
        return True

    rush.function.__annotations__["hour"] = wanted
    with pytest.raises(
        PipelineError, match=r"feature 'rush' takes 'hour' as .*, but feature 'hour' gives int"
    ):
        resolve([hour, rush])


@pytest.mark.parametrize("wanted", [int, float, int | None, Any, object])
def test_a_wider_parameter_takes_an_int(wanted: Any) -> None:
    @feature
    def rush(hour):  # type: ignore[no-untyped-def]
        return True

    rush.function.__annotations__["hour"] = wanted
    assert extract(resolve([hour, rush], ["rush"]), 0.0) == [{"rush": True}]


def test_an_optional_field_does_not_fit_a_parameter_that_must_be_there() -> None:
    @feature
    def pier(gate: str) -> str:
        return gate[0]

    with pytest.raises(PipelineError, match="takes 'gate' as str, but field 'gate' gives str | None"):
        resolve(["gate", pier])


def test_the_fact_of_another_pipeline_is_an_error() -> None:
    @feature
    def early(f: Arrival) -> bool:
        return f.delay < 0

    @fold(key="origin", start=0)
    def arrivals(n: int, f: Arrival) -> int:
        return n + 1

    for declared in (early, arrivals):
        with pytest.raises(PipelineError, match=f"'{declared.name}' reads Arrival, but the .* are Departure"):
            resolve([declared])


def test_the_base_of_the_fact_will_do() -> None:
    @feature
    def always(f: Fact) -> bool:
        return True

    assert extract(resolve([always]), 0.0) == [{"always": True}]


def test_an_unreadable_annotation_is_named() -> None:
    @feature
    def hour(f: Nowhere) -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    with pytest.raises(PipelineError, match="feature 'hour'.*'Nowhere' is not defined; define or import it"):
        resolve([hour])


def test_wanting_what_does_not_exist_is_an_error() -> None:
    with pytest.raises(PipelineError, match=r"'hurry' is wanted, but nothing provides it"):
        resolve([hour, rush], wanted=["hurry"])


def test_wanting_what_no_record_carries_is_an_error_but_building_on_it_is_not() -> None:
    @feature
    def minute(scheduled: datetime) -> int:
        return scheduled.minute

    with pytest.raises(PipelineError, match="field 'scheduled' is wanted by a model, but gives datetime"):
        resolve(["scheduled", minute])
    assert extract(resolve(["scheduled", minute], ["minute"]), 0.0) == [{"minute": 0}]


def test_a_field_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(PipelineError, match=r"'carier', no field of Departure \(did you mean 'carrier'\?\)"):
        resolve(["carier"])


def test_what_is_not_declared_is_refused() -> None:
    with pytest.raises(PipelineError, match="decorate it"):
        resolve([len], wanted=[])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *args: 0, "filled by name"),
        (lambda delay=1: 0, "has a default for 'delay'"),
    ],
)
def test_parameters_that_cannot_be_filled_by_name_are_errors(
    function: Callable[..., int], message: str
) -> None:
    with pytest.raises(PipelineError, match=message):
        resolve([feature(name="odd")(function)])


def test_only_plain_functions_with_legal_names_are_features() -> None:
    async def later() -> int:
        return 1

    for wrong in (len, later, lambda f: f):
        with pytest.raises(PipelineError):
            feature(wrong)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("none", "starts with str, but takes its state as float"),
        (math.nan, "not finite"),
        ({1, 2}, "set is not one of"),
        ({1: 2}, "must have str keys"),
        (lambda: object(), "object is not one of"),
    ],
)
def test_a_fold_that_cannot_start_is_an_error(start: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        resolve([fold(key="origin", start=start)(total.function)])


def test_a_fold_that_returns_another_state_than_it_takes_is_an_error() -> None:
    def level(state: float, f: Departure) -> str:
        return "high"

    declare: Any = fold(key="origin", start=0.0)

    with pytest.raises(PipelineError, match="fold 'level' returns str, but takes its state as float"):
        resolve([declare(level)])


# Folds


def test_a_fold_is_the_state_before_the_fact_and_apart_by_key() -> None:
    graph = resolve([total])
    facts = departures(1, 2, 4) + departures(10, 20, origin="LGA") + departures(8)
    rows = graph.extract(FoldState(), facts)
    assert rows == [{"total": value} for value in (0, 1, 3, 0, 10, 7)]


def test_batches_do_not_show_in_the_rows() -> None:
    graph, folds = resolve([total, busy]), FoldState()
    facts = departures(1, 2, 4, 8, 16)
    apart = [row for fact in facts for row in graph.extract(folds, [fact])]
    assert apart == graph.extract(FoldState(), facts)


def test_a_start_is_never_shared_between_keys() -> None:
    @fold(key="origin", start=list)
    def window(state: list[float], f: Departure) -> list[float]:
        return [*state, f.delay][-3:]

    @feature
    def length(window: list[float]) -> int:
        window.append(-1.0)  # against the contract; must not reach another key
        return len(window)

    graph = resolve([window, length], ["length"])
    rows = graph.extract(FoldState(), departures(5) + departures(6, origin="LGA"))
    assert rows == [{"length": 1}, {"length": 1}]


def test_changes_are_what_was_set_since_the_last_call() -> None:
    graph, folds = resolve([total]), FoldState()
    graph.extract(folds, departures(1, 2) + departures(10, origin="LGA"))
    assert folds.changes() == {b"fold/total/JFK": b"3.0", b"fold/total/LGA": b"10.0"}
    assert folds.changes() == {}
    graph.extract(folds, departures(1))
    assert folds.changes() == {b"fold/total/JFK": b"4.0"}


def test_restored_folds_go_on_where_they_were() -> None:
    graph = resolve([total])
    through, before = FoldState(), FoldState()
    graph.extract(before, departures(1, 2, origin="a/b"))
    after = FoldState.restore([*before.changes().items(), (b"offset", b"12")])
    assert after.changes() == {}
    expected = graph.extract(through, departures(1, 2, 4, 8, origin="a/b"))[2:]
    assert (
        graph.extract(after, departures(4, 8, origin="a/b")) == expected == [{"total": 3.0}, {"total": 7.0}]
    )


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text()
JSON = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=10,
)


@given(JSON)
def test_a_live_state_is_the_state_that_would_be_restored(value: Any) -> None:
    @fold(key="origin", start=None)
    def anything(state: Any, f: Departure) -> Any:
        return value

    folds = FoldState()
    resolve([anything], wanted=["anything"]).extract(folds, departures(0))
    live = folds.of("anything")[0]["JFK"]
    restored = FoldState.restore(folds.changes().items()).of("anything")[0]["JFK"]
    assert repr(live) == repr(restored)


# Failures


@feature
def picky(f: Departure) -> float:
    if f.delay < 0:
        raise ValueError("negative")
    return f.delay


def test_a_failing_fact_costs_its_own_row_only_and_still_enters_the_folds() -> None:
    rows = extract(resolve([total, picky]), 1.0, -2.0, 4.0)
    assert rows[0] == {"total": 0.0, "picky": 1.0}
    assert rows[2] == {"total": -1.0, "picky": 4.0}
    failure = rows[1]
    assert isinstance(failure, FeatureFailure) and failure.feature == "picky"
    assert str(failure.error) == "negative"


def test_a_failure_holds_the_feature_s_frame_and_not_the_batch() -> None:
    (failure,) = extract(resolve([picky]), -1.0)
    assert isinstance(failure, FeatureFailure)
    trace = failure.error.__traceback__
    assert trace is not None and trace.tb_frame.f_code.co_name == "picky"


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, np.float64("nan"), 2**64, "\ud800", [1], {"a": 1}, object()]
)
def test_a_value_that_no_record_carries_is_a_failure(value: Any) -> None:
    @feature
    def odd(f: Departure) -> Any:
        return value if f.delay else 1

    rows = extract(resolve([hour, odd]), 0.0, 1.0, 0.0)
    assert rows[0] == rows[2] == {"hour": 17, "odd": 1}
    assert isinstance(rows[1], FeatureFailure) and rows[1].feature == "odd"


@given(st.floats() | st.integers() | st.text() | st.none() | st.booleans())
def test_every_row_can_be_encoded_and_comes_back(value: Any) -> None:
    @feature
    def anything(f: Departure) -> Any:
        return value

    (row,) = extract(resolve([anything]), 0.0)
    assert isinstance(row, FeatureFailure) or msgspec.json.decode(msgspec.json.encode(row)) == row


class Pair(Fact, frozen=True):
    origin: str
    left: float
    right: float


def pairs(*values: tuple[Any, Any]) -> list[Features | FeatureFailure]:
    """Rows of facts as they are given: a decoder would let only finite floats through."""
    graph = Graph.resolve("pairs", ["left", "right"], ["left", "right"], Pair, "origin")
    at = datetime(2013, 1, 1, tzinfo=UTC)
    facts = [Pair(origin="o", left=left, right=right) for left, right in values]
    return graph.extract(
        FoldState(), [Envelope(id="i", type="pair", time=at, key="o", data=fact) for fact in facts]
    )


def test_fields_whose_sum_overflows_are_carried_all_the_same() -> None:
    assert pairs((1.5e308, 1.5e308), (1.0, -0.0)) == [
        {"left": 1.5e308, "right": 1.5e308},
        {"left": 1.0, "right": -0.0},
    ]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, object(), [1.0], 10**400])
def test_a_field_that_no_record_carries_is_named_whatever_stands_beside_it(wrong: Any) -> None:
    for values, named in (((wrong, 1.0), "left"), ((1.0, wrong), "right"), ((math.inf, -math.inf), "left")):
        (failed,) = pairs(values)
        assert isinstance(failed, FeatureFailure) and failed.feature == named


def test_a_field_that_is_no_float_is_carried_as_what_it_is() -> None:
    assert pairs((None, 1.0), (np.float64(2.0), 3), (True, "text")) == [
        {"left": None, "right": 1.0},
        {"left": 2.0, "right": 3},
        {"left": True, "right": "text"},
    ]
    (row,) = pairs((np.float64(2.0), 1.0))
    assert isinstance(row, dict) and type(row["left"]) is float


def test_an_intermediate_that_is_not_finite_is_no_failure() -> None:
    @feature
    def ratio(delay: float) -> float:
        return math.inf if delay == 0 else 1 / delay

    @feature
    def steep(ratio: float) -> bool:
        return ratio > 1

    assert extract(resolve(["delay", ratio, steep], ["steep"]), 0.0) == [{"steep": True}]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, object(), {"a": math.nan}, [object()], {1: 1}, None])
def test_a_failing_fold_keeps_its_state_and_costs_the_row(wrong: Any) -> None:
    @fold(key="origin", start=[])
    def moody(state: Any, f: Departure) -> Any:
        if f.delay >= 0:
            return [*state, f.delay]
        if wrong is None:
            raise ValueError("negative")
        return wrong

    @feature
    def count(moody: list[float]) -> int:
        return len(moody)

    folds = FoldState()
    rows = extract(resolve([moody, count, total], ["count", "total"]), 1, -1, 2, 0, folds=folds)
    assert isinstance(rows[1], FeatureFailure) and rows[1].feature == "moody"
    assert [rows[0], *rows[2:]] == [
        {"count": 0, "total": 0.0},
        {"count": 1, "total": 0.0},
        {"count": 2, "total": 2.0},
    ]
    assert folds.changes()[b"fold/moody/JFK"] == b"[1,2,0]"


def test_the_first_failure_of_a_fact_is_the_one_named() -> None:
    @fold(key="origin", start=0.0)
    def broken(state: float, f: Departure) -> float:
        return state / 0

    (row,) = extract(resolve([picky, broken]), -1.0)
    assert isinstance(row, FeatureFailure) and row.feature == "picky"


# The fingerprint

MODULE = '''
from riverkeeper import Fact, feature, fold

class Departure(Fact):
    origin: str
    delay: float

LIMITS = {"low": (1, 2), "high": frozenset({"c", "a", "b"})}
UNUSED = 1

def deeper(x):
    return x + 1

def helper(x):
    return deeper(x) * 2

def other(x):
    return x

def scaled(factor):
    def inner(f: Departure) -> float:
        return f.delay * factor
    return feature(name="scaled")(inner)

scaled_by = scaled(3)

@feature
def late(f: Departure) -> bool:
    """Whether it is late."""
    # fifteen minutes is the industry's line
    return helper(f.delay) > 15 and f.delay not in LIMITS["low"]

@feature
def very(late: bool) -> bool:
    return late

@feature
def unwanted(f: Departure) -> int:
    return 1

@fold(key="origin", start=0.5)
def level(state: float, f: Departure) -> float:
    return max(state, f.delay)
'''


def fingerprint(folder: Path, old: str = "", new: str = "") -> str:
    assert old in MODULE
    path = folder / f"subject_{len(list(folder.iterdir()))}.py"
    path.write_text(MODULE.replace(old, new) if old else MODULE)
    spec = importlib.util.spec_from_file_location("subject", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Annotations are looked up in the module by its name.
    sys.modules["subject"] = module
    try:
        spec.loader.exec_module(module)
        declared = [module.late, module.very, module.scaled_by, module.level, module.unwanted]
        wanted = ["very", "scaled", "level"]
        return Graph.resolve("flights", declared, wanted, module.Departure, "origin").fingerprint
    finally:
        del sys.modules["subject"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # fifteen minutes is the industry's line\n", ""),
        ('    """Whether it is late."""\n', ""),
        ("def helper(x):\n", 'def helper(x):\n    "Doubles."\n\n'),
        ("return helper(f.delay) > 15", "return (helper( f.delay )  >  15)"),
        ("UNUSED = 1", "UNUSED = 2"),
        ("def other(x):\n    return x", "def other(x):\n    return -x"),
        ("-> int:\n    return 1", "-> int:\n    return 2"),
        ('{"c", "a", "b"}', '{"b", "c", "a"}'),
        ("@feature\ndef late", '@feature(name="late")\ndef late'),
    ],
    ids=[
        "comment",
        "docstring",
        "helper's",
        "layout",
        "constant",
        "function",
        "unwanted",
        "set order",
        "decorator",
    ],
)
def test_what_changes_no_wanted_code_keeps_the_fingerprint(tmp_path: Path, old: str, new: str) -> None:
    assert fingerprint(tmp_path, old, new) == fingerprint(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("> 15", "> 16"),
        ('"low": (1, 2)', '"low": (1, 3)'),
        ('{"c", "a", "b"}', '{"c", "a"}'),
        ("return deeper(x) * 2", "return deeper(x) * 3"),
        ("return x + 1", "return x + 2"),
        ("scaled(3)", "scaled(4)"),
        ("start=0.5", "start=0.6"),
        ("max(state", "min(state"),
        ("very(late: bool) -> bool", "very(late: bool) -> int"),
        (
            "def very(late: bool) -> bool:\n    return late",
            "def very(level: float) -> bool:\n    return level > 0",
        ),
    ],
    ids=["literal", "tuple", "set", "helper", "its helper", "closure", "start", "fold", "type", "wiring"],
)
def test_what_changes_wanted_code_changes_the_fingerprint(tmp_path: Path, old: str, new: str) -> None:
    assert fingerprint(tmp_path, old, new) != fingerprint(tmp_path)


def test_without_source_the_bytecode_counts() -> None:
    def made(code: str) -> str:
        function = eval(f"lambda delay: {code}")
        return resolve(["delay", feature(name="made")(function)]).fingerprint

    assert made("delay + 1") == made("delay  +  1")
    assert len({made("delay + 1"), made("delay + 2"), made("delay - 1"), made("abs(delay)")}) == 4


def test_the_order_of_a_row_is_in_the_fingerprint() -> None:
    assert resolve([hour, rush]).fingerprint != resolve([rush, hour]).fingerprint


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "subject.py").write_text(MODULE)
    code = (
        "from subject import *; from riverkeeper.models.features import Graph\n"
        """bare = feature(name="bare")(eval("lambda: 'a' in {'x', 'y', 'z'} and LIMITS"))\n"""
        "print(Graph.resolve('flights', [late, very, scaled_by, level, bare],"
        " ['very', 'scaled', 'level', 'bare'], Departure, 'origin').fingerprint)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2", "3", "4")
    }
    assert [len(each) for each in seen] == [16]
