"""An incident as an operator reads it: a draft of its post-mortem in Markdown. What the log tells is filled in;
what only people know is left to them, in italics. Pure; times are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from ..topics.messages import Incident, IncidentStep
from .blast import Blast, Stretch, bars, ranges
from .incidents import ALARM, OUT, READMITTED, RESOLVED, stage

ONSET = "onset_ms"  # in the evidence
WIDTH = 24  # characters of the longest bar
# What may still be served once a verdict is given: a lease of at most 1 s, and as much for its way.
OBEYED_MS = 2_000


def stretch(incident: Incident, now: int) -> Stretch:
    """From the onset until the model had lost its traffic, or all was well; until now if neither."""
    began = began_ms(incident)
    ended = _first(incident, OUT)
    if ended is not None:
        return Stretch(began, ended + OBEYED_MS)
    over = _first(incident, {RESOLVED, READMITTED})
    return Stretch(began, now if over is None else over)


def began_ms(incident: Incident) -> int:
    told = incident.timeline[0].at_ms if incident.timeline else 0
    onset = int(incident.evidence.get(ONSET, 0))
    return min(onset, told) if onset else told


def title(incident: Incident) -> str:
    where = f" where {incident.slice}" if incident.slice else ""
    return f"{incident.policy} of {incident.model or 'the pipeline'}{where}"


def markdown(incident: Incident, blast: Blast, topic: str, now: int) -> str:
    """The draft. `topic` is that of predictions; `now` in epoch ms."""
    parts = [
        [f"# {title(incident).capitalize()}", "", *_head(incident, now)],
        ["## What happened", "", *_story(incident, blast)],
        ["## Impact", "", *_impact(blast, topic)],
        ["## Evidence", "", *_evidence(incident, blast)],
        ["## Timeline", "", *_timeline(incident)],
        ["## Root cause", "", "_What made it possible, not who did it._"],
        [
            "## What is to be done",
            "",
            "- [ ] _so that it cannot happen again_",
            "- [ ] _so that it is found sooner_",
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(incident: Incident, now: int) -> Iterator[str]:
    began = began_ms(incident)
    last = incident.timeline[-1].at_ms if incident.resolved and incident.timeline else now
    lasted = (
        f"lasted {duration(last - began)}" if incident.resolved else f"for {duration(last - began)} by now"
    )
    yield f"Incident `{incident.id}`: **{stage(incident).value}**. It began at {when(began)}, and {lasted}."


def _story(incident: Incident, blast: Blast) -> Iterator[str]:
    began = began_ms(incident)
    found = incident.timeline[0] if incident.timeline else None
    if found is None:
        return
    yield f"{when(found.at_ms)}, {duration(found.at_ms - began)} after the onset: {found.reason}."
    out = _step(incident, OUT)
    if out is not None:
        yield f"The model lost its traffic {duration(out.at_ms - began)} after the onset."
    elif found.state == ALARM:
        yield "An alarm takes nothing out: the model's answers were served meanwhile."
    back = _step(incident, {READMITTED, RESOLVED})
    if back is not None:
        yield f"All was well again {duration(back.at_ms - began)} after the onset: {back.reason}."
    yield f"It had served {blast.served:,} predictions since the onset."


def _impact(blast: Blast, topic: str) -> Iterator[str]:
    since = f"{when(blast.stretch.onset_ms)} to {when(blast.stretch.until_ms)}"
    yield f"Predictions of {since}, by append time:"
    yield ""
    yield "| answered by | version or reason | predictions |"
    yield "|---|---|---:|"
    who = blast.model or "models"
    yield from (f"| {who} | {version} | {n:,} |" for version, n in sorted(blast.versions.items()))
    yield from (f"| {other} | {_reason(why)} | {n:,} |" for (other, why), n in blast.instead.most_common())
    if blast.places:
        yield ""
        yield f"Those that {who} served lie among these offsets; of the records there, they are the ones with"
        yield f"`asked` = `{blast.model}` and `source` = `model`:" if blast.model else "`source` = `model`:"
        yield ""
        yield from (f"- `{each}`" for each in ranges(blast.places, topic))


def _reason(why: str) -> str:
    return why.replace("_", " ") or "asked for"


def _evidence(incident: Incident, blast: Blast) -> Iterator[str]:
    figures = {name: value for name, value in incident.evidence.items() if name != ONSET}
    if figures:
        yield "| figure | |"
        yield "|---|---:|"
        yield from (f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in figures.items())
    if blast.samples:
        yield ""
        yield "The first predictions served since the onset:"
        yield ""
        yield "| prediction | version | value | fact | at |"
        yield "|---|---:|---:|---|---|"
        for s in blast.samples:
            yield f"| `{_plain(s.id)}` | {s.version} | {_value(s.value)} | `{s.fact}` | {when(s.at_ms)} |"
    if blast.before.count and blast.since.count:
        yield ""
        yield f"What the model answered, {blast.before.count:,} times before and {blast.since.count:,} times since the onset:"
        yield ""
        yield "```text"
        yield from _bars(blast)
        yield "```"


def _bars(blast: Blast) -> Iterator[str]:
    rows = bars(blast.before, blast.since)
    most = max((max(b, s) for _, b, s in rows), default=1.0)
    names = max((len(name) for name, _, _ in rows), default=0)
    for name, before, since in rows:
        yield f"{name:>{names}}  before {before:6.1%} {'#' * round(WIDTH * before / most)}".rstrip()
        yield f"{'':>{names}}  since  {since:6.1%} {'#' * round(WIDTH * since / most)}".rstrip()


def _value(value: object) -> str:
    if isinstance(value, dict):
        best = max(value, key=value.__getitem__, default="")
        return f"{_plain(str(best))} {value[best]:.3g}" if value else ""
    return f"{value:.6g}"


def _timeline(incident: Incident) -> Iterator[str]:
    yield "| at | | |"
    yield "|---|---|---|"
    yield from (f"| {when(s.at_ms)} | {s.state} | {_plain(s.reason)} |" for s in incident.timeline)


def _plain(text: str) -> str:
    """In a cell of a table; what came from outside must not end it."""
    return text.replace("|", "\\|").replace("\n", " ").replace("`", "'")


def _first(incident: Incident, states: frozenset[str] | set[str]) -> int | None:
    step = _step(incident, states)
    return None if step is None else step.at_ms


def _step(incident: Incident, states: frozenset[str] | set[str]) -> IncidentStep | None:
    return next((step for step in incident.timeline if step.state in states), None)


def when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(ms: int) -> str:
    if ms < 60_000:
        return f"{max(0, ms) / 1000:.1f} s"
    return str(timedelta(seconds=ms // 1000))


def listed(incidents: Sequence[Incident]) -> list[list[str]]:
    """Rows of id, stage, policy, model, beginning and reason, newest first."""
    order = sorted(incidents, key=began_ms, reverse=True)
    return [
        [
            i.id,
            stage(i).value,
            i.policy,
            i.model or "-",
            when(began_ms(i)),
            i.timeline[0].reason if i.timeline else "",
        ]
        for i in order
    ]
