"""`riverkeeper replay` over what agents wrote: its matrix is that of the log, and no topic is written to."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from riverkeeper.audit.report import Topic
from riverkeeper.process import topics_of
from riverkeeper.topics.messages import Example, Manifest, Prediction
from tests.audit.tape import Rec, Tape
from tests.brokers.kafka import KafkaCluster
from tests.system.harness import ROOT, SIGNING_KEY, WAIT_S


def run(kafka: KafkaCluster, tape: Tape, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "riverkeeper", "replay", "tests.system.named:pipeline", *words],
        cwd=ROOT,
        env={
            **os.environ,
            "RIVERKEEPER_BROKER": kafka.address,
            "RIVERKEEPER_SIGNING_KEY": SIGNING_KEY,
            "SYSTEM_KIND": "gauges",
            "SYSTEM_NAME": tape.pipeline.name,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


def found(kafka: KafkaCluster, tape: Tape, *words: str) -> Any:
    done = run(kafka, tape, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_hand(tape: Tape, model: str, since: int = 0, until: int = 2**63) -> tuple[int, float, float]:
    """(examples compared, error, served error) of a declared model, by the plainest loop there is."""
    declared, features = tape.pipeline.models[model], tape.pipeline.model_features[model]
    estimator: Any = declared.factory()
    records: list[Rec] = [*tape.all(Topic.PREDICTIONS), *tape.all(Topic.EXAMPLES)]
    records.sort(key=lambda r: (r.timestamp, r.topic, r.partition, r.offset))
    said: dict[str, float] = {}
    pairs, learned, answered = [], 0, set[str]()
    for record in records:
        if record.timestamp < since:
            continue
        if record.topic == tape.pipeline.topic("predictions"):
            made = msgspec.json.decode(record.value or b"", type=Prediction)
            if record.timestamp < until and made.id not in answered:
                answered.add(made.id)
                if learned >= declared.warmup:
                    said[made.id] = estimator.predict_one({f: made.features[f] for f in features})
            continue
        example = msgspec.json.decode(record.value or b"", type=Example)
        assert isinstance(example.served, float)
        if example.id in said:
            own = abs(said.pop(example.id) - float(example.label))
            pairs.append((own, abs(example.served - float(example.label))))
        if record.timestamp < until:
            estimator.learn_one({f: example.features[f] for f in features}, example.label)
            learned += 1
    return len(pairs), sum(p[0] for p in pairs) / len(pairs), sum(p[1] for p in pairs) / len(pairs)


async def ends(kafka: KafkaCluster, tape: Tape) -> dict[TopicPartition, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.address)
    await consumer.start()
    try:
        tps = [TopicPartition(s.name, p) for s in topics_of(tape.pipeline) for p in range(s.partitions)]
        return dict(await consumer.end_offsets(tps))
    finally:
        await consumer.stop()


def test_the_matrix_is_that_of_the_plainest_loop(kafka: KafkaCluster, original: Tape) -> None:
    before = asyncio.run(ends(kafka, original))
    said = found(kafka, original)
    assert asyncio.run(ends(kafka, original)) == before, "a replay writes nothing"
    assert [row["candidate"] for row in said["rows"]] == ["line", "mean"]
    assert said["examples"] == len(list(original.all(Topic.EXAMPLES)))
    for row in said["rows"]:
        compared, error, served = by_hand(original, row["candidate"])
        assert row["compared"] == compared > 100
        assert (row["error"], row["served_error"]) == pytest.approx((error, served))
        low, high = row["interval"]
        assert low < row["difference"] < high
        assert row["difference"] == pytest.approx(error - served)


def test_a_stretch_ends_where_it_is_told_to(kafka: KafkaCluster, original: Tape) -> None:
    times = sorted(r.timestamp for r in original.all(Topic.PREDICTIONS))
    since, until = times[len(times) // 8], times[len(times) * 7 // 8]
    words = [datetime.fromtimestamp(ms / 1000, UTC).isoformat() for ms in (since, until)]
    said = found(kafka, original, "--model", "line", "--from", words[0], "--to", words[1])
    (row,) = said["rows"]
    compared, error, _ = by_hand(original, "line", since, until)
    assert (row["compared"], row["error"]) == (compared, pytest.approx(error)) and compared > 20
    assert said["began_ms"] >= since and said["ended_ms"] < until


def test_a_stored_version_answers_as_it_was_published(kafka: KafkaCluster, original: Tape) -> None:
    manifests = [
        Manifest.model_validate_json(r.value)
        for r in original.all(Topic.MODELS)
        if r.value is not None and (r.key or b"").count(b"/") == 1
    ]
    last = max((m for m in manifests if m.model == "line"), key=lambda m: m.version)
    said = found(kafka, original, "--version", f"line/{last.version}", "--frozen", "--model", "mean")
    rows = {row["candidate"]: row for row in said["rows"]}
    kept = rows[f"line/{last.version}"]
    assert kept["learned"] == 0 and kept["compared"] > rows["mean"]["compared"] / 2
    assert kept["error"] < rows["mean"]["error"], "what has learned the stretch knows it"


def test_a_sweep_is_printed_best_first_and_saved(kafka: KafkaCluster, original: Tape, tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    done = run(kafka, original, "--candidates", "tests.replay.sweep:rates", "--save", str(path))
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(path.read_text().splitlines()))
    best = min(rows, key=lambda row: float(row["difference"]))["candidate"]
    lines = done.stdout.splitlines()
    assert lines[2].split()[:2] == ["candidate", "error"]
    assert lines[3].startswith(best) and {row["candidate"] for row in rows} == {"sgd 0.1", "sgd 0.01"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "lime"], "no model 'lime' (did you mean 'line'?)"),
        (["--version", "line"], "write line/12"),
        (["--version", "line/999999"], "line v999999: no manifest of it was read; the newest of line are"),
        (["--candidates", "tests.replay.sweep:rate"], "has no 'rate'"),
        (["--candidates", "tests.replay.sweep:nothing"], "no mapping of candidates"),
        (["--candidates", "tests.replay.sweep:strange"], "'strange' asks for 'levle'"),
        (["--from", "yesterday"], "'yesterday' is no time"),
    ],
)
def test_what_cannot_be_tried_is_one_sentence(
    kafka: KafkaCluster, original: Tape, words: list[str], told: str
) -> None:
    done = run(kafka, original, *words)
    assert done.returncode != 0
    assert told in done.stderr and "Traceback" not in done.stderr


def test_a_stretch_without_predictions_says_so(kafka: KafkaCluster, original: Tape) -> None:
    done = run(kafka, original, "--from", "2100-01-01")
    assert done.returncode == 0, done.stderr
    assert "no predictions in this stretch" in done.stdout
