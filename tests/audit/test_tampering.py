"""One record removed, doubled, altered, put out of order or out of bounds is found, by name, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
import pytest

from riverkeeper.audit.report import Kind, Topic
from riverkeeper.models.version import sign
from riverkeeper.topics.messages import Manifest, Source
from tests.audit.tape import KEY, Rec, Tape, prediction, shown

CAUSED = (Topic.FACTS, Topic.OUTCOMES, Topic.PREDICTIONS, Topic.EXAMPLES, Topic.DEAD)
BY_RULE = (Topic.FACTS, Topic.OUTCOMES, Topic.PREDICTIONS, Topic.DEAD)


@dataclass(frozen=True)
class Named:
    """The one finding that is due. `offset` None: wherever."""

    kind: Kind
    topic: Topic
    partition: int
    offset: int


def of(kind: Kind, topic: Topic, record: Rec) -> Named:
    return Named(kind, topic, record.partition, record.offset)


def cause_of(kind: Kind, topic: Topic, effect: Rec) -> Named:
    _, partition, offset, _ = effect.origin
    return Named(kind, topic, partition, offset)


def found(tape: Tape, obeyed_within_ms: int = 2_000) -> list[Named]:
    findings = tape.audited(obeyed_within_ms=obeyed_within_ms).findings
    names = {f"{tape.pipeline.name}.{topic.suffix}": topic for topic in Topic}
    return [Named(f.kind, names[f.topic], f.partition, f.offset) for f in findings]


def middle(tape: Tape, topic: Topic) -> Rec:
    """One from the midst of the log, with neighbours on both sides."""
    records = max(tape.topics[topic], key=len)
    return records[len(records) // 2]


def neighbours(tape: Tape, topic: Topic) -> tuple[Rec, Rec]:
    """Two records of one cause's partition, one after the other."""
    for records in tape.topics[topic]:
        pairs = list(zip(records, records[1:], strict=False))
        for first, second in pairs[len(pairs) // 2 :] + pairs:
            if first.source == second.source:
                return first, second
    raise AssertionError(f"{topic.suffix} holds no two effects of one partition")


def by_model(tape: Tape) -> Iterator[Rec]:
    """Predictions of the model, by versions whose bytes are kept, whose outcome came."""
    joined = {example.json()["id"] for example in tape.all(Topic.EXAMPLES)}
    newest = max(prediction(r).version for r in tape.all(Topic.PREDICTIONS))
    for record in tape.all(Topic.PREDICTIONS):
        said = prediction(record)
        if said.source is Source.MODEL and said.id in joined and said.version > newest - 10:
            yield record


def effects_of(tape: Tape, topic: Topic, cause: Rec) -> Rec:
    return next(r for r in tape.all(topic) if r.origin[:3] == (cause.topic, cause.partition, cause.offset))


def test_untouched(tape: Tape) -> None:
    notes = tape.audited()
    assert not notes.findings, shown(notes.findings)
    assert not notes.pending and not notes.repeats
    assert notes.counts["recomputed"] > 100 and notes.counts["verdicts"] == 2
    assert notes.counts["duplicates"] == 20 and notes.counts["dead"] == 12


# One record less.

LESS = {
    Topic.EVENTS: lambda tape, gone: of("lost", Topic.EVENTS, gone),
    Topic.FACTS: lambda tape, gone: cause_of("lost", Topic.EVENTS, gone),
    Topic.OUTCOMES: lambda tape, gone: cause_of("lost", Topic.EVENTS, gone),
    Topic.DEAD: lambda tape, gone: cause_of("lost", Topic.EVENTS, gone),
    Topic.PREDICTIONS: lambda tape, gone: cause_of("lost", Topic.FACTS, gone),
    Topic.EXAMPLES: lambda tape, gone: of("lost", Topic.PREDICTIONS, predicted(tape, gone)),
}


def predicted(tape: Tape, example: Rec) -> Rec:
    return next(r for r in tape.all(Topic.PREDICTIONS) if prediction(r).id == example.json()["id"])


@pytest.mark.parametrize("topic", LESS, ids=lambda topic: topic.suffix)
@pytest.mark.parametrize("where", ["middle", "first", "last"])
def test_removed(tape: Tape, topic: Topic, where: str) -> None:
    records = max(tape.topics[topic], key=len)
    settled = {r.origin[1:3] for t in (Topic.FACTS, Topic.OUTCOMES, Topic.DEAD) for r in tape.all(t)}
    if topic is Topic.EVENTS:  # a repeat may go without a trace
        records = [r for r in records if (r.partition, r.offset) in settled and not repeated(tape, r)]
    gone = {"middle": records[len(records) // 2], "first": records[0], "last": records[-1]}[where]
    due = LESS[topic](tape, gone)
    tape.remove(topic, gone)
    assert found(tape) == [due]


def repeated(tape: Tape, event: Rec) -> bool:
    return sum(r.value == event.value for r in tape.topics[Topic.EVENTS][event.partition]) > 1


# One record more.


@pytest.mark.parametrize("topic", CAUSED, ids=lambda topic: topic.suffix)
def test_doubled_under_an_origin_of_its_own(tape: Tape, topic: Topic) -> None:
    last = max(tape.topics[topic], key=len)[-1]
    cause, partition, offset, n = last.origin
    again = tape.append(topic, last.caused_by(cause, partition, offset, n + 1))
    assert found(tape) == [of("doubled", topic, again)]


@pytest.mark.parametrize("topic", BY_RULE, ids=lambda topic: topic.suffix)
def test_doubled_on_another_partition(tape: Tape, topic: Topic) -> None:
    """Both are admitted: each is the greatest of its own stream."""
    source = middle(tape, topic).source
    newest = max((r for r in tape.all(topic) if r.source == source), key=lambda r: r.origin)
    elsewhere = [p for p, records in enumerate(tape.topics[topic]) if records and p != newest.partition]
    again = tape.append(topic, replace(newest, partition=elsewhere[0]))
    assert found(tape) == [of("doubled", topic, again)]


@pytest.mark.parametrize("topic", BY_RULE, ids=lambda topic: topic.suffix)
def test_a_true_repeat_is_a_repeat(tape: Tape, topic: Topic) -> None:
    tape.append(topic, middle(tape, topic))
    notes = tape.audited()
    assert not notes.findings, shown(notes.findings)
    assert dict(notes.repeats) == {topic.suffix: 1}


def test_a_repeat_may_say_something_else(tape: Tape) -> None:
    """A newer version may have answered the second time: the first counts."""
    tape.append(Topic.PREDICTIONS, next(by_model(tape)).saying(value=1.5))
    notes = tape.audited()
    assert not notes.findings and dict(notes.repeats) == {"predictions": 1}


def test_an_example_twice_is_learned_twice(tape: Tape) -> None:
    again = tape.append(Topic.EXAMPLES, middle(tape, Topic.EXAMPLES))
    assert found(tape) == [of("doubled", Topic.EXAMPLES, again)]


def test_without_an_origin(tape: Tape) -> None:
    again = tape.append(Topic.FACTS, replace(middle(tape, Topic.FACTS), headers=()))
    assert found(tape) == [of("doubled", Topic.FACTS, again)]


def test_an_event_twice_is_a_duplicate(tape: Tape) -> None:
    duplicates = tape.audited().counts["duplicates"]
    tape.append(Topic.EVENTS, next(r for r in tape.all(Topic.EVENTS) if b"reading" in (r.value or b"")))
    tape.positions = {place: end + 1 for place, end in tape.positions.items()}
    notes = tape.audited()
    assert not notes.findings and notes.counts["duplicates"] == duplicates + 1


# Out of order.


@pytest.mark.parametrize("topic", BY_RULE, ids=lambda topic: topic.suffix)
def test_reordered(tape: Tape, topic: Topic) -> None:
    first, second = neighbours(tape, topic)
    tape.swap(topic, first, second)
    assert found(tape) == [of("reordered", topic, second)]


# Something else in it.

Change = Callable[[Rec], Rec]


def renamed(record: Rec) -> Rec:
    return record.saying(id="another")


def later(record: Rec) -> Rec:
    return record.saying(time="2026-01-01T12:00:00Z")


def levelled(record: Rec) -> Rec:
    data = record.json()["data"]
    return record.saying(data=data | {"level": data["level"] + 0.001})


ALTERED: dict[str, tuple[Topic, Change]] = {
    "fact-id": (Topic.FACTS, renamed),
    "fact-time": (Topic.FACTS, later),
    "fact-field": (Topic.FACTS, levelled),
    "fact-unreadable": (Topic.FACTS, lambda r: replace(r, value=b"{")),
    "outcome-id": (Topic.OUTCOMES, renamed),
    "outcome-label": (Topic.OUTCOMES, levelled),
    "prediction-id": (Topic.PREDICTIONS, renamed),
    "prediction-time": (Topic.PREDICTIONS, later),
    "prediction-key": (Topic.PREDICTIONS, lambda r: r.saying(key="another")),
    "prediction-value": (Topic.PREDICTIONS, lambda r: r.saying(value=r.json()["value"] + 1e-9)),
    "prediction-features": (
        Topic.PREDICTIONS,
        lambda r: r.saying(features=r.json()["features"] | {"level": 1.0}),
    ),
    "prediction-version": (Topic.PREDICTIONS, lambda r: r.saying(version=r.json()["version"] - 1)),
    "prediction-unheard-version": (Topic.PREDICTIONS, lambda r: r.saying(version=9_999)),
    "prediction-model": (Topic.PREDICTIONS, lambda r: r.saying(model="mean")),
    "prediction-reason": (Topic.PREDICTIONS, lambda r: r.saying(reason="whim")),
    "prediction-fingerprint": (Topic.PREDICTIONS, lambda r: r.saying(fingerprint="0" * 16)),
    "prediction-fact": (Topic.PREDICTIONS, lambda r: r.saying(fact=f"{r.json()['fact']}1")),
    "prediction-unreadable": (Topic.PREDICTIONS, lambda r: replace(r, value=b"{}")),
    "example-label": (Topic.EXAMPLES, lambda r: r.saying(label=r.json()["label"] + 1e-6)),
    "example-served": (Topic.EXAMPLES, lambda r: r.saying(served=1.0)),
    "example-features": (Topic.EXAMPLES, lambda r: r.saying(features={"level": 1.0, "drift": 1.0})),
    "example-version": (Topic.EXAMPLES, lambda r: r.saying(version=0)),
    "example-baseline": (Topic.EXAMPLES, lambda r: r.saying(baseline=1.0)),
    "letter-bytes": (Topic.DEAD, lambda r: replace(r, value=(r.value or b"") + b" ")),
    "letter-header": (Topic.DEAD, lambda r: replace(r, headers=(*r.headers, ("more", b"")))),
    "letter-code": (
        Topic.DEAD,
        lambda r: replace(r, headers=(r.headers[0], ("code", b"mood"), r.headers[2])),
    ),
    "letter-key": (Topic.DEAD, lambda r: replace(r, key=b"another")),
}


@pytest.mark.parametrize("name", ALTERED)
def test_altered(tape: Tape, name: str) -> None:
    topic, change = ALTERED[name]
    if topic is Topic.PREDICTIONS:
        models = list(by_model(tape))
        old = models[len(models) // 2]
    else:
        old = middle(tape, topic)
    tape.put(topic, old, change(old))
    assert found(tape) == [of("altered", topic, old)]


def test_an_event_altered_afterwards(tape: Tape) -> None:
    fact = middle(tape, Topic.FACTS)
    _, partition, offset, _ = fact.origin
    event = next(r for r in tape.topics[Topic.EVENTS][partition] if r.offset == offset)
    tape.put(Topic.EVENTS, event, event.saying(level=1.0))
    assert found(tape) == [of("altered", Topic.FACTS, fact)]


def test_a_constant_that_is_none(tape: Tape) -> None:
    old = next(r for r in tape.all(Topic.PREDICTIONS) if prediction(r).model == "constant")
    tape.put(Topic.PREDICTIONS, old, old.saying(value=3.0))
    assert found(tape) == [of("altered", Topic.PREDICTIONS, old)]


# Out of bounds.


@pytest.mark.parametrize("value", [1_000.1, -1e9])
@pytest.mark.parametrize("field", ["value", "baseline"])
def test_out_of_bounds(tape: Tape, field: str, value: float) -> None:
    old = next(by_model(tape))
    tape.put(Topic.PREDICTIONS, old, old.saying(**{field: value}))
    assert found(tape) == [of("out_of_bounds", Topic.PREDICTIONS, old)]


def test_a_copy_out_of_bounds(tape: Tape) -> None:
    again = tape.append(Topic.PREDICTIONS, next(by_model(tape)).saying(value=5e3))
    assert found(tape) == [of("out_of_bounds", Topic.PREDICTIONS, again)]


# Versions.


def manifests(tape: Tape) -> list[Rec]:
    of_line = [r for r in tape.all(Topic.MODELS) if (r.key or b"").startswith(b"line/")]
    return [r for r in of_line if (r.key or b"").count(b"/") == 1 and r.value is not None]


def rewritten(tape: Tape, record: Rec, **changed: object) -> None:
    """As the learner itself would have written it."""
    manifest = Manifest.model_validate_json(record.value or b"").model_copy(update=changed)
    tape.put(Topic.MODELS, record, replace(record, value=sign(manifest, KEY).encode()))


def learning(tape: Tape) -> tuple[Rec, Manifest]:
    """A version from the midst that has learned of some partition something."""
    for record in manifests(tape)[3:]:
        manifest = Manifest.model_validate_json(record.value or b"")
        if any(span[2] - span[1] > 2 for span in manifest.spans):
            return record, manifest
    raise AssertionError("no version learned anything")


def test_a_manifest_removed(tape: Tape) -> None:
    gone = manifests(tape)[3]
    tape.remove(Topic.MODELS, gone)
    assert found(tape) == [Named("lost", Topic.MODELS, gone.partition, -1)]


def test_a_manifest_forged(tape: Tape) -> None:
    record = manifests(tape)[-1]
    manifest = Manifest.model_validate_json(record.value or b"")
    forged = manifest.model_copy(update={"learned": manifest.learned + 1})
    tape.put(Topic.MODELS, record, replace(record, value=forged.encode()))
    assert found(tape)[0] == of("altered", Topic.MODELS, record)


def test_a_version_forked(tape: Tape) -> None:
    record = manifests(tape)[-1]
    manifest = Manifest.model_validate_json(record.value or b"")
    other = sign(manifest.model_copy(update={"sha256": "0" * 64}), KEY)
    fork = tape.append(Topic.MODELS, replace(record, value=other.encode()))
    assert found(tape) == [of("doubled", Topic.MODELS, fork)]


def chunks(tape: Tape, manifest: Manifest) -> list[Rec]:
    prefix = f"line/{manifest.version}/".encode()
    return [r for r in tape.all(Topic.MODELS) if (r.key or b"").startswith(prefix)]


@pytest.mark.parametrize("kind", ["lost", "altered"])
def test_a_chunk(tape: Tape, kind: Kind) -> None:
    record = manifests(tape)[-1]
    chunk = chunks(tape, Manifest.model_validate_json(record.value or b""))[0]
    if kind == "lost":
        tape.remove(Topic.MODELS, chunk)
    else:
        tape.put(Topic.MODELS, chunk, replace(chunk, value=(chunk.value or b"")[:-1] + b"!"))
    assert found(tape) == [of(kind, Topic.MODELS, record)]


def test_examples_left_out(tape: Tape) -> None:
    record, manifest = learning(tape)
    spans = list(manifest.spans)
    at = next(i for i, span in enumerate(spans) if span[2] - span[1] > 2)
    partition, start, end = spans[at]
    held = [r.offset for r in tape.topics[Topic.EXAMPLES][partition] if start <= r.offset < end]
    spans[at] = type(spans[at])(partition, held[1], end)
    rewritten(tape, record, spans=tuple(spans))
    assert Named("unlearned", Topic.EXAMPLES, partition, held[0]) in found(tape)


def test_examples_learned_again(tape: Tape) -> None:
    record, manifest = learning(tape)
    partition, start, _ = next(span for span in manifest.spans if span[1] > 0)
    held = [r.offset for r in tape.topics[Topic.EXAMPLES][partition] if r.offset < start]
    spans = tuple(
        type(s)(partition, held[-1], s[2]) if (s[0], s[1]) == (partition, start) else s
        for s in manifest.spans
    )
    rewritten(tape, record, spans=spans)
    assert Named("doubled", Topic.EXAMPLES, partition, held[-1]) in found(tape)


def test_examples_skipped_without_a_verdict(tape: Tape) -> None:
    record, manifest = learning(tape)
    span = next(span for span in manifest.spans if span[2] - span[1] > 2)
    held = [r.offset for r in tape.topics[Topic.EXAMPLES][span[0]] if span[1] <= r.offset < span[2]]
    rest = tuple(s for s in manifest.spans if s != span)
    rewritten(tape, record, spans=rest, skipped=(*manifest.skipped, span))
    assert Named("unlearned", Topic.EXAMPLES, span[0], held[0]) in found(tape)


# Verdicts.


def quarantine(tape: Tape) -> Rec:
    return tape.topics[Topic.VERDICTS][0][0]


def test_served_long_after_a_verdict(tape: Tape) -> None:
    old, middle = next(by_model_before(tape)), quarantined_for(tape) // 2
    tape.put(Topic.PREDICTIONS, old, replace(old, timestamp=quarantine(tape).timestamp + middle))
    assert found(tape, obeyed_within_ms=middle - 1) == [of("disobeyed", Topic.PREDICTIONS, old)]


def quarantined_for(tape: Tape) -> int:
    ruling, admitted = tape.topics[Topic.VERDICTS][0]
    return admitted.timestamp - ruling.timestamp


def by_model_before(tape: Tape) -> Iterator[Rec]:
    for record in tape.all(Topic.PREDICTIONS):
        if prediction(record).source is Source.MODEL and record.timestamp < quarantine(tape).timestamp:
            yield record


def test_served_soon_after_a_verdict(tape: Tape) -> None:
    """Within the lease and the way to the broker nobody can know."""
    old, middle = next(by_model_before(tape)), quarantined_for(tape) // 2
    tape.put(Topic.PREDICTIONS, old, replace(old, timestamp=quarantine(tape).timestamp + middle))
    assert found(tape, obeyed_within_ms=middle + 1) == []


def test_served_against_a_verdict_that_it_knew(tape: Tape) -> None:
    old = next(by_model_before(tape))
    tape.put(Topic.PREDICTIONS, old, old.saying(verdict=quarantine(tape).offset))
    assert found(tape) == [of("disobeyed", Topic.PREDICTIONS, old)]


# What is merely on its way.


def test_what_comes_last_is_pending(tape: Tape) -> None:
    """Each effect cut off behind what the agents' checkpoints say."""
    for topic in (Topic.FACTS, Topic.PREDICTIONS):
        cut = tape.copy()
        records = max(cut.topics[topic], key=len)
        last = records[-1]
        cause, partition, offset, _ = last.origin
        cut.positions[Topic(topic - 1 if topic is Topic.FACTS else Topic.FACTS), partition] = offset
        cut.remove(topic, last)
        kinds = {each.kind for each in found(cut)}
        assert kinds <= {"doubled"} and cut.audited().pending, cause


def test_the_audit_says_ids(tape: Tape) -> None:
    old = next(by_model(tape))
    tape.put(Topic.PREDICTIONS, old, old.saying(value=5e3))
    assert tape.audited().findings[0].id == msgspec.json.decode(old.value or b"")["id"]
