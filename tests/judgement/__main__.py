"""`python -m tests.judgement`: tells every story, and prints what became of it as a table.

With `--months N` it also runs N calm months; with `--write PATH` it puts the table between the marks in PATH. With
`--streams SEEDS` it runs the published streams instead, and draws beside PATH.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import statistics
from pathlib import Path

import click
import structlog

from tests.judgement import drifts
from tests.judgement.calm import month
from tests.judgement.detectors import OURS
from tests.judgement.story import Row, twin_of

HERE = Path(__file__).parent
HEAD = (
    "| behaviour | found by | after, windows | minutes | action | error before → meanwhile | well again, h |\n"
    "|---|---|---:|---:|---|---|---:|"
)


def stories() -> list[Row]:
    names = sorted(path.stem for path in HERE.glob("test_[0-9]*.py"))
    modules = [importlib.import_module(f"tests.judgement.{name}") for name in names]
    rows = []
    for module in modules:
        if hasattr(module, "story"):
            rows.append(module.story())
            click.echo(f"{rows[-1].name} {rows[-1].delay:.2f}", err=True)
    return rows


def line(row: Row) -> str:
    who, policy = row.cause
    answered = ", ".join(f"{n} {model}" for model, n in sorted(row.meanwhile.items()))
    well = "" if row.recovered is None else f"{row.recovered:.1f}"
    return (
        f"| {row.name} | {policy}{f' of {who}' if who else ''}: {row.reason} | {row.delay:.1f} | "
        f"{row.minutes:.0f} | {row.action}; served until found: {answered} | "
        f"{row.usual_error:.1f} → {row.error:.1f} | {well} |"
    )


def table(rows: list[Row]) -> str:
    delays = [row.delay for row in rows]
    outside = sum(row.out_of_bounds for row in rows)
    summary = (
        f"{len(rows)} of {len(rows)} found; delay in windows of 500 facts: median "
        f"{statistics.median(delays):.1f}, largest {max(delays):.1f}; answers served out of bounds: {outside}; "
        f"alarms on the clean twin: {len(twin_of())}."
    )
    return "\n".join([HEAD, *map(line, rows), "", summary])


def months(count: int) -> str:
    told, facts = [], 0
    for seed in range(1, count + 1):
        world = month(seed)
        facts += world.facts
        told += [(seed, t.who, t.policy, t.reason) for t in world.told]
        click.echo(f"month {seed}: {len(world.told)} words", err=True)
    lines = [f"Calm months: {count} seeds, {facts} facts, {len(told)} alarms or verdicts."]
    return "\n".join([*lines, *(f"- {each}" for each in told)])


def streams(seeds: int, page: Path | None) -> str:
    """Runs them all, and keeps the record that the table and the drawings are made of."""
    runs = []
    for run in drifts.measure(seeds):
        runs.append(run)
        click.echo(f"{run.stream}, seed {run.seed}: {run.alarms[OURS]}", err=True)
    drifts.write(runs)
    for name, drawing in drifts.drawings(runs).items() if page else ():
        (page or HERE).with_name(name).write_text(str(drawing))
    return drifts.table(runs)


def put(page: Path, name: str, text: str) -> None:
    """Between the marks of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    marked = re.compile(f"{begin}.*{end}", re.DOTALL)
    page.write_text(marked.sub(lambda _: f"{begin}\n{text}\n{end}", page.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--months", type=int, default=0)
    parser.add_argument("--streams", type=int, nargs="?", const=3, default=0, metavar="SEEDS")
    parser.add_argument("--write", type=Path)
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    text = streams(chosen.streams, chosen.write) if chosen.streams else table(stories())
    if chosen.months:
        text += "\n\n" + months(chosen.months)
    click.echo(text)
    if chosen.write:
        put(chosen.write, "streams" if chosen.streams else "table", text)


if __name__ == "__main__":
    main()
