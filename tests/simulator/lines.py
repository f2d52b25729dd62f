"""Every version of every model: its spans follow on its parent's, and its bytes are what they teach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler
from riverkeeper.topics.messages import Example, Manifest
from tests.simulator.ledger import Ledger, Wrong, visible


class Lines:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._allow = AllowList(ledger.pipeline.trusted)

    def missing(self) -> str:
        """The model whose newest version has not learned all there is; "" if none."""
        library = self._library()
        for model in self._ledger.pipeline.models:
            newest = library.manifests(model)[-1:]
            reached = newest[0].offsets if newest else {}
            skip = self._skipped(model)
            left = [
                (p.tp.partition, r.offset)
                for p in self._partitions()
                for r in visible(p)
                if r.offset >= reached.get(p.tp.partition, 0)
                and not any(where == p.tp.partition and low <= r.offset < high for where, low, high in skip)
            ]
            if left:
                return f"examples that {model} has not learned: {left}, after {newest}"
        return ""

    def _skipped(self, model: str) -> list[tuple[int, int, int]]:
        """The spans that the last verdict on the model names."""
        verdicts = [r for p in self._ledger.partitions("verdicts") for r in visible(p)]
        ours = [v for r in verdicts if (v := msgspec.json.decode(r.value or b""))["model"] == model]
        return [tuple(span) for span in ours[-1]["skip"]] if ours else []

    def settle(self) -> None:
        """Raises Wrong for the first version that does not follow on its parent."""
        library = self._library()
        for model in self._ledger.pipeline.models:
            self._chain(library.manifests(model))
        memory = library.manifests("memory")
        if memory:
            self._taught(memory, library)

    def _partitions(self) -> Iterator[Any]:
        yield from self._ledger.partitions("examples")

    def _library(self) -> Assembler:
        library = Assembler(keep=1_000)
        written: dict[bytes, bytes] = {}
        for partition in self._ledger.partitions("models"):
            for record in visible(partition):
                key, value = record.key or b"", record.value
                if value is not None and written.setdefault(key, value) != value:
                    raise Wrong(f"version {key!r} was published twice")
                library.feed(key, value)
        return library

    def _chain(self, manifests: list[Manifest]) -> None:
        lines: dict[
            int, dict[int, int]
        ] = {}  # a learner that has not heard of a verdict goes on with its line
        for before, manifest in zip([None, *manifests], manifests, strict=False):
            if manifest.version != (before.version + 1 if before else 1):
                raise Wrong(f"{manifest.model} v{manifest.version} follows on v{before and before.version}")
            offsets = lines.setdefault(manifest.line, {})
            for partition, start, end in sorted([*manifest.spans, *manifest.skipped]):
                if start != offsets.get(partition, 0):
                    at = offsets.get(partition, 0)
                    raise Wrong(
                        f"{manifest.model} v{manifest.version}: {partition}/{start}..{end} after {at}"
                    )
                offsets[partition] = end
            if any(manifest.offsets.get(p, 0) != end for p, end in offsets.items()):
                raise Wrong(
                    f"{manifest.model} v{manifest.version} is at {manifest.offsets}, its spans at {offsets}"
                )

    def _taught(self, manifests: list[Manifest], library: Assembler) -> None:
        """The newest version has learned the examples of its line's spans, in their order, and no other."""
        newest = manifests[-1]
        labels = {(p.tp.partition, r.offset): _label(r.value) for p in self._partitions() for r in visible(p)}
        spans = [span for m in manifests if m.line == newest.line for span in m.spans]
        taught = [
            label
            for partition, start, end in spans
            for (where, offset), label in labels.items()
            if where == partition and start <= offset < end
        ]
        learned: Any = self._allow.opens(library.blob(newest.model, newest.version))
        if learned.labels != taught:
            raise Wrong(
                f"{newest.model} v{newest.version} has learned {learned.labels}, its spans hold {taught}"
            )


def _label(value: bytes | None) -> float:
    label = msgspec.json.decode(value or b"", type=Example).label
    assert isinstance(label, int | float)
    return float(label)
