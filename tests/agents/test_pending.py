"""What waits packed comes back as it was served, by its key at once and by its time in order."""

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverkeeper.agents import pending
from riverkeeper.agents.line import SETTLED, Line
from riverkeeper.agents.pending import PLACE, Packing, Pending, Served, kept_of, place_of
from riverkeeper.topics.messages import Example, Features, Prediction, Source

NAMES = st.sampled_from(["x", "y", "hour of day", 'quo"ted', "\u0001", "größe", ""])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
ZONES = st.sampled_from([UTC, None, timezone(timedelta(hours=14)), timezone(timedelta(minutes=-570))])
ANSWERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=3),
)


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    return Prediction(
        id=draw(st.text(max_size=5)),
        key=draw(st.text(max_size=5)),
        time=draw(st.datetimes(timezones=ZONES)),
        value=draw(ANSWERS),
        source=draw(st.sampled_from(Source)),
        reason="",
        asked="line",
        model=draw(st.sampled_from(["line", "tree"])),
        version=draw(st.integers(0, 2**40)),
        fingerprint=draw(st.sampled_from(["f", "g"])),
        fact="tiny.facts/0/1",
        verdict=-1,
        baseline=draw(st.one_of(st.none(), ANSWERS)),
        features=draw(st.dictionaries(NAMES, SCALARS, max_size=4)),
    )


def example(served: Prediction, label: bool) -> Example:
    return Example(
        id=served.id,
        key=served.key,
        time=served.time,
        features=served.features,
        label=label,
        served=served.value,
        source=served.source,
        model=served.model,
        version=served.version,
        fingerprint=served.fingerprint,
        baseline=served.baseline,
    )


def written(example: Example) -> bytes:
    return msgspec.json.encode(example)


class TestPacking:
    @settings(deadline=None)
    @given(st.lists(predictions(), max_size=5))
    def test_an_example_is_the_same_to_the_byte(self, served: list[Prediction]) -> None:
        packing = Packing()
        records = [msgspec.json.encode(each) for each in served]
        decoded = [packing.decode(record) for record in records]
        kept = [packing.pack(one, record) for one, record in zip(decoded, records, strict=True)]
        for each, one, it in zip(served, decoded, kept, strict=True):
            expected = written(example(each, True))
            assert written(one.example(True)) == expected
            assert written(packing.example(each.key, it, True)) == expected

    def test_integers_beyond_64_bits_are_kept_as_they_were_read(self) -> None:
        packing = Packing()
        record = _record({"x": 2**70})
        assert packing.pack(packing.decode(record), record) == record

    def test_kinds_beyond_those_of_the_table_are_kept_as_they_were_read(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pending, "MAX_KINDS", 3)
        packing = Packing()
        records = [_record({f"x{n}": 1.0}) for n in range(5)]
        kept = [packing.pack(packing.decode(record), record) for record in records]
        assert [it == record for it, record in zip(kept, records, strict=True)] == [False] * 3 + [True] * 2
        for n, it in enumerate(kept):
            said = msgspec.json.decode(written(packing.example("k", it, True)))
            assert said["features"] == {f"x{n}": 1.0}

    def test_models_beyond_those_of_the_table_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pending, "MAX_MODELS", 2)
        packing = Packing()
        records = [_record({"x": 1.0}, f"m{n}") for n in range(4)]
        kept = [packing.pack(packing.decode(record), record) for record in records]
        assert [it == record for it, record in zip(kept, records, strict=True)] == [False, False, True, True]
        assert [packing.example("k", it, True).model for it in kept] == ["m0", "m1", "m2", "m3"]

    def test_ten_numbers_take_less_than_half_of_their_record(self) -> None:
        features: Features = {f"x{n}": n + 0.123456 for n in range(10)}
        record = _record(features)
        packing = Packing()
        assert len(packing.pack(packing.decode(record), record)) < len(record) / 2


def _record(features: Features, model: str = "m") -> bytes:
    time = datetime(2024, 1, 1, tzinfo=UTC)
    return msgspec.json.encode(Served("1", "k", time, 0.5, Source.MODEL, model, 1, "f", None, features))


# What is done to what waits: (key, milliseconds since the last), or a key whose outcome came, or a time passed.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abcdefgh"), st.integers(0, 3)),
        st.tuples(st.just("take"), st.sampled_from("abcdefgh"), st.just(0)),
        st.tuples(st.just("pass"), st.just(""), st.integers(0, 9)),
        st.tuples(st.just("sweep"), st.just(""), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS, st.sampled_from([1, 40, 10_000]))
def test_it_holds_what_a_list_would(steps: list[tuple[str, str, int]], limit: int) -> None:
    it, reference, clock = Pending(limit), list[tuple[int, int, bytes]](), 0
    for offset, (step, name, ms) in enumerate(steps):
        key = name.encode() * 3
        if step == "add":
            clock += ms
            reference.append((clock, offset, key))
            assert it.add(key, b"%d" % offset, clock, offset) == PLACE.pack(clock, offset)
        elif step == "take":
            wanted = [(PLACE.pack(at, n), b"%d" % n) for at, n, k in reference if k == key]
            reference = [each for each in reference if each[2] != key]
            assert [(place_of(entry), kept_of(entry, key)) for entry in it.take(key)] == wanted
        elif step == "pass":
            given_up = list[tuple[bytes, bytes]]()
            while it.line.first < clock - ms:
                given_up += it.give_up()
            wanted = [(PLACE.pack(at, n), k) for at, n, k in reference if at < clock - ms]
            reference = [each for each in reference if each[0] >= clock - ms]
            assert sorted(given_up) == wanted
            assert [place[:8] for place, _ in given_up] == [place[:8] for place, _ in wanted]
        else:
            it.line.sweep(it._waits)
            assert it.line.count <= len(reference)
        assert len(it) == len(reference)


def test_a_key_is_not_taken_for_one_that_begins_like_it() -> None:
    it = Pending(1)
    for offset, key in enumerate((b"a", b"ab", b"")):
        it.add(key, b"b", 0, offset)
    assert [len(it.take(key)) for key in (b"ab", b"a", b"", b"abb")] == [1, 1, 1, 0]


def test_what_is_left_of_a_line_is_let_go() -> None:
    line: Line[bytes] = Line([])
    for n in range(10 * SETTLED):
        line.push(n, b"%d" % n)
        assert line.pop() == (n, b"%d" % n)
    assert len(line._at) <= 2 * SETTLED
