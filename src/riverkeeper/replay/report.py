"""A replay's matrix, to read and to save."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from .reading import Replay
from .worlds import Row

COLUMNS = Row.__struct_fields__
SHOWN = ("candidate", "error", "served", "difference", "95 % interval", "compared", "learned", "µs", "notes")


def text(found: Replay, metric: str) -> str:
    """The matrix, best first, and what it was made of."""
    head = (
        f"{found.predictions:,} predictions and {found.examples:,} examples, "
        f"{_moment(found.began_ms)} to {_moment(found.ended_ms)}; errors are {metric}"
        + (f"; {found.unreadable} unreadable records passed over" if found.unreadable else "")
    )
    if not found.predictions:
        return "no predictions in this stretch; see --from and --to, and `riverkeeper status`"
    rows = sorted(found.rows, key=lambda row: (row.difference is None, row.difference))
    return "\n".join([head, "", *_table([SHOWN, *map(_shown, rows)])])


def _shown(row: Row) -> Sequence[str]:
    interval = "" if row.interval is None else f"{row.interval[0]:+.4g} to {row.interval[1]:+.4g}"
    return (
        row.candidate,
        _number(row.error),
        _number(row.served_error),
        "" if row.difference is None else f"{row.difference:+.4g}",
        interval,
        f"{row.compared:,}",
        f"{row.learned:,}",
        "" if row.us_per_answer is None else f"{row.us_per_answer:.0f}",
        _notes(row),
    )


def _notes(row: Row) -> str:
    counts = {
        "out of bounds": row.out_of_bounds,
        "raised": row.raised,
        "without features": row.without_features,
        "failed to learn": row.failed_to_learn,
    }
    notes = [f"{count:,} {what}" for what, count in counts.items() if count]
    if row.interval is not None and row.interval[1] < 0:
        notes.insert(0, "better")
    elif row.interval is not None and row.interval[0] > 0:
        notes.insert(0, "worse")
    return ", ".join(notes)


def matrix(found: Replay) -> str:
    """The rows as CSV, every figure in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [c for c in COLUMNS if c != "interval"]
    writer.writerow([*columns, "interval_low", "interval_high"])
    for row in found.rows:
        low, high = row.interval or (None, None)
        writer.writerow([*(getattr(row, c) for c in columns), low, high])
    return out.getvalue()


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *figures, notes = row
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:-1], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells, notes]).rstrip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
