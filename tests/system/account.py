"""The outside reader's account of a pipeline: what must add up, whatever happened on the way.

Every function asserts, and says what does not hold. They read the topics as any program might, and
the pipeline's declaration; nothing of the agents.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from riverkeeper import Pipeline
from riverkeeper.models.features import FeatureFailure, FoldState
from riverkeeper.models.version import Assembler, parse_key, verify
from riverkeeper.topics.messages import (
    Envelope,
    ErrorCode,
    Example,
    Manifest,
    Prediction,
    Reason,
    ShadowAnswer,
    Source,
    Span,
    State,
    Verdict,
)
from tests.system.harness import SIGNING_KEY, Outside, Place, Record, cause, first, place

MAX_FEATURE_BYTES = 800_000  # of one fact: beyond, its prediction may fit no record, and goes without them


@dataclass(frozen=True)
class Account:
    """What was found, each by the reading rule."""

    facts: Mapping[Place, Envelope]  # type: ignore[type-arg]  # of the pipeline's own types
    outcomes: Mapping[Place, Envelope]  # type: ignore[type-arg]
    dead: int
    duplicates: int
    predictions: Mapping[Place, Prediction]  # by their fact's place
    appended: Mapping[Place, int]  # the prediction's append time in ms, by its fact's place
    examples: Collection[Example]
    copies: int  # records that the reading rule passed over


def all_answered(log: Outside) -> bool:
    """Whether every fact that is there has a prediction; cheap enough to wait on."""
    facts = {str(place(r)) for r in first(log["facts"])}
    return facts == {str(cause(r)[0]) for r in first(log["predictions"])}


def all_learned(pipeline: Pipeline, log: Outside) -> bool:
    """Whether every model at work says, of the line that the verdicts name, that it has learned all examples
    that are there."""
    ends = {r.partition: r.offset + 1 for r in log["examples"]}
    lines = _lines(pipeline, log)
    starts = {m.model: m.offsets for m in _published(log) if m.line == lines.get(m.model)}
    if starts.keys() != lines.keys():
        return False
    missing = {
        (model, partition)
        for model in lines
        for partition, end in ends.items()
        if starts[model].get(partition, 0) < end
    }
    for vitals in log.vitals():
        if not missing:
            return True
        if vitals.agent != "learn" or vitals.line != lines.get(vitals.model):
            continue
        for partition, _, end in reversed(vitals.spans):
            if (vitals.model, partition) in missing:
                missing.remove((vitals.model, partition))
                if end < ends[partition]:
                    return False
    return not missing


def _lines(pipeline: Pipeline, log: Outside) -> dict[str, int]:
    """By model at work, its line in force: a verdict that follows another than the last one counts for nothing."""
    last = dict.fromkeys(pipeline.models, -1)
    lines = dict.fromkeys(pipeline.models, 0)
    for record in log["verdicts"]:
        verdict = Verdict.model_validate_json(record.value or b"")
        if verdict.follows == last.get(verdict.model):
            last[verdict.model], lines[verdict.model] = record.offset, verdict.line
            if verdict.state is State.DESTROYED:
                del lines[verdict.model]
    return lines


def _published(log: Outside) -> list[Manifest]:
    """Newest last."""
    return [
        Manifest.model_validate_json(r.value)
        for r in log["models"]
        if r.value is not None and (r.key or b"").count(b"/") == 1
    ]


def adds_up(pipeline: Pipeline, log: Outside) -> Account:
    """Events, facts, outcomes, dead letters, predictions and examples, each against its causes."""
    facts = _typed(log["facts"], Envelope[pipeline.facts])  # type: ignore[name-defined]
    outcomes = _typed(log["outcomes"], Envelope[pipeline.outcomes])  # type: ignore[name-defined]
    duplicates = _events_settled(log)
    predictions = _facts_answered(pipeline, log, facts)
    _features_replay(pipeline, facts, predictions)
    examples = _outcomes_joined(pipeline, log, outcomes, predictions)
    firsts = {suffix: list(first(log[suffix])) for suffix in ("facts", "outcomes", "dead", "predictions")}
    return Account(
        facts=facts,
        outcomes=outcomes,
        dead=len(firsts["dead"]),
        duplicates=duplicates,
        predictions=predictions,
        appended={cause(r)[0]: r.timestamp for r in firsts["predictions"]},
        examples=examples,
        copies=sum(len(log[suffix]) - len(found) for suffix, found in firsts.items()),
    )


def _typed(records: list[Record], kind: type) -> dict[Place, Envelope]:  # type: ignore[type-arg]
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
    return {place(r): decoder.decode(r.value or b"") for r in first(records)}


class _Named(msgspec.Struct):
    id: str | int


def _events_settled(log: Outside) -> int:
    """Each event is one fact, outcome or dead letter, or repeats an id; returns how many repeat."""
    events = {place(r): r for r in log["events"]}
    effects = [r for suffix in ("facts", "outcomes", "dead") for r in first(log[suffix])]
    settled = Counter(cause(r)[0] for r in effects)
    assert settled.keys() <= events.keys(), "effects name events that are not there"
    assert max(settled.values()) == 1, f"events with two effects: {settled.most_common(3)}"
    repeats = repeating(log["events"])
    assert events.keys() - settled.keys() == repeats, "events without effect are not those that repeat"
    for letter in first(log["dead"]):
        event = events[cause(letter)[0]]
        assert (letter.key, letter.value) == (event.key, event.value), "a dead letter keeps key and bytes"
        headers = dict(letter.headers)
        assert ErrorCode(headers["code"].decode()) and headers["reason"]
    return len(repeats)


def repeating(events: list[Record]) -> set[Place]:
    """Those whose id came before in their partition."""
    known: set[tuple[int, str | int]] = set()
    repeats = set()
    for event in events:
        try:
            named = (event.partition, msgspec.json.decode(event.value or b"", type=_Named).id)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if named in known:
            repeats.add(place(event))
        known.add(named)
    return repeats


def _facts_answered(
    pipeline: Pipeline,
    log: Outside,
    facts: Mapping[Place, Envelope],  # type: ignore[type-arg]
) -> dict[Place, Prediction]:
    decoder = msgspec.json.Decoder(Prediction)
    found: dict[Place, Prediction] = {}
    for record in first(log["predictions"]):
        fact, n = cause(record)
        prediction = decoder.decode(record.value or b"")
        assert n == 0 and fact not in found, f"two first predictions for {fact}"
        assert fact in facts, f"a prediction names {fact}, which is no fact"
        assert prediction.fact == str(fact), "lineage and origin name different facts"
        envelope = facts[fact]
        assert (prediction.id, prediction.time) == (envelope.id, envelope.time)
        assert prediction.key == str(getattr(envelope.data, pipeline.join))
        _admissible(pipeline, prediction)
        found[fact] = prediction
    missing = facts.keys() - found.keys()
    assert not missing, f"{len(missing)} facts have no prediction, such as {min(missing)}"
    copies = {p.id for p in found.values()}
    assert {decoder.decode(r.value or b"").id for r in log["predictions"]} == copies
    return found


def _admissible(pipeline: Pipeline, prediction: Prediction) -> None:
    """Inside the bounds, and true about who answered."""
    value, bounds = prediction.value, pipeline.bounds
    assert isinstance(value, float)
    assert math.isfinite(value) and bounds.low <= value <= bounds.high, prediction
    assert prediction.fingerprint == pipeline.fingerprint
    trial = {pipeline.canary.model} if pipeline.canary is not None else set()
    assert prediction.asked in {*pipeline.shares, *trial}
    if prediction.source is Source.MODEL:
        assert prediction.reason == "" and prediction.version > 0, prediction
        assert prediction.model == prediction.asked, prediction
    else:
        assert Reason(prediction.reason), prediction
        assert prediction.model in (pipeline.fallback, "constant"), prediction


def _features_replay(
    pipeline: Pipeline,
    facts: Mapping[Place, Envelope],  # type: ignore[type-arg]
    predictions: Mapping[Place, Prediction],
) -> None:
    """The features served are what the facts give when folded straight through, restarts or not."""
    for partition in {at.partition for at in facts}:
        places = sorted(at for at in facts if at.partition == partition)
        rows = pipeline.graph.extract(FoldState(), [facts[at] for at in places])
        for at, row in zip(places, rows, strict=True):
            failed = isinstance(row, FeatureFailure)
            assert not failed or predictions[at].reason == Reason.FEATURE_FAILED, f"{at} has no features"
            encoded = b"{}" if failed else msgspec.json.encode(row)
            if predictions[at].reason == Reason.FEATURE_FAILED:
                assert failed or len(encoded) > MAX_FEATURE_BYTES, f"the features of {at} did not fail"
                encoded = b"{}"
            assert msgspec.json.decode(encoded) == predictions[at].features, (
                f"features served for {at} are not those of a replay"
            )


def _outcomes_joined(
    pipeline: Pipeline,
    log: Outside,
    outcomes: Mapping[Place, Envelope],  # type: ignore[type-arg]
    predictions: Mapping[Place, Prediction],
) -> list[Example]:
    """One example for each prediction whose outcome came, with what was served; no copies at all."""
    examples = [msgspec.json.decode(r.value or b"", type=Example) for r in log["examples"]]
    by_key = {e.key: e for e in examples}
    assert len(by_key) == len(examples), "a prediction became two examples"
    labels = {o.key: pipeline.label_of(o.data) for o in outcomes.values()}
    labelled = [p for p in predictions.values() if p.key in labels]
    assert by_key.keys() == {p.key for p in labelled}, "examples are not the labelled predictions"
    for said in labelled:
        example = by_key[said.key]
        assert example.label == labels[said.key]
        served = (said.id, said.time, said.features, said.value, said.source, said.model, said.version)
        assert served == (
            example.id,
            example.time,
            example.features,
            example.served,
            example.source,
            example.model,
            example.version,
        ), f"{said.key}: the example is not what was served"
        assert example.baseline == said.baseline
    return examples


def manifests(log: Outside) -> dict[str, list[Manifest]]:
    """The versions of each model in the order of the log; none written twice, all signed and whole."""
    library = Assembler(keep=1_000)
    found: dict[str, list[Manifest]] = {}
    deleted: set[tuple[str, int]] = set()
    for record in log["models"]:
        key = parse_key(record.key or b"")
        library.feed(record.key or b"", record.value)
        if record.value is None:
            deleted.add((key.model, key.version))
        elif record.key == f"{key.model}/{key.version}".encode():
            manifest = Manifest.model_validate_json(record.value)
            verify(manifest, SIGNING_KEY.encode())
            found.setdefault(manifest.model, []).append(manifest)
    for model, versions in found.items():
        numbers = [m.version for m in versions]
        assert numbers == sorted(set(numbers)), f"{model}: versions were forked: {numbers}"
        for manifest in versions:
            if (model, manifest.version) not in deleted:
                library.blob(model, manifest.version)  # checks size and hash
    return found


def learned_once(log: Outside, found: Mapping[str, list[Manifest]], *, to_the_end: bool) -> None:
    """Along each model's line of descent the spans meet end to end, from the first example on."""
    offsets: dict[int, list[int]] = {}
    for record in log["examples"]:
        offsets.setdefault(record.partition, []).append(record.offset)
    for model, versions in found.items():
        spans = _descent({m.version: m for m in versions}, versions[-1])
        reached: dict[int, int] = {}
        count = 0
        for span, skipped in spans:
            at = reached.get(span.partition, 0)
            assert span.start == at, f"{model}: a span begins at {span.start}, the one before ended at {at}"
            reached[span.partition] = span.end
            if not skipped:
                count += sum(span.start <= o < span.end for o in offsets.get(span.partition, ()))
        newest = versions[-1]
        assert {p: o for p, o in newest.offsets.items() if o} == reached, model
        assert newest.learned == count, f"{model} says it learned {newest.learned}, its spans hold {count}"
        if to_the_end:
            ends = {partition: held[-1] + 1 for partition, held in offsets.items()}
            assert reached == ends, f"{model} learned up to {reached} of {ends}"


