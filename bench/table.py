"""Writes the tables of docs/performance.md from bench/results/.

    python bench/table.py [--results bench/results] [--page docs/performance.md]

What stands between `<!-- results -->` and `<!-- end of results -->` is replaced; the rest is written by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
ORDER = ("score", "ingest", "join", "learn", "latency", "swap", "scale", "restart", "stages", "supervise")


def page(text: str, results: Path) -> str:
    """The page with the tables of the results that are there."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    found = [results / f"{part}.json" for part in ORDER if (results / f"{part}.json").exists()]
    lines = [line for path in found for line in section(json.loads(path.read_text()))]
    return f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{after}"


def section(result: dict[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    yield f"### {result['part']}"
    yield ""
    yield (
        f"Commit {machine['commit']}, {machine['at']}, {result['rounds']} rounds; {machine['cores']} cores of "
        f"{machine['cpu']}, Python {machine['python']}; load average {machine['load average'][0]}."
    )
    yield ""
    for name, found in result.items():
        if isinstance(found, dict) and name != "machine":
            yield from _table(name, found)


def _table(name: str, found: dict[str, Any]) -> Iterator[str]:
    """A row per contender or case, else a row per figure."""
    ratios = found.get("ratios", {})
    cases = found.get("contenders") or {k: v for k, v in found.items() if isinstance(v, dict)}
    sizes = [f"{v:,} {k}" for k, v in found.items() if cases and not isinstance(v, dict | list)]
    yield f"**{name}**" + (f" ({', '.join(sizes)})" if sizes else "")
    yield ""
    if not cases:
        yield "| | median |"
        yield "|---|---|"
        yield from (f"| {key} | {_shown(value)} |" for key, value in found.items() if key != "each")
    else:
        columns = list(dict.fromkeys(key for case in cases.values() for key in case if key != "each"))
        head = [*columns, *(["riverkeeper's rate is", "per processor second"] if ratios else [])]
        yield f"| | {' | '.join(head)} |"
        yield "|---" * (len(head) + 1) + "|"
        for case, figures in cases.items():
            cells = [_shown(figures.get(column, "")) for column in columns]
            if ratios:
                cells += [f"{ratio} ×" for name, ratio in ratios.get(case, {}).items() if name != "each"]
            yield f"| {case} | {' | '.join(cells)} |"
    yield ""


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    given = parser.parse_args()
    given.page.write_text(page(given.page.read_text(), given.results))


if __name__ == "__main__":
    main()
