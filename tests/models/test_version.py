"""A version travels as signed, chunked records, and is made again byte for byte from its spans."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import compose, forest, linear_model, preprocessing, tree

from riverkeeper.models import version
from riverkeeper.models.unpickle import AllowList, UntrustedVersion
from riverkeeper.models.version import (
    CHUNK_BYTES,
    Assembler,
    BadVersion,
    ChunkKey,
    ManifestKey,
    begin,
    check,
    dump,
    environment,
    extend,
    interned,
    parse_key,
    rebuild,
    seal,
    sign,
    tombstones,
    verify,
)
from riverkeeper.topics.messages import Features, Manifest, Span

KEY = b"a key for tests"
BIG = bytes(range(256)) * 5000  # 1.28 MB: three chunks


def sealed(number: int = 1, data: bytes = BIG, model: str = "learned", **changes: Any) -> version.Sealed:
    fields: dict[str, Any] = {
        "model": model,
        "version": number,
        "line": 0,
        "parent": number - 1,
        "fingerprint": "f",
        "environment": {"python": "3"},
        "spans": (Span(0, 0, 10),),
        "offsets": {0: 10, 12: 4},
        "learned": 10,
        "data": data,
        "published_ms": 1,
        "key": KEY,
    }
    return seal(**(fields | changes))


def fed(assembler: Assembler, records: Sequence[tuple[bytes, bytes | None]]) -> list[Manifest]:
    found = [assembler.feed(key, value) for key, value in records]
    return [manifest for manifest in found if manifest is not None]


# Keys.


@given(
    st.text(min_size=1).filter(lambda name: "/" not in name and name.isprintable()),
    st.integers(0, 10**15),
    st.one_of(
        st.none(), st.tuples(st.text("0123456789abcdef", min_size=8, max_size=8), st.integers(0, 99_999))
    ),
)
def test_a_key_reads_as_it_was_written(model: str, number: int, chunk: tuple[str, int] | None) -> None:
    key = ManifestKey(model, number) if chunk is None else ChunkKey(model, number, *chunk)
    assert parse_key(key.encode()) == key


@pytest.mark.parametrize(
    "key",
    [b"", b"/1", b"m", b"m/", b"m/x", b"m/01", b"m/-1", b"m/+1", b"m/1 ", b"m/1_0", b"m/1/", b"m/1/abcdef01"]
    + [b"m/1/abcdef01/x", b"m/1/ABCDEF01/0", b"m/1/abcdef0/0", b"m/1/abcdef01/00", b"a/b/1", b"\xff/1"]
    + [b"m/" + b"9" * 5000, "m/\u0661".encode(), b"m/1\n"],
)
def test_any_other_key_is_refused(key: bytes) -> None:
    with pytest.raises(BadVersion):
        parse_key(key)


# Signatures.


def test_a_signature_survives_the_way_through_the_topic() -> None:
    probes: list[tuple[Features, Any]] = [
        ({"a": 1, "b": 1.0, "c": True, "d": None, "é": "ü"}, 0.1),
        ({"a": 10**20, "b": 1e300, "c": -0.0}, {"x": 1 / 3, "y": 2 / 3}),
    ]
    manifest = sealed(probes=probes, error=float("nan"), skipped=(Span(1, 2, 3),)).manifest
    read = Manifest.model_validate_json(manifest.encode())
    verify(read, KEY)
    assert read == manifest


@pytest.mark.parametrize("name", sorted(set(Manifest.model_fields) - {"signature"}))
def test_a_change_to_any_field_breaks_the_signature(name: str) -> None:
    manifest = sealed(probes=[({"a": 1}, 0.5)], error=1.0).manifest
    changed: dict[str, Any] = {
        "fingerprint": "g",
        "model": "other",
        "sha256": "0" * 64,
        "environment": {"python": "4"},
        "spans": (Span(0, 0, 11),),
        "skipped": (Span(0, 0, 1),),
        "offsets": {0: 10, 12: 5},
        "probes": (({"a": 1}, 0.25),),
        "error": 2.0,
        "baseline_error": 2.0,
    }
    value = changed.get(name, 77)
    with pytest.raises(BadVersion, match="signature"):
        verify(manifest.model_copy(update={name: value}), KEY)


def test_another_key_no_signature_and_text_that_is_no_hex_are_refused() -> None:
    manifest = sealed().manifest
    with pytest.raises(BadVersion):
        verify(manifest, b"another key")
    for signature in ("", "é", manifest.signature[:-1]):
        with pytest.raises(BadVersion):
            verify(manifest.model_copy(update={"signature": signature}), KEY)


def test_an_empty_key_signs_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        sign(sealed().manifest, b"")


# Sealing.


def test_a_version_is_chunks_that_a_broker_takes_and_then_its_manifest() -> None:
    version_ = sealed()
    assert [len(value) for _, value in version_.chunks] == [
        CHUNK_BYTES,
        CHUNK_BYTES,
        len(BIG) - 2 * CHUNK_BYTES,
    ]
    assert b"".join(value for _, value in version_.chunks) == BIG
    assert version_.records()[-1][0] == b"learned/1"
    assert all(len(key) + len(value) < 1_000_000 for key, value in version_.records())
    assert tombstones(version_.manifest) == [key for key, _ in version_.chunks]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "a/b"},
        {"model": ""},
        {"number": -1},
        {"data": b""},
        {"data": bytes(version.MAX_VERSION_BYTES + 1)},
        {"spans": tuple(Span(0, 2 * i, 2 * i + 1) for i in range(60_000))},
    ],
    ids=["slash", "no name", "negative", "empty", "too large", "too many spans"],
)
def test_what_could_not_be_written_or_read_is_not_sealed(changes: dict[str, Any]) -> None:
    with pytest.raises(BadVersion):
        sealed(**changes)


def test_the_bytes_must_be_those_of_the_manifest() -> None:
    manifest = sealed().manifest
    check(manifest, BIG)
    with pytest.raises(BadVersion, match="hash"):
        check(manifest, BIG[:-1] + b"x")
    with pytest.raises(BadVersion, match="bytes, the manifest says"):
        check(manifest, BIG[:-1])


# Assembling.


def test_a_version_is_whole_once_its_manifest_is_read() -> None:
    assembler = Assembler()
    version_ = sealed()
    assert fed(assembler, version_.chunks) == []
    assert fed(assembler, version_.records()[-1:]) == [version_.manifest]
    assert assembler.blob("learned", 1) == BIG


def test_a_missing_chunk_is_named_and_the_version_known_but_not_loadable() -> None:
    assembler = Assembler()
    version_ = sealed()
    del version_.chunks[1]
    assert fed(assembler, version_.records()) == []
    assert assembler.manifests("learned") == [version_.manifest]
    with pytest.raises(BadVersion, match="chunk 1 of 3 is missing"):
        assembler.blob("learned", 1)


def test_an_altered_chunk_is_noticed() -> None:
    assembler = Assembler()
    version_ = sealed()
    key, value = version_.chunks[1]
    version_.chunks[1] = key, value[:-1] + b"x"
    fed(assembler, version_.records())
    with pytest.raises(BadVersion, match="hash"):
        assembler.blob("learned", 1)
    version_.chunks[1] = key, value[:-1]
    fed(assembler, version_.records())
    with pytest.raises(BadVersion, match="the manifest says"):
        assembler.blob("learned", 1)


def test_a_version_nobody_wrote_is_not_loadable() -> None:
    with pytest.raises(BadVersion, match="no manifest"):
        Assembler().blob("learned", 1)


def test_a_tombstone_of_a_chunk_takes_the_bytes_and_leaves_the_manifest() -> None:
    """Counterexample 11: the spans outlive the bytes."""
    assembler = Assembler()
    version_ = sealed()
    fed(assembler, version_.records())
    fed(assembler, [(key, None) for key in tombstones(version_.manifest)])
    assert assembler.manifests("learned") == [version_.manifest]
    assert assembler.held_bytes == 0
    with pytest.raises(BadVersion, match="chunk 0 of 3 is missing"):
        assembler.blob("learned", 1)


def test_a_tombstone_of_a_manifest_takes_it_all() -> None:
    assembler = Assembler()
    fed(assembler, sealed().records())
    assembler.feed(b"learned/1", None)
    assembler.feed(b"learned/1", None)
    assert assembler.manifests("learned") == []
    assert assembler.held_bytes == 0


def test_bytes_of_the_newest_versions_of_each_model_are_kept_and_every_manifest() -> None:
    assembler = Assembler(keep=2)
    for number in range(1, 6):
        fed(assembler, sealed(number, b"%d" % number).records())
        fed(assembler, sealed(number, b"other", model="other").records())
    assert [manifest.version for manifest in assembler.manifests("learned")] == [1, 2, 3, 4, 5]
    assert assembler.blob("learned", 4) == b"4"
    with pytest.raises(BadVersion):
        assembler.blob("learned", 3)
    assert assembler.held_bytes == 2 * 1 + 2 * len(b"other")


def test_memory_for_chunks_is_bounded_and_the_oldest_go_first() -> None:
    assembler = Assembler(max_bytes=3 * CHUNK_BYTES)
    for number in range(1, 40):
        fed(assembler, [(key, value) for key, value in sealed(number, BIG, f"m{number}").records()])
        assert assembler.held_bytes <= 3 * CHUNK_BYTES
    assert assembler.blob("m39", 39) == BIG
    with pytest.raises(BadVersion, match="missing"):
        assembler.blob("m38", 38)


def test_memory_for_manifests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "MAX_MANIFESTS", 5)
    assembler = Assembler()
    for number in range(1, 10):
        fed(assembler, sealed(number, b"x").records())
    assert [manifest.version for manifest in assembler.manifests("learned")] == [5, 6, 7, 8, 9]


def _unlike(manifest: Manifest, **changes: Any) -> bytes:
    return json.dumps(json.loads(manifest.encode()) | changes).encode()


def test_a_record_that_is_no_part_of_a_version_changes_nothing() -> None:
    assembler = Assembler()
    manifest = sealed().manifest
    bad: list[tuple[bytes, bytes]] = [
        (b"nonsense", b""),
        (b"learned/1", b"{"),
        (b"learned/1", b"[]"),
        (b"learned/2", manifest.encode()),
        (b"other/1", manifest.encode()),
        (b"learned/1", _unlike(manifest, chunks=10**9)),
        (b"learned/1", _unlike(manifest, chunks=0)),
        (b"learned/1", b" " * (version.MAX_MANIFEST_BYTES + 1)),
        (b"learned/1/abcdef01/0", bytes(CHUNK_BYTES + 1)),
        (b"learned/1/abcdef01/99999", b"x"),
    ]
    for key, value in bad:
        with pytest.raises(BadVersion):
            assembler.feed(key, value)
    assert assembler.manifests("learned") == []
    assert assembler.held_bytes == 0


# Spans.


def test_learning_one_by_one_goes_on_in_the_same_span_and_a_mini_batch_has_its_own() -> None:
    spans = extend(extend((), 0, 0, 5, False), 0, 5, 9, False)
    assert spans == (Span(0, 0, 9),)
    spans = extend(extend(spans, 1, 3, 4, False), 0, 9, 10, False)
    assert spans == (Span(0, 0, 9), Span(1, 3, 4), Span(0, 9, 10))
    assert extend(spans, 0, 12, 13, False)[-1] == Span(0, 12, 13)
    assert extend(extend((), 0, 0, 5, True), 0, 5, 9, True) == (Span(0, 0, 5), Span(0, 5, 9))


@pytest.mark.parametrize(("start", "end"), [(9, 9), (9, 8), (8, 12), (0, 3), (-1, 3)])
def test_a_span_is_never_empty_nor_learned_twice(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="span"):
        extend((Span(0, 0, 9), Span(1, 0, 99)), 0, start, end, False)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=40))
def test_spans_say_what_was_learned_in_which_order(calls: list[tuple[int, int]]) -> None:
    spans: tuple[Span, ...] = ()
    learned, position = [], [0, 0, 0]
    for partition, count in calls:
        start, end = position[partition], position[partition] + count
        spans = extend(spans, partition, start, end, False)
        learned += [(partition, offset) for offset in range(start, end)]
        position[partition] = end
    assert [(span.partition, offset) for span in spans for offset in range(span.start, span.end)] == learned


# Made again. The estimators, the examples and the learning, the same in this process and in others.


def _linear() -> object:
    numbers = compose.Select("x", "y", "z") | preprocessing.StandardScaler()
    categories = compose.Select("carrier", "origin") | preprocessing.OneHotEncoder()
    return (numbers + categories) | linear_model.LinearRegression()


def _numeric(estimator: Any) -> object:
    return compose.Select("x", "y", "z") | estimator


FACTORIES: dict[str, Callable[[], object]] = {
    "linear": _linear,
    "tree": lambda: _numeric(tree.HoeffdingTreeRegressor(grace_period=20)),
    "forest": lambda: _numeric(forest.ARFRegressor(n_models=3, seed=7, grace_period=20)),
    "unseeded": lambda: _numeric(forest.ARFRegressor(n_models=3, grace_period=20)),
}


def example(i: int) -> tuple[Features, float]:
    x: Features = {"x": i % 13 / 3, "y": i * 7 % 31 / 5, "z": i * i % 17, "carrier": f"c{i * 5 % 11}"}
    return x | {"origin": "EWR JFK LGA".split()[i % 3]}, i % 13 + i * 7 % 31 / 2


def learn(estimator: Any, examples: Sequence[tuple[Features, float]]) -> None:
    for x, y in examples:
        estimator.learn_one(interned(x), y)


SPANS = [range(0, 60), range(60, 110), range(110, 200)]


def published(name: str) -> list[bytes]:
    """A learner's versions, one per span: each goes on from the bytes of the one before."""
    allow = AllowList()
    versions: list[bytes] = []
    estimator = begin(None, FACTORIES[name], allow)
    for span in SPANS:
        for i in span:
            learn(estimator, [example(i)])
        versions.append(dump(estimator))
        estimator = begin(versions[-1], FACTORIES[name], allow)
    return versions


