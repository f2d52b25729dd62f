"""What the supervisor knows from the log alone: verdicts as routing and episodes, versions, incidents."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

import structlog
from pydantic import ValidationError

from ..topics.log import Record
from ..topics.messages import Incident, Manifest, Verdict
from . import incidents as episodes
from .lifecycle import Book, KnownVersion, obeyed
from .policies import Limits

log = structlog.get_logger(__name__)

R = TypeVar("R", Verdict, Incident, Manifest)


class Pipeline(Protocol):
    """What the supervisor needs of a pipeline's declaration."""

    @property
    def name(self) -> str: ...
    @property
    def models(self) -> Collection[str]:
        """All models' names; a mapping by name will do."""

    @property
    def serving(self) -> Collection[str]:
        """The names of those with traffic."""

    @property
    def fallback(self) -> str:
        """The model that answers for others; "" if only the constant does."""


Clock = Callable[[], int]


def wall_clock() -> int:
    """Epoch milliseconds."""
    return time.time_ns() // 1_000_000


class Known:
    """What was read back: verdicts as routing and episodes, versions, incidents."""

    def __init__(self, models: Iterable[str], live: Iterable[str], limits: Limits) -> None:
        self.book = Book.declared(models, live)
        self.episodes: episodes.Episodes = {}
        self.incidents: dict[str, Incident] = {}
        self.versions: dict[str, dict[int, KnownVersion]] = {}
        self._limits = limits

    def verdict(self, record: Record) -> None:
        verdict = read(Verdict, record)
        if verdict is None:
            return
        before = self.book.routing.routes.get(verdict.model)
        self.book = self.book.obey(record.offset, verdict, self._limits)
        if before is not None and obeyed(self.book.routing, record.offset, verdict):
            self.episodes = episodes.obey(self.episodes, verdict, before.line)

    def incident(self, record: Record) -> None:
        incident = read(Incident, record)
        if incident is not None:
            self.incidents[incident.id] = episodes.folded(self.incidents.get(incident.id), incident)

    def model(self, record: Record) -> None:
        """A manifest adds a version; a tombstone on it or on a chunk ends what can be restored."""
        model, version, *chunk = _key_parts(record)
        if not version.isdecimal():
            return
        versions = self.versions.setdefault(model, {})
        if not chunk and record.value is not None:
            manifest = read(Manifest, record)
            if manifest is not None:
                versions[manifest.version] = KnownVersion.of(manifest)
        elif record.value is None and (known := versions.get(int(version))):
            versions[int(version)] = replace(known, kept=False)

    def untold(self, written: Mapping[str, Incident]) -> list[Incident]:
        """Incidents that are not written as the verdicts tell them. A resolved one is final."""
        live = [e for id_, e in self.episodes.items() if id_ not in written or not written[id_].resolved]
        told = [episodes.told(e, self.versions.get(e.incident.model, {})) for e in live]
        told = [episodes.folded(written.get(i.id), i) for i in told]
        return [i for i in told if written.get(i.id) != i]


def read(kind: type[R], record: Record) -> R | None:
    """None for a tombstone, and for what is no such record: one foreign record must not silence the supervisor."""
    if record.value is None:
        return None
    try:
        return kind.model_validate_json(record.value)
    except ValidationError as error:
        where = f"{record.topic}/{record.offset}"
        log.warning("unreadable", where=where, kind=kind.__name__, error=str(error))
        return None


def _key_parts(record: Record) -> list[str]:
    """[model, version] of a manifest, with hash and number of a chunk; a foreign key has no version."""
    parts = (record.key or b"").decode(errors="replace").split("/")
    return parts if len(parts) > 1 else [*parts, ""]
