"""Riverkeeper's speed, measured beside its peers in one run.

    python bench/run.py [PART ...] [--json] [--rounds 5] [--size 200000] [--tiny]

Without a part all of them run. Each writes one JSON object to bench/results/, with the machine, the
versions and the commit; `python bench/table.py` makes the tables of docs/performance.md from those.
`make bench` also makes the environment for the peers, whose packages do not go with all of ours: theirs
is one of its own. Needs Java and Maven.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # the parts are modules of bench, and the brokers stand in tests

from bench.harness import RESULTS, Options, machine  # noqa: E402
from riverkeeper.topics.telemetry import configure_logging  # noqa: E402

PARTS = ("score", "ingest", "join", "learn", "latency", "swap", "scale", "restart", "stages", "supervise")
# So that a test can look whether every part runs; its figures mean nothing.
PEERS = ROOT / ".venv-bench" / "bin" / "python"  # as `make bench` makes it
TINY = Options(rounds=1, size=2_000, pending=2_000, seconds=2.0, rates=(200,))


def run(part: str, options: Options) -> dict[str, Any]:
    measured = asyncio.run(import_module(f"bench.{part}").measure(options))
    return {"part": part, "machine": machine(options.peers), "rounds": options.rounds, **measured}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", action="store_true", help="print the results as JSON, one object a line")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--size", type=int, help="records that the fastest contender works through")
    parser.add_argument("--seconds", type=float, help="of a live load")
    parser.add_argument("--pending", type=int, help="predictions that wait in join")
    parser.add_argument("--rates", type=int, nargs="+", help="events/s of a live load")
    parser.add_argument("--only", nargs="+", help="contenders; riverkeeper among them, or there is no ratio")
    parser.add_argument("--peers", default=str(PEERS), help="the Python that has the peers' packages")
    parser.add_argument("--against", help="folder of another checkout: its agents are measured, too")
    parser.add_argument("--tiny", action="store_true", help="look only whether everything runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part is named {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    options = _options(given)
    configure_logging("ERROR", json=False)
    given.results.mkdir(parents=True, exist_ok=True)
    for part in given.parts or PARTS:
        found = run(part, options)
        text = json.dumps(found, indent=2)
        (given.results / f"{part}.json").write_text(text + "\n")
        sys.stdout.write((json.dumps(found) if given.json else text) + "\n")
        sys.stdout.flush()


def _options(given: argparse.Namespace) -> Options:
    base = TINY if given.tiny else Options()
    named = {
        name: getattr(given, name) for name in ("rounds", "size", "seconds", "pending", "peers", "against")
    }
    named |= {"rates": given.rates and tuple(given.rates), "contenders": given.only and tuple(given.only)}
    return Options(**{**vars(base), **{name: value for name, value in named.items() if value is not None}})


if __name__ == "__main__":
    main()
