"""A model version: its bytes, the manifest that names and signs them, and their way through `models`.

On its partition of `models` a version is some records of chunks, then the record of its manifest:

    <model>/<version>/<hash8>/<i>   chunk i of its bytes; hash8 is the beginning of their SHA-256, so
                                    that two writers of one number never mix their chunks
    <model>/<version>               the manifest
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
import json
import os
import pickle
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from ..topics.messages import Answer, Features, LabelValue, Manifest, Scalar, Span
from .unpickle import MAX_BYTES, AllowList

# bytes; half of the 1 MB (1 048 588) that a broker accepts in a batch by default, which leaves room
# for key and headers, and lets a batch hold one chunk without being refused for its neighbour.
CHUNK_BYTES = 512 * 1024
# bytes; ten times a random forest's snapshot (6 MB), 128 chunks, and up to 45 s to open. What is
# larger would hold up the partition of all models that share it.
MAX_VERSION_BYTES = MAX_BYTES
MAX_CHUNKS = MAX_VERSION_BYTES // CHUNK_BYTES
# bytes; a manifest is one record, its probes and spans are all that can grow: 20 000 spans or so.
MAX_MANIFEST_BYTES = CHUNK_BYTES
# bytes of chunks in memory per partition of `models`: four versions of the largest kind, or the last
# three versions of fifteen forests.
MAX_HELD_BYTES = 4 * MAX_VERSION_BYTES
# versions read at once to restore one: what the log keeps of all models of a partition
LIBRARY_BYTES = 4 * MAX_HELD_BYTES
# manifests in memory per partition of `models`; at about 10 kB each, 200 MB.
MAX_MANIFESTS = 20_000
# versions per model whose bytes are held: the one that serves, the one before, one in between.
KEEP = 3

_SIGNED = b"riverkeeper.manifest.v1\0"


class BadVersion(ValueError):
    """A version cannot be used; the text says which and what is wrong with it."""


class ManifestKey(NamedTuple):
    model: str
    version: int

    def encode(self) -> bytes:
        return f"{self.model}/{self.version}".encode()


class ChunkKey(NamedTuple):
    model: str
    version: int
    hash8: str
    i: int

    def encode(self) -> bytes:
        return f"{self.model}/{self.version}/{self.hash8}/{self.i}".encode()


# One spelling for each number, no "/" in a name: two different keys never mean the same record.
_KEY = re.compile(rb"([^/]+)/(0|[1-9][0-9]{0,17})(?:/([0-9a-f]{8})/(0|[1-9][0-9]{0,5}))?")


def parse_key(key: bytes) -> ManifestKey | ChunkKey:
    """What a record of `models` is, from its key. Raises `BadVersion` for any other key."""
    parts = _KEY.fullmatch(key)
    try:
        model = parts[1].decode() if parts else ""
    except UnicodeDecodeError:
        model = ""
    if not parts or not model:
        raise BadVersion(f"{key[:200]!r} is no key of a version (<model>/<version>[/<hash8>/<i>])")
    if parts[3] is None:
        return ManifestKey(model, int(parts[2]))
    return ChunkKey(model, int(parts[2]), parts[3].decode(), int(parts[4]))


# Bytes of an estimator.


def dump(estimator: object) -> bytes:
    """The estimator's bytes (pickle protocol 5).

    They depend on the identity of what the estimator holds: one that learned straight through, and
    one restored halfway, differ in bytes though equal in value. So a learner goes on from what it
    published (`estimator = allow.opens(dump(estimator))`), never from the object it dumped.
    """
    return pickle.dumps(estimator, protocol=5)


def begin(parent: bytes | None, factory: Callable[[], object], allow: AllowList) -> object:
    """The estimator that learning goes on from: the parent's bytes, or a new one.

    A new one takes the same way through its bytes, so that an estimator the allow-list refuses is
    refused before it has learned anything. Raises `UntrustedVersion`.
    """
    return allow.opens(dump(factory()) if parent is None else parent)


def interned(features: Features) -> Features:
    """The same features with one object per text, as an estimator must be given them to learn.

    Decoders share equal keys between records, or not, depending on what else they decoded; the
    estimator keeps those objects, and its bytes show which of them are one.
    """
    return {sys.intern(name): _interned(value) for name, value in features.items()}


def interned_label(label: LabelValue) -> LabelValue:
    """As `interned`, for a class's name."""
    return sys.intern(label) if isinstance(label, str) else label


