"""Examples per second that one process learns, versions published on the way.

`river loop` decodes the same topic and calls `learn_one` of the same two estimators, and nothing else.
Both must have come to the same weights in the end: they answer some rows alike.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from bench.harness import (
    BEFORE,
    LOOK,
    OURS,
    Broker,
    Child,
    Options,
    Topic,
    Used,
    broker,
    compared,
    manifests,
    prepare,
    rotated,
    running,
    write,
)
from bench.work import CYCLE, NUMBERS, Declared, examples, features
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler, begin

EMBEDDED_EXAMPLES = 10_000  # of which the embedded broker holds 5 MB, on one partition
VERSIONS = 10  # published while all are learned
ROWS = range(0, CYCLE, CYCLE // 20)  # those that both must answer alike
NEAR = 1e-12
LEARNED = "riverkeeper_learned_examples_total"


async def measure(options: Options) -> dict[str, Any]:
    found = {}
    for kind, most in (("kafka", options.size // 2), ("embedded", EMBEDDED_EXAMPLES)):
        with broker(kind) as on:
            found[kind] = await _rounds(on, min(most, options.size // 2), options)
    return found


async def _rounds(on: Broker, size: int, options: Options) -> dict[str, Any]:
    names = [OURS, "river loop", *([BEFORE] if options.against else [])]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(options.rounds):
        declared = Declared(f"learn{turn}", partitions=1, every=size // VERSIONS)
        for family in (declared, declared.before())[: 2 if options.against else 1]:
            await prepare(on, family.pipeline())
            await write(on, examples(family.pipeline(), size))
        said = {}
        for name in rotated(list(runs), turn):
            if name == BEFORE:
                figures, said[name] = await _ours(on, declared.before(), size, options.against)
            else:
                figures, said[name] = await (_ours if name == OURS else _loop)(on, declared, size)
            runs[name].append(figures)
        pairs = zip(said[OURS], said["river loop"], strict=True)
        if (apart := max(abs(a - b) for a, b in pairs)) > NEAR:
            raise RuntimeError(f"the estimators answer {apart} apart")
    return {"examples": size, **compared(runs)}


async def _ours(
    on: Broker, declared: Declared, size: int, tree: str = ""
) -> tuple[dict[str, float], list[float]]:
    """The rate between the first version that has learned something and the last one on the way."""
    pipeline, child = declared.pipeline(), Child.agents(on, declared, "learn", tree)
    rows, marks = [], list[tuple[float, int, Used]]()
    async with Topic(on, pipeline.topic("models"), pipeline.model_partitions) as topic:
        async with running(child):
            while not marks or marks[-1][1] < size - size // VERSIONS:
                new = await topic.rows()
                rows += new
                for manifest in manifests(new):
                    if manifest.model == "first" and manifest.learned:
                        marks.append((manifest.published_ms / 1000, manifest.learned, child.used()))
                child.check()
                await asyncio.sleep(LOOK)
            # All of them, by each model: only then does its last version, as it stops, say so.
            while await asyncio.to_thread(child.sum_of, LEARNED) < size * len(pipeline.models):
                child.check()
                await asyncio.sleep(10 * LOOK)
        rows += await topic.rows()  # what it published as it stopped
    library = Assembler()
    for row in rows:
        library.feed(row.key, row.value or None)
    last = library.manifests("first")[-1]
    if last.learned != size:
        raise RuntimeError(f"{last.learned} of {size} examples were learned")
    opened: Any = begin(
        library.blob("first", last.version), pipeline.models["first"].factory, AllowList(pipeline.trusted)
    )
    (began, before, _), (ended, after, _) = marks[0], marks[-1]
    learned = max(1, after - before)
    figures = {
        "rate": learned / max(0.001, ended - began),
        "MB at most": marks[-1][2].most,
    }
    return figures, [opened.predict_proba_one(features(i))[True] for i in ROWS]


async def _loop(on: Broker, declared: Declared, size: int) -> tuple[dict[str, float], list[float]]:
    environment = {
        "BENCH_BROKER": on.address,
        "BENCH_INPUT": declared.pipeline().topic("examples"),
        "BENCH_COUNT": str(size),
        "BENCH_ROWS": json.dumps([{name: features(i)[name] for name in NUMBERS} for i in ROWS]),
    }
    child = Child.spawn(["bench.peers.learn_loop"], environment)
    async with running(child):
        said = await child.until_said()
    return {"rate": said["rate"]}, said["said"]
