"""A version's chunks are never those of another: not of another writer of its number, nor left from an older one.

Chunks in slots that are used again (`model/0`, `model/1`, …) are overwritten one by one: whoever reads
meanwhile, or after the writer has died in between, joins v8's chunk 0 with v7's chunk 3. Keys that are
never used again mix nothing, and nothing ever removes them. So a chunk's key names model, version, the
hash of the whole and its number; the manifest comes last, and the learner removes the chunks of versions
beyond those it keeps.
"""

from __future__ import annotations

import random

from riverkeeper.agents.agent import Entry
from riverkeeper.models.version import CHUNK_BYTES, Assembler, BadVersion, ChunkKey, Sealed, parse_key
from tests.agents.test_learn import Log, numbered, pipeline, started
from tests.counterexamples.without import Remedy
from tests.models.test_version import sealed

REMEDIES = [
    Remedy(
        "models/version.py",
        "ChunkKey(model, version, digest[:8], i).encode(), part)",
        'ChunkKey(model, version, "0" * 8, i).encode(), part)',
        also=(
            Remedy(
                "models/version.py",
                "        at = _BlobKey(manifest.model, manifest.version, manifest.sha256[:8])\n        held =",
                '        at = _BlobKey(manifest.model, manifest.version, "0" * 8)\n        held =',
            ),
            Remedy(
                "models/version.py",
                "other = at.version == newest.version and at.hash8 != newest.sha256[:8]",
                "other = False",
            ),
        ),
        what="the hash in a chunk's key",
    ),
    Remedy(
        "models/version.py",
        "return [*self.chunks, (key.encode(), self.manifest.encode())]",
        "return [(key.encode(), self.manifest.encode()), *self.chunks]",
        what="the manifest comes last",
    ),
    Remedy(
        "models/student.py",
        "return [key for v in numbers if v not in retained for key in tombstones(self._kept.pop(v))]",
        "return []",
        what="chunks of old versions are removed",
    ),
]

PARTS = 4  # chunks of a version
KEEP = 3


def made_of(byte: bytes) -> Sealed:
    return sealed(8, byte * (PARTS * CHUNK_BYTES), model="m")


def loaded(library: Assembler, model: str, version: int) -> bytes | None:
    try:
        return library.blob(model, version)
    except BadVersion:
        return None


def test_two_writers_of_one_number_in_any_interleaving() -> None:
    """A deposed learner's chunks, in part or whole, come among those of its successor."""
    deposed, owner = made_of(b"d"), made_of(b"o")
    for seed in range(20):
        rng, library = random.Random(seed), Assembler()
        theirs = deposed.chunks[: rng.randint(1, PARTS)]
        at = sorted(rng.choices(range(len(owner.records())), k=len(theirs)))  # before the owner's manifest
        log = list(owner.records())
        for i, record in reversed(list(zip(at, theirs, strict=True))):
            log.insert(i, record)
        for key, value in log:
            library.feed(key, value)
        blob = loaded(library, "m", 8)
        assert blob is not None and blob == b"o" * (PARTS * CHUNK_BYTES), f"seed {seed}"
        assert library.held_bytes == PARTS * CHUNK_BYTES


def test_a_version_is_not_there_before_all_of_it_is() -> None:
    """Wherever its writer dies, where a broker has no transactions."""
    records = made_of(b"x").records()
    for died in range(len(records)):
        library = Assembler()
        for key, value in records[:died]:
            library.feed(key, value)
        assert library.manifests("m") == [], f"after {died} records"


def test_what_the_log_keeps_of_a_model_is_bounded_and_whole() -> None:
    """Compaction may take or leave any record that a later one of its key replaces."""
    student, log = started(pipeline(keep=KEEP), Log()), list[Entry]()
    for n in range(20):
        student.study(0, numbered(10 * n, 10 * n + 10), 10 * n + 10)
        version = student.publish(0.0, 0, b"k" * 32)
        log += [*version.records(), *((key, None) for key in student.expired())]
    last = {key: i for i, (key, _) in enumerate(log)}
    chunks = [
        key for key, i in last.items() if isinstance(parse_key(key), ChunkKey) and log[i][1] is not None
    ]
    assert len(chunks) <= 2 * KEEP  # of one chunk each: the newest, and the newest good ones
    for seed in range(20):
        rng, library = random.Random(seed), Assembler(keep=2 * KEEP)
        for i, (key, value) in enumerate(log):
            if last[key] == i or rng.random() < 0.5:
                library.feed(key, value)
        held = [n for n in range(1, 21) if loaded(library, "main", n) is not None]
        assert held[-KEEP:] == [18, 19, 20]
        assert len(library.manifests("main")) == 20  # spans outlive bytes
