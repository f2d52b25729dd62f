"""From any version the spans lead back to the beginning: manifests outlive the bytes of their versions.

v50's record is dropped, and v100 knows only its spans since v99: nobody could say what it has learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from river import linear_model, preprocessing

from riverkeeper import Publish
from riverkeeper.models.quality import learn
from riverkeeper.models.routing import Route
from riverkeeper.models.student import Student, start_line
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler, BadVersion, interned, rebuild
from riverkeeper.topics.messages import Example, Manifest, Source, Span, State
from riverkeeper.topics.store import latest
from tests.agents.test_join import TIME
from tests.agents.tiny import Stored, tiny
from tests.counterexamples.without import Remedy

REMEDIES = [
    Remedy(
        "models/version.py",
        "    return [ChunkKey(manifest.model, manifest.version, hash8, i).encode() for i in range(manifest.chunks)]\n",
        "    chunks = [ChunkKey(manifest.model, manifest.version, hash8, i) for i in range(manifest.chunks)]\n"
        "    return [key.encode() for key in (*chunks, ManifestKey(manifest.model, manifest.version))]\n",
        what="only the chunks of old versions are dropped",
    ),
]
KEY = b"k" * 32
VERSIONS, EVERY, KEPT = 100, 5, 2


def scaled() -> Any:
    return preprocessing.StandardScaler() | linear_model.LinearRegression()


PIPELINE = tiny(
    models={"line": scaled}, publish=Publish(every_examples=EVERY, every=timedelta(seconds=60), keep=KEPT)
)
ALLOW = AllowList(PIPELINE.trusted)


def example(n: int) -> Example:
    return Example(
        id=f"e{n}",
        key=f"e{n}",
        time=TIME,
        features={"amount": n % 7 / 3},
        label=n % 7 + 1.0,
        served=0.0,
        source=Source.FALLBACK,
        model="fall",
        version=1,
        fingerprint=PIPELINE.fingerprint,
        baseline=None,
    )


def what_compaction_leaves() -> Assembler:
    """The topic `models` after a learner has published for long, and compaction has passed over it."""
    written: list[tuple[bytes, bytes | None]] = []
    student = Student("line", PIPELINE, ALLOW)
    start_line(student, Route("line", State.LIVE), Assembler(), {0: 0})
    for start in range(0, VERSIONS * EVERY, EVERY):
        student.study(0, [(n, example(n)) for n in range(start, start + EVERY)], start + EVERY)
        written += student.publish(0.0, 0, KEY).records()
        written += [(key, None) for key in student.expired()]
    library = Assembler(keep=VERSIONS)
    for key, value in latest(Stored(i, value, key) for i, (key, value) in enumerate(written)).items():
        library.feed(key, value)
    return library


def lineage(library: Assembler, version: int) -> list[Manifest]:
    """A version's ancestors that are known, and itself, the oldest first."""
    known = {m.version: m for m in library.manifests("line")}
    chain: list[Manifest] = []
    while (manifest := known.get(version)) is not None:
        chain.insert(0, manifest)
        version = manifest.parent
    return chain


def teach(estimator: object, examples: Sequence[Example]) -> None:
    for each in examples:
        learn("regression", estimator, interned(each.features), each.label)


def test_the_newest_version_is_made_again_from_the_beginning() -> None:
    library = what_compaction_leaves()
    with pytest.raises(BadVersion, match="expired"):
        library.blob("line", VERSIONS // 2)  # compaction did take what it may

    chain = lineage(library, VERSIONS)
    spans = [span for manifest in chain for span in manifest.spans]
    assert spans == [Span(0, start, start + EVERY) for start in range(0, VERSIONS * EVERY, EVERY)]

    data: bytes | None = None
    for manifest in chain:
        examples = [[example(n) for n in range(s.start, s.end)] for s in manifest.spans]
        data = rebuild(data, scaled, examples, teach, ALLOW)
    assert data == library.blob("line", VERSIONS)
