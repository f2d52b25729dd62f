"""A window's facts are sampled within bounds, and counted as if they were all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from riverkeeper.models.features import FeatureFailure
from riverkeeper.models.profile import MAX_SLICES, SAMPLE, Profile, Sample
from riverkeeper.models.serving import Answers, Served, Shadow
from riverkeeper.topics.messages import Features, Source

START = datetime(2026, 1, 1, tzinfo=UTC)


def _see(profile: Profile, rows: list[Features | FeatureFailure], late_s: float = 2.0) -> None:
    times = [START + timedelta(seconds=i) for i in range(len(rows))]
    appended = [int((t.timestamp() + late_s) * 1000) for t in times]
    profile.see(rows, times, appended)


def test_a_small_window_is_seen_whole() -> None:
    profile = Profile(["x", "zone"], ["zone"])
    _see(profile, [{"x": 1.0, "zone": "a"}, {"x": None, "zone": "b"}, {"x": 3.0, "zone": "a"}])
    seen = profile.take()
    assert seen.features["x"].count == 3 and seen.features["x"].nulls == 1
    assert {n: s.facts for n, s in seen.slices.items()} == {"zone=a": 2, "zone=b": 1}
    assert seen.ages.count == 3 and seen.ages.low == 2.0
    assert seen.event_ms == int((START + timedelta(seconds=2)).timestamp() * 1000)


def test_a_large_one_is_sampled_and_scaled() -> None:
    profile = Profile(["x", "zone"], ["zone"])
    for _ in range(20):
        _see(profile, [{"x": float(i), "zone": "a" if i % 3 else "b"} for i in range(2_000)])
    seen = profile.take()
    assert seen.features["x"].count <= SAMPLE
    assert abs(sum(s.facts for s in seen.slices.values()) - 40_000) <= 2
    assert 0.5 < seen.slices["zone=a"].facts / 40_000 < 0.8


def test_it_begins_anew_each_window() -> None:
    profile = Profile(["x"], [])
    _see(profile, [{"x": 1.0}])
    profile.take()
    assert profile.take() == Profile(["x"], []).take()


def test_slices_are_bounded() -> None:
    profile = Profile(["zone"], ["zone"])
    _see(profile, [{"zone": f"z{i}"} for i in range(100)])
    assert len(profile.take().slices) <= MAX_SLICES


def test_answers_are_sampled_by_model() -> None:
    sample = Sample()
    served = [Served(float(i), Source.MODEL, "", "m", "m", 1, None) for i in range(10)]
    served.append(Served(5.0, Source.FALLBACK, "warming", "m", "base", 1, 5.0))
    shadows = [Shadow(0, "s", 1, {"a": 0.9, "b": 0.1}, ""), Shadow(1, "s", 1, None, "raised")]
    sample.see(Answers(served, shadows, {}))
    told = sample.take()
    assert told["m"].count == 10 and told["s"].bins == {"=a": 1} and "base" not in told
    assert sample.take() == {}
