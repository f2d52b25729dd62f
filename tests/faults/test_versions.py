"""A version that is cut short, altered, signed with another key, made with other features, or nonsense of 50 MB is
not served; the gate says why; the true ones go on being served, learned from and published."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable

import pytest

from riverkeeper.models.gate import Code
from riverkeeper.models.version import Sealed, environment, seal
from riverkeeper.topics.log import Out, Writer
from riverkeeper.topics.messages import Manifest, Source
from riverkeeper.topics.partition import partition
from tests.faults.readings import predictions
from tests.faults.trial import Trial, Unaccounted
from tests.system.harness import SIGNING_KEY, cause, first, now_ms, place

AHEAD = 1_000  # versions: no learner comes to that number by itself in a trial
LARGE = 50_000_000  # bytes
# s from a fact's append to its prediction's, while 50 MB are read, checked and refused: assembling and hashing
# them takes turns with serving. Generous, for a machine that others use.
BOUND_S = 10.0

Forge = Callable[[Manifest, random.Random], Sealed]


def _sealed(like: Manifest, data: bytes, *, key: str = SIGNING_KEY, fingerprint: str = "") -> Sealed:
    return seal(
        model=like.model,
        version=like.version + AHEAD,
        line=like.line,
        parent=like.version,
        fingerprint=fingerprint or like.fingerprint,
        environment=environment(),
        spans=(),
        offsets=like.offsets,
        learned=like.learned,
        data=data,
        published_ms=int(time.time() * 1000),
        key=key.encode(),
    )


def cut(like: Manifest, rng: random.Random) -> Sealed:
    sealed = _sealed(like, rng.randbytes(4_000))
    (key, value), *rest = sealed.chunks
    return sealed._replace(chunks=[(key, value[: len(value) // 2]), *rest])


def altered(like: Manifest, rng: random.Random) -> Sealed:
    sealed = _sealed(like, rng.randbytes(4_000))
    (key, value), *rest = sealed.chunks
    at = rng.randrange(len(value))
    return sealed._replace(chunks=[(key, value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]), *rest])


def foreign_key(like: Manifest, rng: random.Random) -> Sealed:
    return _sealed(like, pickle.dumps({}), key="another key of the same length, but not ours")


def foreign_features(like: Manifest, rng: random.Random) -> Sealed:
    return _sealed(like, pickle.dumps({}), fingerprint=f"{rng.getrandbits(64):016x}")


def forbidden(like: Manifest, rng: random.Random) -> Sealed:
    return _sealed(like, pickle.dumps(print))


def large(like: Manifest, rng: random.Random) -> Sealed:
    return _sealed(like, rng.randbytes(LARGE))


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (cut, Code.BAD_BYTES),
        (altered, Code.BAD_BYTES),
        (foreign_key, Code.BAD_SIGNATURE),
        (foreign_features, Code.WRONG_FINGERPRINT),
        (forbidden, Code.DOES_NOT_OPEN),
        (large, Code.DOES_NOT_OPEN),
    ],
)
async def test_version(trial: Trial, forge: Forge, code: Code) -> None:
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    forged = forge(_newest(trial), trial.rng)
    written = set(forged.records())
    since = now_ms()
    writer = Writer(trial.world.connection)
    await writer.start()
    where = partition(forged.manifest.model.encode(), trial.world.pipeline.model_partitions)
    topic = trial.world.pipeline.topic("models")
    await writer.write(Out(topic, where, key, value) for key, value in forged.records())
    await writer.stop()
    await trial.until(lambda: _refused(trial, forged.manifest), "the gate refuses it")
    trial.mark()
    await trial.recovered("predictions", "models")
    later = _newest(trial).version
    await trial.until(lambda: _serving(trial) >= later, "the true versions go on being served")
    models = trial.outside["models"]
    models[:] = [
        r for r in models if (r.key, r.value) not in written
    ]  # the ledger is of what the learner wrote
    await _quiet(trial, forged.manifest)
    assert _refused(trial, forged.manifest) == code.value
    longest = max(_waits(trial, since))
    trial.note(f"the longest wait since then: {longest:.2f} s")
    assert longest < BOUND_S


def _newest(trial: Trial) -> Manifest:
    """Of the learner's own."""
    manifests = (
        Manifest.model_validate_json(r.value)
        for r in trial.outside["models"]
        if r.value is not None and (r.key or b"").startswith(b"line/") and (r.key or b"").count(b"/") == 1
    )
    return max((m for m in manifests if m.version < AHEAD), key=lambda m: m.version)


async def _quiet(trial: Trial, forged: Manifest) -> None:
    """The ledger reads all that stands in the log: what it finds may concern the forged version only."""
    try:
        await trial.quiet()
    except Unaccounted as found:
        # To the ledger the forged version is the newest: what came after it is not learned yet.
        text, named = str(found), f"({forged.model}/{forged.version})"
        findings = [line for line in text.splitlines() if f"{trial.world.pipeline.name}." in line]
        assert all(named in line for line in findings), text
        assert findings or "nothing lost, doubled" in text, text
        trial.run.findings.clear()


def _refused(trial: Trial, manifest: Manifest) -> str:
    for vitals in trial.outside.vitals():
        if (vitals.model, vitals.version) == (manifest.model, manifest.version) and vitals.gate:
            return vitals.gate
    return ""


def _serving(trial: Trial) -> int:
    """The version that answered last."""
    said = predictions(trial, range(trial.load.count))[-20:]
    return max((p.version for p in said if p.source is Source.MODEL), default=0)


def _waits(trial: Trial, since: int) -> list[float]:
    """Seconds from the append of each fact that came since then to that of its prediction."""
    facts = first(trial.outside["facts"])
    appended = {place(r): r.timestamp for r in facts if r.timestamp >= since}
    said = first(trial.outside["predictions"])
    return [(r.timestamp - appended[at]) / 1000 for r in said if (at := cause(r)[0]) in appended]
