"""What the demo shows: a live table on a terminal, progress lines elsewhere, and the summary at the end."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..topics.telemetry import Metric
from .ledger import Ledger, ModelView, Summary
from .play import Standing
from .stage import Outcome

REFRESH_SECONDS = 0.25  # of the live table: faster is unreadable, and costs the agents their time
LINE_SECONDS = 3.0  # between progress lines where there is no terminal
RATE_SECONDS = 2.0  # over which facts per second are measured
LATENCY_SECONDS = 1.0  # over which latency is measured; reading the histogram costs a ms
RULINGS_SHOWN = 8
WIDTH = 100  # columns of the summary, at most
STATE_STYLES = {"live": "green", "shadow": "cyan", "probation": "yellow"}


class Meter:
    """Rates and latencies, from one look to the next."""

    def __init__(self) -> None:
        self._facts: deque[tuple[float, int]] = deque()
        self._latency_at = 0.0
        self._counts: dict[float, float] = {}
        self.p50 = self.p99 = 0.0
        self.rate = 0.0

    def look(self, standing: Standing) -> None:
        now = standing.seconds
        self._facts.append((now, standing.ledger.facts))
        while now - self._facts[0][0] > RATE_SECONDS:
            self._facts.popleft()
        at, facts = self._facts[0]
        self.rate = (standing.ledger.facts - facts) / (now - at) if now > at else 0.0
        if now - self._latency_at >= LATENCY_SECONDS:
            self._latency_at = now
            self._look_at(standing.process.telemetry.registry)

    def _look_at(self, registry: CollectorRegistry) -> None:
        counts = latency_counts(registry)
        fresh = {bound: n - self._counts.get(bound, 0.0) for bound, n in counts.items()}
        self._counts = counts
        if max(fresh.values(), default=0.0) > 0:
            self.p50, self.p99 = quantile(fresh, 0.5), quantile(fresh, 0.99)


def latency_counts(registry: CollectorRegistry) -> dict[float, float]:
    """Predictions by the upper bound of their latency in seconds, cumulative."""
    series = Metric.PREDICTION_LATENCY.series
    return {
        float(sample.labels["le"]): sample.value
        for family in registry.collect()
        if family.name == series
        for sample in family.samples
        if sample.name == f"{series}_bucket"
    }


def quantile(cumulative: dict[float, float], part: float) -> float:
    """Interpolated within its bucket, as Prometheus does; the last finite bound at most."""
    wanted = max(cumulative.values()) * part
    low, below = 0.0, 0.0
    for bound, count in sorted(cumulative.items()):
        if count >= wanted and count > below:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


class Screen(Protocol):
    def show(self, standing: Standing) -> None: ...


class Lines:
    """Progress as lines of text, each given to `say`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._meter = Meter()
        self._next = 0.0
        self._rulings = 0
        self._phase = ""

    def show(self, standing: Standing) -> None:
        ledger = standing.ledger
        for ruling in ledger.rulings[self._rulings :]:
            after = (ruling.at_ms - (ledger.began_ms or ruling.at_ms)) / 1000
            self._say(f"  +{after:.1f} s  {ruling.model}: {ruling.state}: {ruling.reason}")
        self._rulings = len(ledger.rulings)
        self._meter.look(standing)
        phase = standing.phase.partition(":")[0]
        if standing.seconds >= self._next or phase != self._phase:
            self._next, self._phase = standing.seconds + LINE_SECONDS, phase
            self._say(_line(standing, self._meter))


def _line(standing: Standing, meter: Meter) -> str:
    ledger = standing.ledger
    if not ledger.events:
        return f"{standing.seconds:5.1f} s  {standing.phase}"
    return (
        f"{standing.seconds:5.1f} s  {standing.phase}: {number(ledger.events)} of {number(standing.total)} events, "
        f"{number(meter.rate)} facts/s, latency p50 {seconds(meter.p50)} p99 {seconds(meter.p99)}, "
        f"served MAE {decimal(ledger.error)}, baseline {decimal(ledger.baseline)}"
    )


