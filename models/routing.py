"""The routing table: the pure fold of the verdicts, as every agent holds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..topics.messages import SUPERVISOR, Span, State, Verdict


@dataclass(frozen=True)
class Barred:
    """Why one slice of a model's facts is answered by others."""

    since_ms: int
    by: str
    incident: str


@dataclass(frozen=True)
class Route:
    """Where one model stands. `offset` is that of the verdict that put it there (-1: declared), `since_ms`
    when it was given."""

    model: str
    state: State
    line: int = 0
    restore: int = 0
    skip: tuple[Span, ...] = ()
    offset: int = -1
    incident: str = ""
    since_ms: int = 0
    share: float = 0.0  # of the keys, beside what is declared
    barred: Mapping[str, Barred] = field(default_factory=dict)  # by slice; facts that others answer


SERVING = frozenset({State.LIVE, State.CANARY})
# Slices of one model that are barred at once: a model that is wrong in more is wrong as a whole. A verdict beyond counts
# for nothing.
MAX_BARRED = 8


@dataclass(frozen=True)
class Hold:
    """An operator's hand on the wheel: no supervisor's verdict counts until it is released."""

    reason: str
    by: str
    at_ms: int


@dataclass(frozen=True)
class Routing:
    """Every declared model's route, and how far the verdicts have been read.

    `offset` is the offset of the last verdict read, obeyed or not (-1: none).
    """

    routes: Mapping[str, Route]
    offset: int = -1
    ignored: int = field(default=0, compare=False)
    hold: Hold | None = None

    @classmethod
    def declared(cls, models: Iterable[str], live: Iterable[str]) -> Routing:
        """The table before any verdict: models with traffic are live, the others shadows."""
        serving = set(live)
        return cls({m: Route(m, State.LIVE if m in serving else State.SHADOW) for m in models})

    @cached_property
    def trial(self) -> Route | None:
        """The model that has a share of the keys by verdict, not by declaration."""
        routes = self.routes.values()
        return next((r for r in routes if r.share > 0 and r.state in SERVING), None)

    def obey(self, offset: int, verdict: Verdict) -> Routing:
        """The table after one more verdict.

        A verdict on an undeclared model, or one that follows another verdict than the one in
        force, changes nothing: whoever wrote it had not read what was already decided. Nor does
        a supervisor's while it is held.
        """
        if not verdict.model and verdict.by != SUPERVISOR:
            held = verdict.state is State.QUARANTINED
            hold = Hold(verdict.reason, verdict.by, verdict.at_ms) if held else None
            return replace(self, offset=offset, hold=hold)
        ignored = replace(self, offset=offset, ignored=self.ignored + 1)
        if self.hold is not None and verdict.by == SUPERVISOR:
            return ignored
        route = self.routes.get(verdict.model)
        if route is None or verdict.follows != route.offset:
            return ignored
        if not verdict.slice:
            obeyed = Route(
                verdict.model,
                verdict.state,
                verdict.line,
                verdict.restore,
                verdict.skip,
                offset,
                verdict.incident,
                verdict.at_ms,
                verdict.share,
                route.barred,
            )
        elif (barred := _barred(route.barred, verdict)) is not None:
            obeyed = replace(route, offset=offset, barred=barred)
        else:
            return ignored
        return replace(self, routes={**self.routes, verdict.model: obeyed}, offset=offset)


def _barred(known: Mapping[str, Barred], verdict: Verdict) -> Mapping[str, Barred] | None:
    """After a verdict on a slice; None if there is no room for it."""
    others = {name: each for name, each in known.items() if name != verdict.slice}
    if verdict.state is not State.QUARANTINED:
        return others
    if len(others) >= MAX_BARRED:
        return None
    return {**others, verdict.slice: Barred(verdict.at_ms, verdict.by, verdict.incident)}