def _interned(value: Scalar) -> Scalar:
    return sys.intern(value) if isinstance(value, str) else value


E = TypeVar("E")


def rebuild(
    parent: bytes | None,
    factory: Callable[[], object],
    spans: Iterable[Sequence[E]],
    learn: Callable[[object, Sequence[E]], object],
    allow: AllowList,
) -> bytes:
    """A version's bytes, made again: `learn(estimator, examples)` folded over its spans in their order.

    Equal to the published ones when `environment()` is the manifest's, PYTHONHASHSEED is a number,
    the estimator is seeded, and `learn` is the learner's own (texts interned, one call per span if
    the model learns in mini-batches).
    """
    estimator = begin(parent, factory, allow)
    for examples in spans:
        learn(estimator, examples)
    return dump(estimator)


def environment() -> dict[str, str]:
    """What a version's bytes depend on besides its examples: releases, machine and hash seed.

    `hash_seed` is PYTHONHASHSEED, or "random": sets then iterate in another order in each process,
    and versions cannot be rebuilt byte for byte.
    """
    seed = os.environ.get("PYTHONHASHSEED", "random") if sys.flags.hash_randomization else "0"
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        **{name: importlib.metadata.version(name) for name in ("river", "numpy", "riverkeeper")},
        "machine": platform.machine(),
        "hash_seed": seed or "random",
    }


# Spans.


def extend(
    spans: tuple[Span, ...], partition: int, start: int, end: int, mini_batch: bool
) -> tuple[Span, ...]:
    """The spans after one more learn call over [start, end) of a partition of `examples`.

    `end` is the position after the batch, not the last offset plus one: transaction markers take
    offsets too. Learned one by one, a span goes on in the one before it; a mini-batch is its own.
    Raises ValueError for a span that is empty or overlaps one that was learned.
    """
    if not 0 <= start < end:
        raise ValueError(f"span [{start}, {end}) of partition {partition} is empty")
    learned = max((span.end for span in spans if span.partition == partition), default=0)
    if start < learned:
        raise ValueError(f"span [{start}, {end}) of partition {partition} was learned up to {learned}")
    if not mini_batch and spans and spans[-1].partition == partition and spans[-1].end == start:
        return (*spans[:-1], Span(partition, spans[-1].start, end))
    return (*spans, Span(partition, start, end))


# Signing.


def _signature(manifest: Manifest, key: bytes) -> str:
    if not key:
        raise ValueError("the key that signs versions is empty")
    fields = json.loads(manifest.model_dump_json(exclude={"signature"}))
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, _SIGNED + canonical, hashlib.sha256).hexdigest()


def sign(manifest: Manifest, key: bytes) -> Manifest:
    """The manifest with its signature: hex HMAC-SHA256 over its canonical JSON without one.

    Canonical: keys sorted, no spaces, ASCII. Raises ValueError if the key is empty.
    """
    return manifest.model_copy(update={"signature": _signature(manifest, key)})


def verify(manifest: Manifest, key: bytes) -> None:
    """Raises `BadVersion` unless the manifest was signed with this key and not altered since."""
    expected = _signature(manifest, key).encode()
    if not hmac.compare_digest(expected, manifest.signature.encode()):
        raise BadVersion(
            f"{manifest.model} v{manifest.version}: the signature is not ours;"
            " check that learn and score have the same signing key, and that it was not changed since"
        )


def signed(record_key: bytes, value: bytes, key: bytes) -> ManifestKey | ChunkKey:
    """What a record of `models` is. Raises `BadVersion` for a manifest that is not ours: its bytes are not even
    opened. A chunk is known by the manifest that names its hash.
    """
    parsed = parse_key(record_key)
    if isinstance(parsed, ManifestKey):
        verify(_parsed(parsed, value), key)
    return parsed