class LiveTable:
    """The live table on a terminal; use in a `with`."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._meter = Meter()
        self._next = 0.0

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, standing: Standing) -> None:
        if standing.seconds < self._next:
            return
        self._next = standing.seconds + REFRESH_SECONDS
        self._meter.look(standing)
        self._live.update(picture(standing, self._meter), refresh=True)


def picture(standing: Standing, meter: Meter) -> RenderableType:
    ledger = standing.ledger
    return Group(_head(standing, meter), _counts(ledger), _models(ledger), _verdicts(ledger))


def _head(standing: Standing, meter: Meter) -> RenderableType:
    ledger = standing.ledger
    head = Table.grid(padding=(0, 2))
    total = max(standing.total, standing.producer.placed)
    head.add_row(
        Text("riverkeeper demo flights", style="bold"),
        ProgressBar(total=total or 1, completed=ledger.events, width=24),
        f"{number(ledger.events)} of {number(total)} events",
        f"{standing.seconds:.1f} s",
    )
    speed = Table.grid(padding=(0, 2))
    speed.add_row(
        f"[bold]{number(meter.rate)}[/bold] facts/s",
        f"latency p50 [bold]{seconds(meter.p50)}[/bold] p99 [bold]{seconds(meter.p99)}[/bold]",
        standing.phase,
    )
    return Group(head, speed)


def _counts(ledger: Ledger) -> RenderableType:
    return Text(
        f"facts {number(ledger.facts)}  outcomes {number(ledger.outcomes)}  dead {number(ledger.dead)}  "
        f"duplicates {number(ledger.duplicates)}  predictions {number(ledger.predictions)}  "
        f"examples {number(ledger.examples)}\n"
        f"served MAE {decimal(ledger.error)}  baseline {decimal(ledger.baseline)}  "
        f"out of bounds {ledger.out_of_bounds}",
        style="dim",
    )


def _models(ledger: Ledger) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    table.add_column("state")
    for name in ("version", "learned", "live error", "baseline", "answers"):
        table.add_column(name, justify="right")
    answering = ledger.answering()
    for name, model in ledger.models.items():
        table.add_row(
            name,
            Text(model.state, style=STATE_STYLES.get(model.state, "bold red")),
            f"v{model.version}" if model.version else "-",
            number(model.learned),
            _error(model),
            decimal(model.baseline),
            f"{answering.get(name, 0.0):.0%}",
        )
    return table


def _error(model: ModelView) -> Text:
    worse = model.error is not None and model.baseline is not None and model.error > model.baseline
    return Text(decimal(model.error), style="red" if worse else "")


def _verdicts(ledger: Ledger) -> RenderableType:
    if not ledger.rulings:
        return Text("no verdicts yet", style="dim")
    table = Table.grid(padding=(0, 2))
    for ruling in ledger.rulings[-RULINGS_SHOWN:]:
        after = (ruling.at_ms - (ledger.began_ms or ruling.at_ms)) / 1000
        style = STATE_STYLES.get(ruling.state, "bold red")
        reason = Text(ruling.reason, overflow="ellipsis", no_wrap=True)
        table.add_row(f"+{after:.1f} s", ruling.model, Text(ruling.state, style=style), reason)
    return table


# The summary.


class Words(NamedTuple):
    """What a demo calls its things."""

    demo: str
    facts: str
    outcomes: str
    unit: str  # of the label


FLIGHTS = Words("flights", "departures", "arrivals", "minutes")
POOCH = Words("pooch", "posts", "likes counted", "likes")


def summary_text(
    outcome: Outcome, again: Sequence[tuple[str, str]], *, color: bool, words: Words = FLIGHTS
) -> str:
    """The end of the demo as text; `again` are commands to try next, and what each shows."""
    columns = min(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
    file = StringIO()
    console = Console(file=file, width=columns, force_terminal=color, highlight=False)
    for part in _parts(outcome, again, words):
        console.print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _parts(outcome: Outcome, again: Sequence[tuple[str, str]], words: Words) -> Iterator[RenderableType]:
    summary = outcome.summary
    yield Text(_ended(outcome, words), style="bold" if outcome.ending == "complete" else "bold yellow")
    yield _sums(summary, words)
    yield Text(_verdict(outcome), style="green" if not outcome.wrong else "bold red")
    yield Text(_errors(summary, words))
    yield Text("")
    yield from _incidents(outcome)
    yield Text("what to try next", style="bold")
    table = Table.grid(padding=(0, 2))
    for command, shows in again:
        table.add_row("", Text(command, style="cyan", no_wrap=True), Text(shows, style="dim"))
    yield table


def _ended(outcome: Outcome, words: Words) -> str:
    endings = {
        "complete": "played to the end",
        "stopped": "stopped; what was seen so far",
        "stalled": "ended, for nothing moved any more",
    }
    summary = outcome.summary
    rate = summary.events / summary.seconds if summary.seconds else 0.0
    return f"{words.demo}: {endings[outcome.ending]}, {summary.seconds:.1f} s, {number(rate)} events/s"


def _sums(summary: Summary, words: Words) -> Table:
    said = summary.predictions
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    rows = [
        ("events", summary.events, ""),
        ("  facts", summary.facts, words.facts),
        ("  outcomes", summary.outcomes, words.outcomes),
        ("  dead", summary.dead, "could not be processed; each kept with its reason"),
        ("  duplicates", summary.duplicates, "dropped by id"),
        (
            "predictions",
            said["total"],
            f"{number(said['model'])} by a model, {number(said['fallback'])} by the fallback, "
            f"{said['out_of_bounds']} out of bounds",
        ),
        ("examples", summary.examples, "predictions that met their outcome"),
        ("versions", summary.versions, "of all models"),
    ]
    for name, count, note in rows:
        table.add_row(name, number(count), Text(note, style="dim"))
    return table


def _verdict(outcome: Outcome) -> str:
    if not outcome.wrong:
        return "adds up: facts + outcomes + dead + duplicates = events, predictions = facts"
    what = "still on the way" if outcome.ending == "stopped" else "does not add up"
    return f"{what}: " + "; ".join(outcome.wrong)


def _errors(summary: Summary, words: Words) -> str:
    served, baseline = summary.error["served"], summary.error["baseline"]
    if not isinstance(served, float) or not isinstance(baseline, float):
        return "no example yet: no error to compare"
    better = (1 - served / baseline) * 100 if baseline else 0.0
    return (
        f"{summary.error['metric']} of what was served: {served:.2f} {words.unit}; of the baseline over the same "
        f"examples: {baseline:.2f}; served is {abs(better):.1f} % {'better' if better >= 0 else 'worse'}"
    )


def _incidents(outcome: Outcome) -> Iterator[RenderableType]:
    incidents = outcome.incidents
    yield Text("incidents" if incidents else "no incidents", style="bold")
    for incident in incidents:
        open_ = "" if incident.resolved else "  (open)"
        yield Text(f"  {incident.model}: {incident.policy}{open_}")
        table = Table.grid(padding=(0, 2))
        said = ""
        for step in incident.timeline:
            after = (step.at_ms - outcome.began_ms) / 1000
            reason = Text(
                "" if step.reason == said else step.reason, style="dim", overflow="ellipsis", no_wrap=True
            )
            table.add_row("  ", f"+{after:.1f} s", step.state, reason)
            said = step.reason
        yield table
    yield Text("")


def number(n: float) -> str:
    """With thin groups of thousands: 26 483."""
    return f"{n:,.0f}".replace(",", " ")


def decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) < 1e5 else f"{value:.1e}"


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