def _descent(versions: Mapping[int, Manifest], newest: Manifest) -> list[tuple[Span, bool]]:
    """Spans along the parents, oldest first within each partition: (span, whether it was skipped)."""
    chain = [newest]
    while chain[-1].parent:
        chain.append(versions[chain[-1].parent])
    spans: list[tuple[Span, bool]] = []
    for manifest in reversed(chain):
        own = [(Span(*s), False) for s in manifest.spans] + [(Span(*s), True) for s in manifest.skipped]
        spans += sorted(own)
    return spans


def shadows_complete(pipeline: Pipeline, log: Outside, account: Account) -> dict[str, int]:
    """By model: facts that it answered in shadow, each at most once; all of them real facts."""
    answers: dict[str, list[Place]] = {}
    ids = {at: fact.id for at, fact in account.facts.items()}
    for record in first(log["shadow"]):
        said = msgspec.json.decode(record.value or b"", type=ShadowAnswer)
        fact, _ = cause(record)
        assert ids[fact] == said.id
        assert said.version > 0 and (said.value is not None) is (said.reason == ""), said
        answers.setdefault(said.model, []).append(fact)
    for model, places in answers.items():
        assert len(places) == len(set(places)), f"{model} answered a fact twice"
    return {model: len(places) for model, places in answers.items()}