def check(manifest: Manifest, data: bytes) -> None:
    """Raises `BadVersion` unless these are the bytes that the manifest names."""
    what = f"{manifest.model} v{manifest.version}"
    if len(data) != manifest.size:
        raise BadVersion(f"{what}: {len(data)} bytes, the manifest says {manifest.size}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.sha256:
        raise BadVersion(f"{what}: the bytes hash to {digest}, the manifest says {manifest.sha256}")


class Sealed(NamedTuple):
    """A version ready to be written: its chunks in order, as (key, value), then its manifest."""

    manifest: Manifest
    chunks: list[tuple[bytes, bytes]]

    def records(self) -> list[tuple[bytes, bytes]]:
        key = ManifestKey(self.manifest.model, self.manifest.version)
        return [*self.chunks, (key.encode(), self.manifest.encode())]


def seal(
    *,
    model: str,
    version: int,
    line: int,
    parent: int,
    fingerprint: str,
    environment: Mapping[str, str],
    spans: tuple[Span, ...],
    offsets: Mapping[int, int],
    learned: int,
    data: bytes,
    published_ms: int,
    key: bytes,
    skipped: tuple[Span, ...] = (),
    error: float | None = None,
    baseline_error: float | None = None,
    probes: Sequence[tuple[Features, Answer]] = (),
) -> Sealed:
    """A version's signed manifest and its chunks.

    Raises `BadVersion` for a name with a "/", bytes over `MAX_VERSION_BYTES` or a manifest over
    `MAX_MANIFEST_BYTES`: what a broker or a reader would refuse is refused before it is written.
    """
    digest = hashlib.sha256(data).hexdigest()
    chunks = _chunks(model, version, digest, data)
    parse_key(ManifestKey(model, version).encode())
    manifest = Manifest(
        model=model,
        version=version,
        line=line,
        parent=parent,
        fingerprint=fingerprint,
        environment=dict(environment),
        spans=spans,
        skipped=skipped,
        offsets=dict(offsets),
        learned=learned,
        error=error,
        baseline_error=baseline_error,
        probes=tuple(probes),
        size=len(data),
        chunks=len(chunks),
        sha256=digest,
        published_ms=published_ms,
    )
    # What readers will see: JSON has no NaN, and one spelling for equal numbers.
    manifest = sign(Manifest.model_validate_json(manifest.encode()), key)
    if len(manifest.encode()) > MAX_MANIFEST_BYTES:
        raise BadVersion(f"{model} v{version}: a manifest over {MAX_MANIFEST_BYTES} bytes; publish sooner")
    return Sealed(manifest, chunks)


def _chunks(model: str, version: int, digest: str, data: bytes) -> list[tuple[bytes, bytes]]:
    if not 0 < len(data) <= MAX_VERSION_BYTES:
        raise BadVersion(f"{model} v{version}: {len(data)} bytes; a version has 1 to {MAX_VERSION_BYTES}")
    parts = (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
    return [(ChunkKey(model, version, digest[:8], i).encode(), part) for i, part in enumerate(parts)]


def tombstones(manifest: Manifest) -> list[bytes]:
    """The keys to delete when a version's bytes expire; its manifest, with its spans, stays."""
    hash8 = manifest.sha256[:8]
    return [ChunkKey(manifest.model, manifest.version, hash8, i).encode() for i in range(manifest.chunks)]


# Reading.


@dataclass
class _Blob:
    """The chunks seen so far of one version by one writer."""

    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.chunks.values()))


class _BlobKey(NamedTuple):
    model: str
    version: int
    hash8: str