def made_again(name: str, spans: list[range] = SPANS) -> list[bytes]:
    versions: list[bytes] = []
    for span in spans:
        parent = versions[-1] if versions else None
        examples = [[example(i) for i in span]]
        versions.append(rebuild(parent, FACTORIES[name], examples, learn, AllowList()))
    return versions


def _elsewhere(call: str, hash_seed: str = "0") -> str:
    """What an expression over this module prints in a process of its own."""
    code = f"import hashlib; from {__name__} import *; print({call})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def _hashes(call: str, hash_seed: str = "0") -> str:
    return _elsewhere(f"[hashlib.sha256(v).hexdigest() for v in {call}]", hash_seed)


@pytest.mark.parametrize("name", ["linear", "tree", "forest"])
def test_a_version_is_made_again_byte_for_byte_in_another_process(name: str) -> None:
    assert _hashes(f"made_again({name!r})") == _hashes(f"published({name!r})")


def test_the_order_of_the_examples_shows_in_the_bytes() -> None:
    """The wrong subject of the test above."""
    spans = "[range(59, -1, -1), *SPANS[1:]]"
    assert _hashes(f"made_again('linear', {spans})") != _hashes("published('linear')")


def test_an_unseeded_forest_is_not_made_again() -> None:
    assert _hashes("made_again('unseeded')") != _hashes("published('unseeded')")


