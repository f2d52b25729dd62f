"""Facts scored per second by one process: riverkeeper beside the peers, over the same topic.

Riverkeeper validates, computes features, asks the model and the fallback, checks bounds, writes the
lineage and follows the verdicts; the peers decode, ask the same estimator and write its answer. `fetch`
decodes only. Every answer is compared with the estimator's own.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.harness import (
    BEFORE,
    OURS,
    Broker,
    Child,
    Options,
    Topic,
    broker,
    compared,
    fetched,
    plain_topic,
    prepare,
    rate,
    rotated,
    running,
    write,
)
from bench.work import CYCLE, ESTIMATORS, NUMBERS, Declared, facts, features, trained, versions

PEERS = {
    "river loop": ["bench.peers.river_loop"],
    "bytewax": ["bytewax.run", "bench.peers.bytewax_flow:flow"],
    "quix": ["bench.peers.quix_app"],
    "faust": ["bench.peers.faust_app", "worker", "-l", "warn", "--without-web"],
}
SHARES = {"faust": 0.1}  # of the facts that a contender is given time for
EMBEDDED_FACTS = 20_000  # what the embedded broker holds of predictions: 5 MB a partition
NEAR = 1e-9  # that answers may differ: a sum in another order
CLASSES = {"linear": "with a fast path", "tree": "without one"}


class Said(msgspec.Struct):
    """What of any contender's prediction is compared."""

    id: str
    value: float


async def measure(options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = ["riverkeeper", "fetch", *PEERS]
    with broker("kafka") as kafka:
        found["kafka"] = await _rounds(kafka, "linear", names, options.size, options)
        tree = ["riverkeeper", "river loop"]
        found["kafka, an estimator without a fast path"] = await _rounds(
            kafka, "tree", tree, options.size // 4, options
        )
    with broker("embedded") as embedded:
        size = min(EMBEDDED_FACTS, options.size)
        found["embedded"] = await _rounds(embedded, "linear", ["riverkeeper", "river loop"], size, options)
    return found


async def _rounds(on: Broker, kind: str, names: Sequence[str], size: int, options: Options) -> dict[str, Any]:
    names = [name for name in names if not options.contenders or name in options.contenders]
    names += [BEFORE] if options.against else []
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    estimator = trained(ESTIMATORS[kind], NUMBERS)
    expected = [estimator.predict_proba_one(features(i))[True] for i in range(min(CYCLE, size))]
    for turn in range(options.rounds):
        declared = Declared(f"{kind}{turn}", kind)
        pipeline = declared.pipeline()
        peers = [plain_topic(_output(declared, name), pipeline.partitions) for name in names if name in PEERS]
        await prepare(on, pipeline, peers)
        await write(on, facts(pipeline, size))
        await write(on, versions(pipeline, kind))
        if options.against:
            await prepare(on, declared.before().pipeline())
            await write(on, facts(declared.before().pipeline(), size))
            await write(on, versions(declared.before().pipeline(), kind))
        with tempfile.NamedTemporaryFile() as file:
            pickle.dump(estimator, file)
            file.flush()
            for name in rotated(names, turn):
                runs[name].append(await _run(on, declared, name, size, file.name, expected, options))
    return {"facts": size, **compared(runs)}


def _output(declared: Declared, name: str) -> str:
    return f"{declared.name}.{name.replace(' ', '-')}"


async def _run(
    on: Broker,
    declared: Declared,
    name: str,
    size: int,
    estimator: str,
    expected: Sequence[float],
    options: Options,
) -> dict[str, float]:
    pipeline = declared.pipeline()
    count = int(size * SHARES.get(name, 1.0))
    environment = {
        "BENCH_BROKER": on.address,
        "BENCH_INPUT": pipeline.topic("facts"),
        "BENCH_OUTPUT": _output(declared, name),
        "BENCH_ESTIMATOR": estimator,
        "BENCH_COUNT": str(count),
        "BENCH_PARTITIONS": str(pipeline.partitions),
    }
    if name == "fetch":
        return await fetched(environment)
    if name in (OURS, BEFORE):
        tree = options.against if name == BEFORE else ""
        declared = declared.before() if name == BEFORE else declared
        output = declared.pipeline().topic("predictions")
        child = Child.agents(on, declared, "score", tree)
    else:
        output, child = environment["BENCH_OUTPUT"], Child.spawn(PEERS[name], environment, options.peers)
    async with running(child), Topic(on, output, pipeline.partitions) as topic:
        first, began, last = await topic.until(count, child)
        rows = await topic.rows()
    _check(name, [msgspec.json.decode(row.value, type=Said) for row in rows], expected)
    return {
        "rate": rate(rows),
        "cpu us": (last.cpu - first.cpu) / max(1, count - began) * 1e6,
        "MB at most": last.most,
    }


def _check(name: str, said: Sequence[Said], expected: Sequence[float]) -> None:
    ids = {each.id for each in said}
    if len(ids) != len(said):
        raise RuntimeError(f"{name}: {len(said) - len(ids)} predictions of one fact more than once")
    wrong = [each for each in said if abs(each.value - expected[int(each.id) % len(expected)]) > NEAR]
    if wrong:
        raise RuntimeError(f"{name}: {len(wrong)} of {len(said)} answers differ, such as {wrong[0]}")
