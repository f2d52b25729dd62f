"""`riverkeeper audit` finds on real Kafka, from outside, exactly the record that was tampered with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from riverkeeper import Pipeline
from riverkeeper.audit.report import Topic
from tests.audit.forge import forged
from tests.audit.tape import Rec, Tape
from tests.brokers.kafka import KafkaCluster
from tests.system.harness import ROOT, SIGNING_KEY, WAIT_S


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def report(self) -> Any:
        return json.loads(self.out)


def environment(address: str, name: str) -> dict[str, str]:
    return {
        **os.environ,
        "RIVERKEEPER_BROKER": address,
        "RIVERKEEPER_SIGNING_KEY": SIGNING_KEY,
        "SYSTEM_KIND": "gauges",
        "SYSTEM_NAME": name,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


WORDS = [sys.executable, "-m", "riverkeeper", "audit", "tests.system.named:pipeline"]


def run(address: str, name: str, *options: str) -> Ran:
    done = subprocess.run(
        [*WORDS, *options],
        cwd=ROOT,
        env=environment(address, name),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


async def audited(kafka: KafkaCluster, tape: Tape) -> tuple[Pipeline, Ran]:
    pipeline = await forged(kafka.address, tape)
    ran = run(kafka.address, pipeline.name, "--json")
    assert ran.code in (0, 1), ran.err
    return pipeline, ran


@pytest.fixture(scope="module")
def standing(kafka: KafkaCluster, original: Tape) -> Pipeline:
    """The tape as it was recorded, with a copy of an early prediction at the end."""
    tape = original.copy()
    tape.append(Topic.PREDICTIONS, tape.topics[Topic.PREDICTIONS][0][0])
    return asyncio.run(forged(kafka.address, tape))


def test_a_log_that_adds_up(kafka: KafkaCluster, standing: Pipeline, original: Tape) -> None:
    ran = run(kafka.address, standing.name, "--json")
    assert (ran.code, ran.report["found"], ran.report["findings"]) == (0, {}, []), ran.out
    assert ran.report["pending"] == {} and ran.report["unchecked"] == []
    assert ran.report["repeats"] == {"predictions": 1}
    counts = ran.report["counts"]
    assert counts["facts"] == counts["predictions"] == sum(1 for _ in original.all(Topic.FACTS))
    assert counts["recomputed"] > 100

    shown = run(kafka.address, standing.name)
    assert shown.code == 0 and "nothing lost" in shown.out


def middle(tape: Tape, topic: Topic) -> Rec:
    records = max(tape.topics[topic], key=len)
    return records[len(records) // 2]


def removed(tape: Tape) -> tuple[str, Topic, Rec]:
    gone = middle(tape, Topic.PREDICTIONS)
    tape.remove(Topic.PREDICTIONS, gone)
    _, partition, offset, _ = gone.origin
    fact = next(r for r in tape.topics[Topic.FACTS][partition] if r.offset == offset)
    return "lost", Topic.FACTS, fact


def doubled(tape: Tape) -> tuple[str, Topic, Rec]:
    last = max(tape.topics[Topic.PREDICTIONS], key=len)[-1]
    topic, partition, offset, n = last.origin
    return (
        "doubled",
        Topic.PREDICTIONS,
        tape.append(Topic.PREDICTIONS, last.caused_by(topic, partition, offset, n + 1)),
    )


def altered(tape: Tape) -> tuple[str, Topic, Rec]:
    old = middle(tape, Topic.EXAMPLES)
    new = old.saying(label=old.json()["label"] + 0.5)
    tape.put(Topic.EXAMPLES, old, new)
    return "altered", Topic.EXAMPLES, new


def beyond(tape: Tape) -> tuple[str, Topic, Rec]:
    old = middle(tape, Topic.PREDICTIONS)
    new = old.saying(value=-1_000.5)
    tape.put(Topic.PREDICTIONS, old, new)
    return "out_of_bounds", Topic.PREDICTIONS, new


@pytest.mark.parametrize("tamper", [removed, doubled, altered, beyond], ids=lambda each: each.__name__)
async def test_one_record(
    kafka: KafkaCluster, tape: Tape, tamper: Callable[[Tape], tuple[str, Topic, Rec]]
) -> None:
    kind, topic, record = tamper(tape)
    pipeline, ran = await audited(kafka, tape)
    assert ran.code == 1
    (finding,) = ran.report["findings"]
    named = (finding["kind"], finding["topic"], finding["partition"], finding["offset"], finding["id"])
    due = (kind, pipeline.topic(topic.suffix), record.partition, record.offset, record.json()["id"])
    assert named == due, finding["text"]
    assert ran.report["found"] == {kind: 1}


def test_since_judges_the_rest_alone(kafka: KafkaCluster, standing: Pipeline, original: Tape) -> None:
    """A copy of what was before the start is still a copy, and what has its cause before is not reported."""
    moment = max(r.timestamp for r in original.all(Topic.VERDICTS)) / 1000
    since = datetime.fromtimestamp(moment, UTC).isoformat()
    ran = run(kafka.address, standing.name, "--json", "--since", since)
    assert ran.code == 0, ran.out
    assert 0 < ran.report["counts"]["facts"] < sum(1 for _ in original.all(Topic.FACTS))
    assert ran.report["repeats"] == {"predictions": 1}
    assert ran.report["unchecked"]


def test_what_cannot_be_audited(kafka: KafkaCluster) -> None:
    absent = run(kafka.address, "nothing-of-the-kind")
    assert absent.code == 2 and absent.err.startswith(
        "Error: topic nothing-of-the-kind.events does not exist"
    )
    nowhere = run("127.0.0.1:1", "nothing-of-the-kind")
    assert nowhere.code == 2 and "no connection to the broker at 127.0.0.1:1" in nowhere.err
    assert run(kafka.address, "x", "--since", "noon").code == 2


@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5])
def test_ctrl_c_ends_it_without_a_trace(kafka: KafkaCluster, standing: Pipeline, seconds: float) -> None:
    """At some moment of its work, whichever."""
    process = subprocess.Popen(
        WORDS,
        cwd=ROOT,
        env=environment(kafka.address, standing.name),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT_S)
    # Before the command has begun, Python itself says so.
    assert b"Traceback" not in err or b"riverkeeper/audit" not in err, err.decode()
    assert process.returncode in (-signal.SIGINT, 0, 1, 130), err
