"""python -m tests.simulator --seeds 10000 --from 0 --jobs 2 [--bug NAME] | --seed N [--trace] [--bug NAME]

Ends with 1 and the command that repeats it for every seed that goes wrong. Time is spent in `--jobs`
processes; none of the figures depends on their number.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulator.world import Outcome, World

CHUNK = 50  # seeds of one process: what they leave behind is never tidied up, some 0.6 MB each
HASH_SEED = "0"  # sets of texts have one order in every process


def main() -> int:
    words = _words()
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulator", *sys.argv[1:]])
    if words.bug:
        from tests.simulator.bugs import plant

        plant(words.bug)
    _warm()
    if words.seed is not None:
        return _one(words)
    return _many(words)


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (default 10000)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--bug", help="plant this bug, see tests/simulator/bugs.py")
    parser.add_argument("--until-wrong", action="store_true", help="stop at the first seed that goes wrong")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--trace", action="store_true", help="with --seed: tell what happens")
    return parser.parse_args()


def _warm() -> None:
    """Imports, compiles and seals what every run needs, once; the workers are copies of this process."""
    from tests.simulator.world import World, listen

    # A run's last coroutines would speak once more if they were let go of, and be heard in the next run.
    gc.disable()
    sys.unraisablehook = lambda unraisable: None
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    listen()
    _kept.append(World(1))
    _kept[0].run()


def _one(words: argparse.Namespace) -> int:
    from tests.simulator.world import simulate

    outcome = simulate(words.seed, tracing=words.trace)
    for line in outcome.trace:
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"seed {outcome.seed}: {outcome.wrong or 'right'}\n")
    sys.stdout.write(
        f"{outcome.steps} steps, {outcome.seconds:.2f} s, fingerprint {outcome.fingerprint:08x}\n"
    )
    return _end(1 if outcome.wrong else 0)


def _many(words: argparse.Namespace) -> int:
    began = time.monotonic()
    wrong, steps, seconds, ran = 0, 0, 0.0, 0
    faults: Counter[str] = Counter()
    planted = f" --bug {words.bug}" if words.bug else ""
    for outcome in _outcomes(words):
        ran, steps, seconds = ran + 1, steps + outcome.steps, seconds + outcome.seconds
        faults += outcome.faults
        if outcome.wrong:
            wrong += 1
            sys.stdout.write(f"seed {outcome.seed}: {outcome.wrong[:400]}\n")
            sys.stdout.write(f"  python -m tests.simulator --seed {outcome.seed} --trace{planted}\n")
            sys.stdout.flush()
            if words.until_wrong:
                break
    took = time.monotonic() - began
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))
    sys.stdout.write(
        f"{ran} seeds in {took:.0f} s, {wrong} wrong; {steps} steps over {seconds:.0f} s of virtual time; {told}\n"
    )
    return _end(1 if wrong else 0)


def _outcomes(words: argparse.Namespace) -> Iterator[Outcome]:
    last = words.first + words.seeds
    chunks = [range(start, min(start + CHUNK, last)) for start in range(words.first, last, CHUNK)]
    gc.freeze()
    with multiprocessing.get_context("fork").Pool(words.jobs, maxtasksperchild=1) as pool:
        for outcomes in pool.imap(_chunk, chunks, chunksize=1):
            yield from outcomes


def _chunk(seeds: Sequence[int]) -> list[Outcome]:
    from tests.simulator.world import World

    worlds = [World(seed) for seed in seeds]
    outcomes = [world.run() for world in worlds]
    _kept.extend(worlds)
    return outcomes


_kept: list[World] = []


def _end(status: int) -> int:
    """Without a word from what the runs left behind."""
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
