"""Runs over published streams: their record, the table and the drawings made of it. Pure but for `measure`."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from tests.judgement.detectors import OURS, Run, measured
from tests.judgement.streams import FACTS, STREAMS, TWINS, Stream
from tests.judgement.svg import FAINT, INK, Drawing, Point
from tests.judgement.world import FACTS_PER_WINDOW

RECORD = Path(__file__).with_name("drifts.jsonl")
TWIN_SEED = 10  # added to a twin's, so that what comes before a drift is not counted twice
SETTLED = 1_000  # facts: in the first two windows a model and a detector have nothing to go by
DETECTORS = (OURS, "ADWIN", "PageHinkley", "KSWIN", "DDM", "EDDM", "HDDM_A", "HDDM_W")
SHOWN = ("SEA, abrupt", 1)  # the stream and seed of the drawing over time
COLOURS = ("#c0392b", "#2471a3", "#117a65", "#b9770e", "#6c3483", "#707b7c", "#1b2631", "#a04000")


def plan(seeds: int) -> list[tuple[Stream, int]]:
    """What is run: every stream with that many seeds, and every twin with one less, for it is quiet for longer."""
    drifting = [(stream, seed) for stream in STREAMS for seed in range(1, seeds + 1)]
    return drifting + [(twin, TWIN_SEED + seed) for twin in TWINS for seed in range(1, max(2, seeds))]


def measure(seeds: int) -> Iterator[Run]:
    """Some 12 s a run on one core."""
    yield from (measured(stream, seed) for stream, seed in plan(seeds))


def read() -> list[Run]:
    return [msgspec.json.decode(line, type=Run) for line in RECORD.read_bytes().splitlines()]


def write(runs: Iterable[Run]) -> None:
    RECORD.write_bytes(b"".join(msgspec.json.encode(run) + b"\n" for run in runs))


# --- figures ---


def delay(run: Run, detector: str) -> float:
    """Facts from the onset to the first alarm after it; infinite without one."""
    assert run.onset is not None
    return next((at - run.onset for at in run.alarms[detector] if at > run.onset), math.inf)


def quiet(run: Run) -> int:
    """Facts without drift."""
    return (run.onset or run.facts) - SETTLED


def false(run: Run, detector: str) -> int:
    """Alarms while there is no drift."""
    until = run.onset or run.facts
    return sum(SETTLED < at <= until for at in run.alarms[detector])


def rate(runs: Sequence[Run], detector: str) -> float:
    """False alarms per 10 000 facts."""
    return 1e4 * sum(false(run, detector) for run in runs) / sum(quiet(run) for run in runs)


def of(runs: Sequence[Run], detector: str) -> list[Run]:
    """Those that the detector was given: the ones for classification know no absolute errors."""
    return [run for run in runs if detector in run.alarms]


# --- the table ---


def table(runs: Sequence[Run]) -> str:
    drifting, clean = [r for r in runs if r.onset is not None], [r for r in runs if r.onset is None]
    lines = [_row("detector", *HEADS), "|---|" + "---:|" * len(HEADS)]
    lines += [_summary(detector, of(drifting, detector), of(runs, detector)) for detector in DETECTORS]
    lines += ["", _row("stream", *DETECTORS), "|---|" + "---:|" * len(DETECTORS)]
    for named in (drifting, clean):
        for name in dict.fromkeys(run.stream for run in named):
            runs_of = [run for run in named if run.stream == name]
            lines.append(_row(name, *(_cell(of(runs_of, detector), detector) for detector in DETECTORS)))
    return "\n".join([*lines, "", _found(drifting, clean)])


HEADS = (
    "drifts detected",
    "expected by chance",
    "median delay, facts",
    "windows",
    "false alarms per 10 000 facts",
    "per 100 windows",
)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _summary(detector: str, drifting: Sequence[Run], runs: Sequence[Run]) -> str:
    delays = [delay(run, detector) for run in drifting]
    found = sum(map(math.isfinite, delays))
    median, alarms = statistics.median(delays), rate(runs, detector)
    per_window = alarms * FACTS_PER_WINDOW * 100 / 1e4
    chance = sum(1 - math.exp(-rate([r], detector) * (r.facts - (r.onset or 0)) / 1e4) for r in drifting)
    return _row(
        detector,
        f"{found} of {len(delays)}",
        f"{chance:.1f}",
        _facts(median),
        _facts(median / FACTS_PER_WINDOW, 1),
        f"{alarms:.2f}",
        f"{per_window:.1f}",
    )


def _facts(median: float, digits: int = 0) -> str:
    return f"{median:.{digits}f}" if math.isfinite(median) else "–"


def _cell(runs: Sequence[Run], detector: str) -> str:
    """Median delay, how many detected it if not all, and false alarms; of a twin the latter only."""
    if not runs:
        return ""
    alarms = f"{rate(runs, detector):.1f}"
    if runs[0].onset is None:
        return alarms
    delays = [delay(run, detector) for run in runs]
    found = sum(map(math.isfinite, delays))
    share = "" if found == len(runs) else f" ({found} of {len(runs)})"
    return f"{_facts(statistics.median(delays))}{share}; {alarms}"


def _found(drifting: Sequence[Run], clean: Sequence[Run]) -> str:
    firsts = [next((a for a in r.ours if r.onset is not None and a.facts > r.onset), None) for r in drifting]
    by = Counter(each.by for each in firsts if each is not None)
    grave = sum(each.grave for run in clean for each in run.ours)
    told = ", ".join(
        f"{policy} {n}" for policy, n in sorted(by.items(), key=lambda each: (-each[1], each[0]))
    )
    return (
        f"{OURS}'s first alarm after the onset, by policy: {told}. "
        f"On the {len(clean)} clean twins ({sum(map(quiet, clean))} facts) it took a model out {grave} times."
    )


# --- drawings ---

LEFT, RIGHT, TOP, BOTTOM = 60, 20, 36, 44  # pixels around what is drawn


def scatter(runs: Sequence[Run]) -> Drawing:
    """Each detector by its false alarms and its delay, both on scales of log(1 + value)."""
    drawing = Drawing(640, 400, "Median delay against false alarms, by detector")
    drawing.text((LEFT, 18), drawing.title, bold=True)
    drifting = [run for run in runs if run.onset is not None]
    points = {d: (rate(of(runs, d), d), _middle(of(drifting, d), d)) for d in DETECTORS}
    across = _scale(0, max(10.0, *(x for x, _ in points.values())), LEFT, drawing.width - RIGHT - 70)
    most = max(y for _, y in points.values())
    up = _scale(min(y for _, y in points.values()) / 1.5, most * 1.3, drawing.height - BOTTOM, TOP)
    for tick in (0, 0.3, 1, 3, 10, 30, 100, 300):
        if LEFT <= across(tick) <= drawing.width - RIGHT:
            drawing.line((across(tick), TOP), (across(tick), drawing.height - BOTTOM), FAINT)
            drawing.text((across(tick), drawing.height - BOTTOM + 16), f"{tick:g}", "middle")
    for tick in (30, 100, 300, 1_000, 3_000, 10_000):
        if TOP <= up(tick) <= drawing.height - BOTTOM:
            drawing.line((LEFT, up(tick)), (drawing.width - RIGHT, up(tick)), FAINT)
            drawing.text((LEFT - 6, up(tick) + 4), f"{tick}", "end")
    drawing.text((drawing.width / 2, drawing.height - 8), "false alarms per 10 000 facts", "middle")
    drawing.text((6, TOP - 4), "facts", colour=INK)
    for (detector, (x, y)), colour in zip(points.items(), COLOURS, strict=True):
        at = across(x), up(y)
        drawing.dot(at, 5, colour)
        others = [(across(a) - at[0], up(b) - at[1]) for a, b in points.values()]
        crowded = any(0 < right < 80 and abs(down) < 16 for right, down in others)
        side = (-8, "end") if crowded else (8, "start")
        drawing.text((at[0] + side[0], at[1] + 4), detector, side[1], colour, bold=detector == OURS)
    return drawing


def _middle(runs: Sequence[Run], detector: str) -> float:
    """The median delay; what was not detected counts as the whole time there was."""
    return statistics.median([min(delay(run, detector), run.facts - (run.onset or 0)) for run in runs])


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    a, b = math.log1p(low), math.log1p(high)
    return lambda value: start + (math.log1p(value) - a) / (b - a) * (end - start)


ROW = 22  # pixels for a detector's alarms
CURVE = 130  # for the errors above them


def timeline(run: Run) -> Drawing:
    """A run's errors by window, and below them every alarm of each detector."""
    assert run.onset is not None
    drawing = Drawing(
        720, TOP + CURVE + 24 + ROW * len(run.alarms) + BOTTOM, f"{run.stream}, seed {run.seed}"
    )
    drawing.text((20, 18), f"{drawing.title}: error by window, and alarms", bold=True)
    left, right, base = 100, drawing.width - RIGHT, TOP + CURVE
    high = max(run.errors) * 1.1

    def at(facts: float, error: float = 0.0) -> Point:
        return left + facts / run.facts * (right - left), base - error / high * CURVE

    onset, end = at(run.onset)[0], drawing.height - BOTTOM + 4
    drawing.line((onset, TOP), (onset, end), "#888", "4 3")
    drawing.text((onset - 6, TOP + 16), "drift begins", "end", "#666")
    for part in (0.0, 0.5, 1.0):
        drawing.line((left, at(0, part * high)[1]), (right, at(0, part * high)[1]), FAINT)
        drawing.text((left - 6, at(0, part * high)[1] + 4), f"{part * high:.2f}", "end")
    middles = [(i + 0.5) * FACTS_PER_WINDOW for i in range(len(run.errors))]
    drawing.path([at(m, e) for m, e in zip(middles, run.errors, strict=True)], INK)
    for i, detector in enumerate(d for d in DETECTORS if d in run.alarms):
        y, colour = base + 24 + ROW * i, COLOURS[DETECTORS.index(detector)]
        drawing.text((left - 6, y + 4), detector, "end", colour, bold=detector == OURS)
        drawing.line((left, y), (right, y), FAINT)
        for place in run.alarms[detector]:
            drawing.line((at(place)[0], y - 7), (at(place)[0], y + 7), colour)
    for facts in range(0, FACTS + 1, 5_000):
        drawing.text((at(facts)[0], drawing.height - 22), f"{facts}", "middle")
    drawing.text(((left + right) / 2, drawing.height - 6), "facts", "middle")
    return drawing


def drawings(runs: Sequence[Run]) -> dict[str, Drawing]:
    """By file name, beside the page."""
    shown = next(run for run in runs if (run.stream, run.seed) == SHOWN)
    return {"drift-detectors.svg": scatter(runs), "drift-timeline.svg": timeline(shown)}
