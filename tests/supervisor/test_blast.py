"""What an incident cost is counted from the predictions themselves: each once, those of its time only."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from riverkeeper.supervisor.blast import SAMPLES, Blast, Stretch, bars, ranges
from riverkeeper.topics.messages import Answer, Prediction, Source

STRETCH = Stretch(onset_ms=1_000, until_ms=1_500)
TIME = datetime(2026, 1, 1, tzinfo=UTC)


def said(
    value: Answer = 1.0, *, model: str = "m", asked: str = "m", version: int = 3, reason: str = ""
) -> Prediction:
    return Prediction(
        id=f"p{value}",
        key="k",
        time=TIME,
        value=value,
        source=Source.FALLBACK if reason else Source.MODEL,
        reason=reason,
        asked=asked,
        model=model,
        version=version,
        fingerprint="f",
        fact="facts/0/7",
        verdict=-1,
        baseline=None,
        features={},
    )


def counted(*each: tuple[int, Prediction], model: str = "m") -> Blast:
    blast = Blast(model, STRETCH)
    for offset, (at_ms, prediction) in enumerate(each):
        blast.add(0, offset, at_ms, prediction)
    return blast


def test_only_what_the_model_served_since_the_onset_counts() -> None:
    blast = counted(
        (999, said()),
        (1_000, said(version=3)),
        (1_200, said(version=4)),
        (1_200, said(asked="n", model="n")),
        (1_300, said(model="usual", reason="out_of_bounds")),
        (1_500, said(version=4)),
        (1_501, said()),
    )
    assert blast.served == 3 and blast.versions == {3: 1, 4: 2}
    assert blast.instead == {("usual", "out_of_bounds"): 1}
    assert ranges(blast.places, "t.predictions") == ["t.predictions/0 1-5"]


def test_the_pipelines_incidents_concern_whoever_answered() -> None:
    blast = counted(
        (1_100, said()), (1_100, said(asked="n", model="n")), (1_100, said(reason="late")), model=""
    )
    assert blast.served == 2 and blast.instead == {("m", "late"): 1}


def test_an_incident_of_a_slice_concerns_the_facts_that_show_it() -> None:
    blast = Blast("m", STRETCH, "zone=a")
    for offset, zone in enumerate("aab"):
        blast.add(0, offset, 1_100, replace(said(), features={"zone": zone}))
    blast.add(0, 3, 1_100, said())
    assert blast.served == 2


def test_answers_before_are_those_of_as_long_a_time() -> None:
    early = [(ms, said(2.0)) for ms in (499, 500, 999)]
    blast = counted(*early, (1_000, said(64.0)), (1_001, said(-64.0)), (1_002, said(64.0)))
    assert (blast.before.count, blast.since.count) == (2, 3)
    shown = bars(blast.before, blast.since)
    assert [name for name, _, _ in shown] == ["-90.5 to -64", "2 to 2.83", "64 to 90.5"]
    assert [before for _, before, _ in shown] == [0.0, 1.0, 0.0]
    assert [round(since, 2) for _, _, since in shown] == [0.33, 0.0, 0.67]


def test_of_classes_the_likeliest_is_counted() -> None:
    blast = counted((900, said({"cat": 0.9, "dog": 0.1})), (1_100, said({"cat": 0.2, "dog": 0.8})))
    assert bars(blast.before, blast.since) == [("cat", 1.0, 0.0), ("dog", 0.0, 1.0)]


def test_samples_are_few() -> None:
    blast = counted(*((1_100, said(float(n))) for n in range(20)))
    assert [s.value for s in blast.samples] == [float(n) for n in range(SAMPLES)]