class Assembler:
    """The fold of one partition of `models`: every manifest, and the bytes of recent versions.

    Holds at most `max_bytes` of chunks (the oldest to arrive go first) and `MAX_MANIFESTS`
    manifests; of each model, the bytes of its `keep` newest versions.
    """

    def __init__(self, keep: int = KEEP, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._keep = keep
        self._max_bytes = max_bytes
        self._manifests: dict[str, dict[int, Manifest]] = {}
        self._count = 0
        self._blobs: dict[_BlobKey, _Blob] = {}
        self._bytes = 0

    def feed(self, key: bytes, value: bytes | None) -> Manifest | None:
        """Take the next record (None: a tombstone). Returns its manifest if that makes a version whole.

        Raises `BadVersion`, and changes nothing, for a record that is neither a chunk nor a manifest.
        """
        parsed = parse_key(key)
        if isinstance(parsed, ChunkKey):
            self._chunk(parsed, value)
            return None
        if value is None:
            self._forget(parsed)
            return None
        return self._manifest(parsed, value)

    def manifests(self, model: str) -> list[Manifest]:
        """Every version of the model that is known, loadable or not, by number."""
        known = self._manifests.get(model, {})
        return [known[version] for version in sorted(known)]

    def blob(self, model: str, version: int) -> bytes:
        """A version's bytes, checked against its manifest. Raises `BadVersion`, saying what is wrong."""
        data = self.unchecked(model, version)
        check(self._manifests[model][version], data)
        return data

    def unchecked(self, model: str, version: int) -> bytes:
        """As `blob`, for who checks them elsewhere: hashing a forest takes 20 ms."""
        manifest = self._manifests.get(model, {}).get(version)
        if manifest is None:
            raise BadVersion(f"{model} v{version}: no manifest of it was read")
        held, missing = self._held(manifest)
        if missing:
            raise BadVersion(
                f"{model} v{version}: chunk {missing[0]} of {manifest.chunks} is missing"
                f" ({len(missing)} in all); it expired, or was never written"
            )
        return b"".join(held[i] for i in range(manifest.chunks))

    def _held(self, manifest: Manifest) -> tuple[dict[int, bytes], list[int]]:
        """The chunks of a version that are there, and the numbers of those that are not."""
        at = _BlobKey(manifest.model, manifest.version, manifest.sha256[:8])
        held = self._blobs.get(at, _Blob()).chunks
        return held, [i for i in range(manifest.chunks) if i not in held]

    @property
    def held_bytes(self) -> int:
        """Bytes of chunks in memory."""
        return self._bytes

    def _chunk(self, key: ChunkKey, value: bytes | None) -> None:
        if key.i >= MAX_CHUNKS or len(value or b"") > CHUNK_BYTES:
            raise BadVersion(f"{key.encode()!r}: over {CHUNK_BYTES} bytes, or over {MAX_CHUNKS} chunks")
        at = _BlobKey(key.model, key.version, key.hash8)
        blob = self._blobs.setdefault(at, _Blob())
        self._bytes -= len(blob.chunks.pop(key.i, b""))
        if value is not None:
            blob.chunks[key.i] = value
            self._bytes += len(value)
        if not blob.chunks:
            del self._blobs[at]
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._blobs)))

    def _drop(self, at: _BlobKey) -> None:
        self._bytes -= self._blobs.pop(at).size

    def _manifest(self, key: ManifestKey, value: bytes) -> Manifest | None:
        manifest = _parsed(key, value)
        versions = self._manifests.setdefault(key.model, {})
        self._count += key.version not in versions
        versions[key.version] = manifest
        self._expire(manifest)
        _, missing = self._held(manifest)
        return None if missing else manifest

    def _expire(self, newest: Manifest) -> None:
        """Drop what the arrival of a manifest makes superfluous: other writers' chunks of the same
        number, chunks older than the versions kept, the oldest manifest of a model that has too many."""
        versions = self._manifests[newest.model]
        oldest = sorted(versions)[-self._keep :][0]
        for at in [at for at in self._blobs if at.model == newest.model]:
            other = at.version == newest.version and at.hash8 != newest.sha256[:8]
            if other or at.version < oldest:
                self._drop(at)
        while self._count > MAX_MANIFESTS:
            most = max(self._manifests.values(), key=len)
            del most[min(most)]
            self._count -= 1

    def _forget(self, key: ManifestKey) -> None:
        versions = self._manifests.get(key.model, {})
        manifest = versions.pop(key.version, None)
        if manifest is None:
            return
        self._count -= 1
        at = _BlobKey(key.model, key.version, manifest.sha256[:8])
        if at in self._blobs:
            self._drop(at)


def _parsed(key: ManifestKey, value: bytes) -> Manifest:
    if len(value) > MAX_MANIFEST_BYTES:
        raise BadVersion(f"{key.encode()!r}: a manifest of {len(value)} bytes; at most {MAX_MANIFEST_BYTES}")
    try:
        manifest = Manifest.model_validate_json(value)
    except ValidationError as error:
        raise BadVersion(f"{key.encode()!r}: not a manifest: {error.errors()[0]['msg']}") from None
    if (manifest.model, manifest.version) != key:
        raise BadVersion(f"{key.encode()!r} holds the manifest of {manifest.model} v{manifest.version}")
    if not 0 < manifest.chunks <= MAX_CHUNKS:
        raise BadVersion(f"{key.encode()!r}: {manifest.chunks} chunks; a version has 1 to {MAX_CHUNKS}")
    return manifest