def test_another_hash_seed_does_not_make_it_again() -> None:
    assert _hashes("made_again('linear')", "1") != _hashes("published('linear')")


def _classes(name_of: Callable[[str], str] = str) -> list[tuple[Features, str]]:
    """A model of classes keeps each feature's name once per class, from that class's first record."""
    return [({name_of("distance"): i / 7}, "early" if i < 10 else "late") for i in range(20)]


def learn_class(estimator: Any, examples: Sequence[tuple[Features, str]]) -> None:
    for x, y in examples:
        estimator.learn_one(interned(x), y)


def _learn_class_as_given(estimator: Any, examples: Sequence[tuple[Features, str]]) -> None:
    for x, y in examples:
        estimator.learn_one(x, y)


def test_learning_straight_through_gives_other_bytes() -> None:
    """Counterexample 9: why a learner goes on from what it published."""
    factory, allow = linear_model.SoftmaxRegression, AllowList()
    through = rebuild(None, factory, [_classes()], learn_class, allow)
    parent = rebuild(None, factory, [_classes()[:10]], learn_class, allow)
    resumed = rebuild(parent, factory, [_classes()[10:]], learn_class, allow)
    assert through != resumed
    assert _asked(through) == _asked(resumed)


def _asked(data: bytes) -> object:
    estimator: Any = AllowList().opens(data)
    return estimator.predict_proba_one({"distance": 2.0})


def _copied(text: str) -> str:
    """An equal text that is an object of its own, as some decoders give one for each record."""
    return "".join(list(text))


def test_texts_are_interned_because_the_bytes_show_which_are_one_object() -> None:
    def made(examples: list[tuple[Features, str]], learn: Any) -> bytes:
        return rebuild(None, linear_model.SoftmaxRegression, [examples], learn, AllowList())

    assert made(_classes(), _learn_class_as_given) != made(_classes(_copied), _learn_class_as_given)
    assert made(_classes(), learn_class) == made(_classes(_copied), learn_class)


def test_an_estimator_that_is_not_admitted_is_refused_before_it_learns() -> None:
    with pytest.raises(UntrustedVersion, match="Stranger"):
        begin(None, Stranger, AllowList())


@dataclasses.dataclass
class Stranger:
    weight: float = 0.0


def test_the_environment_says_whether_hashes_are_fixed() -> None:
    assert set(environment()) == {
        "python",
        "implementation",
        "river",
        "numpy",
        "riverkeeper",
        "machine",
        "hash_seed",
    }
    seeds = [_elsewhere("version.environment()['hash_seed']", seed) for seed in ("0", "42", "random")]
    assert seeds == ["0", "42", "random"]
