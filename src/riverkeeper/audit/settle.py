"""The sums: causes against effects, and what met at a key. Pure; rows come sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

from ..models.pipeline import Pipeline
from .report import Notebook, Place, Topic
from .rule import Horizon, Rule
from .scratch import Cause, Effect, Meeting

OUTCOMES_PER_PREDICTION = 5  # joined outcomes remembered per prediction that may wait, as declared for join


class Expect(IntEnum):
    """What a cause must have."""

    FACT = 1
    OUTCOME = 2
    LETTER = 3
    NOTHING = 4  # its id came before
    UNKNOWN = 5  # whether its id came before stands where the log was not read
    PREDICTION = 6
    PASSED = 7  # the reading rule passes it over: readers make nothing of it


RESULT = {
    Expect.FACT: Topic.FACTS,
    Expect.OUTCOME: Topic.OUTCOMES,
    Expect.LETTER: Topic.DEAD,
    Expect.PREDICTION: Topic.PREDICTIONS,
}
SINGULAR = {
    Topic.FACTS: "fact",
    Topic.OUTCOMES: "outcome",
    Topic.DEAD: "dead letter",
    Topic.PREDICTIONS: "prediction",
}
UNJUDGED = 0  # of a hash: nothing to compare
TOO_LARGE = 1  # `extra` of a dead letter of an example that no record can hold


@dataclass
class Judge:
    """What the merges share. `tainted`: by partition of `facts`, the append time from which on its folds
    cannot be replayed, for a fact there is in doubt."""

    notes: Notebook
    horizon: Horizon
    rule: Rule
    tainted: dict[int, int]

    def taint(self, part: int, at: int) -> None:
        self.tainted[part] = min(at, self.tainted.get(part, at))


def paired(causes: Iterable[Cause], effects: Iterable[Effect]) -> Iterator[tuple[Cause | None, list[Effect]]]:
    """Each cause with what names it, and what names no cause that was read; in order."""
    groups = groupby(effects, key=lambda e: (e.cause_part, e.cause_off))
    at, group = _next(groups)
    for cause in causes:
        here = (cause.part, cause.off)
        while at is not None and at < here:
            yield None, group
            at, group = _next(groups)
        if at == here:
            yield cause, group
            at, group = _next(groups)
        else:
            yield cause, []
    while at is not None:
        yield None, group
        at, group = _next(groups)


def _next(
    groups: Iterator[tuple[tuple[int, int], Iterator[Effect]]],
) -> tuple[tuple[int, int] | None, list[Effect]]:
    found = next(groups, None)
    return (None, []) if found is None else (found[0], list(found[1]))


class Settlement:
    """The causes of one topic, each against its effects."""

    def __init__(self, judge: Judge, topic: Topic) -> None:
        self._judge = judge
        self._notes = judge.notes
        self._horizon = judge.horizon
        self._topic = topic

    def settle(self, pairs: Iterable[tuple[Cause | None, list[Effect]]]) -> None:
        for cause, effects in pairs:
            firsts = self._firsts(cause, effects)
            if cause is None:
                self._uncaused(firsts)
            elif cause.expect == Expect.PASSED:
                self._of_a_copy(cause, firsts)
            else:
                self._judged(cause, effects, firsts)

    def _firsts(self, cause: Cause | None, effects: list[Effect]) -> list[Effect]:
        """The effects that the reading rule admits; the others are repeats of them, or out of order."""
        if all(effect.first for effect in effects):
            return effects
        seen: set[tuple[int, int, int]] = set()
        firsts = []
        for effect in effects:
            stream = (effect.topic, effect.part, effect.n)
            if effect.first:
                firsts.append(effect)
            elif stream in seen or self._before_the_start(cause, effect):
                self._notes.repeats[Topic(effect.topic).suffix] += 1
            else:
                self._reordered(cause, effect)
            seen.add(stream)
        return firsts

    def _before_the_start(self, cause: Cause | None, effect: Effect) -> bool:
        """Whether what this may be a copy of may stand where the log was not read."""
        if cause is None:
            return not self._horizon.holds(self._topic, effect.cause_part, effect.cause_off)
        return cause.at < self._horizon.since(Topic(effect.topic), effect.part)

    def _reordered(self, cause: Cause | None, effect: Effect) -> None:
        self._find(
            "reordered",
            effect,
            f"stands after effects of later {self._topic.suffix}, so that who follows the reading rule never sees it",
            cause,
        )

    def _told(self, row: Cause | Effect) -> list[int]:
        """By which hashes this record is known elsewhere: other facts may have the same features."""
        hashes = (row.content,) if self._topic is Topic.FACTS else (row.content, row.extra)
        return [each for each in hashes if each not in (UNJUDGED, TOO_LARGE)]

    def _find(self, kind: str, effect: Effect, text: str, cause: Cause | None = None) -> None:
        named = f"{self._topic.suffix}/{effect.cause_part}/{effect.cause_off}"
        told = [*self._told(effect), *(self._told(cause) if cause is not None else ())]
        if self._notes.explained(*told):
            return
        place = Place(Topic(effect.topic), effect.part, effect.off)
        self._notes.find(kind, place, f"{text} (its cause: {named})", *told)  # type: ignore[arg-type]
        if place.topic is Topic.FACTS:
            self._judge.taint(place.partition, cause.at if cause is not None else 0)

    def _uncaused(self, firsts: Sequence[Effect]) -> None:
        for effect in firsts:
            at = (self._topic, effect.cause_part, effect.cause_off)
            if self._horizon.impossible(*at):
                self._find("doubled", effect, "names a cause that was never there")
            elif self._horizon.holds(*at):
                if (
                    effect.topic == Topic.DEAD
                    and effect.extra == TOO_LARGE
                    and self._topic is not Topic.EVENTS
                ):
                    continue  # the cause was read; what it made fits no record
                told = self._told(effect)
                if not self._notes.explained(*told):
                    here = Place(Topic(effect.topic), effect.part, effect.off)
                    text = f"is not there, and {here} followed from it"
                    self._notes.find("lost", Place(*at), text, *told, named_by=here)

    def _of_a_copy(self, cause: Cause, firsts: Sequence[Effect]) -> None:
        for effect in firsts:
            self._find("doubled", effect, "follows from a record that the reading rule passes over", cause)

    def _judged(self, cause: Cause, effects: Sequence[Effect], firsts: Sequence[Effect]) -> None:
        if not firsts:
            if not effects:
                self._missing(cause)
            return
        if len(firsts) > 1:
            firsts = sorted(firsts, key=lambda each: not self._is_due(cause, each))
            for effect in firsts[1:]:
                self._find("doubled", effect, f"is one {SINGULAR[Topic(effect.topic)]} too many", cause)
        effect = firsts[0]
        if cause.expect == Expect.UNKNOWN:
            return
        if cause.expect == Expect.NOTHING:
            self._find("doubled", effect, "has an id that came before in its partition", cause)
        elif RESULT[Expect(cause.expect)] != effect.topic:
            self._instead(cause, effect)
        else:
            self._compared(cause, effect)

    @staticmethod
    def _is_due(cause: Cause, effect: Effect) -> bool:
        due = (RESULT.get(Expect(cause.expect)), cause.place, cause.content)
        return due == (effect.topic, effect.part, effect.content)

    def _instead(self, cause: Cause, effect: Effect) -> None:
        due, found = SINGULAR[RESULT[Expect(cause.expect)]], SINGULAR[Topic(effect.topic)]
        kind = "lost" if effect.topic == Topic.DEAD else "altered"
        self._find(kind, effect, f"is a {found}, where a {due} is due", cause)

    def _compared(self, cause: Cause, effect: Effect) -> None:
        if (
            effect.content == UNJUDGED
        ):  # it was found unreadable; what follows from its cause is not judged either
            self._notes.explain(*self._told(cause))
        elif effect.content != cause.content and cause.content != UNJUDGED:
            self._find("altered", effect, "does not say what its cause does", cause)
        elif effect.part != cause.place:
            self._find("altered", effect, f"belongs to partition {cause.place}", cause)
        elif effect.topic == Topic.PREDICTIONS:
            self._replayed(cause, effect)
        elif effect.topic == Topic.DEAD and UNJUDGED not in (effect.extra, cause.extra):
            if effect.extra != cause.extra:
                self._find("altered", effect, "has not kept the headers of its cause", cause)

    def _replayed(self, cause: Cause, effect: Effect) -> None:
        if UNJUDGED in (cause.extra, effect.extra) or cause.extra == effect.extra:
            return
        if cause.at >= self._judge.tainted.get(cause.part, cause.at + 1):
            return
        self._find(
            "altered", effect, "was not made from the features that a replay of the facts gives", cause
        )

    def _missing(self, cause: Cause) -> None:
        if cause.expect in (Expect.NOTHING, Expect.UNKNOWN):
            self._notes.counts["duplicates"] += cause.expect == Expect.NOTHING
            return
        result = RESULT[Expect(cause.expect)]
        told = self._told(cause)
        if self._notes.explained(*told):
            return
        place = Place(self._topic, cause.part, cause.off)
        if cause.at < self._horizon.since(result, cause.place):
            self._notes.unchecked[f"{self._topic.suffix} older than what was read of {result.suffix}"] += 1
        elif self._passed(cause, result):
            self._notes.find("lost", place, f"has no {SINGULAR[result]}", *told)
            if result is Topic.FACTS:
                self._judge.taint(cause.place, cause.at)
        else:
            self._notes.pending[self._topic.suffix] += 1

    def _passed(self, cause: Cause, result: Topic) -> bool:
        """Whether its agent had gone past it: by its checkpoint, or by what follows on the same partition."""
        position = self._horizon.positions.get((self._topic, cause.part), 0)
        reached = self._judge.rule.reached(result, cause.place, self._topic, cause.part)
        return cause.off < max(position, reached)


class Joining:
    """Predictions, outcomes and examples of one key against each other.

    Any interleaving of a partition's predictions and outcomes is a legitimate run of the join. So a
    pair must have met if neither can have expired before the other was read; that is, if the greatest
    append time of either's topic up to it is within the declared time of the other's own.
    """

    def __init__(
        self,
        judge: Judge,
        pipeline: Pipeline,
        excused: Callable[[Topic, int, int], bool],
        outcomes: dict[int, int],
    ) -> None:
        self._notes = judge.notes
        self._horizon = judge.horizon
        self._rule = judge.rule
        self._within = int(pipeline.label.within.total_seconds() * 1000)
        self._room = pipeline.max_pending * OUTCOMES_PER_PREDICTION
        self._excused = excused
        self._outcomes = outcomes  # by partition: how many there are
        self.unsound: set[int] = set()  # partitions of `examples` with a finding

    def settle(self, meetings: Iterable[Meeting]) -> None:
        for _, group in groupby(meetings, key=lambda m: (m.part, m.key)):
            by_topic: dict[int, list[Meeting]] = {}
            for meeting in group:
                by_topic.setdefault(meeting.topic, []).append(meeting)
            self._met(
                by_topic.get(Topic.PREDICTIONS, []),
                by_topic.get(Topic.OUTCOMES, []),
                by_topic.get(Topic.EXAMPLES, []),
            )

    def _met(
        self, predictions: Sequence[Meeting], outcomes: Sequence[Meeting], examples: Sequence[Meeting]
    ) -> None:
        waiting = list(predictions)
        for example in examples:
            found = next(
                (p for p in waiting if (p.content, p.served) == (example.content, example.served)), None
            )
            found = found or next((p for p in waiting if p.content == example.content), None)
            if found is None:
                self._unpredicted(example, predictions)
                continue
            waiting.remove(found)
            self._same(example, found, outcomes)
        gone = False
        for prediction in waiting:
            gone |= self._unjoined(prediction, predictions, outcomes, gone)

    def _unpredicted(self, example: Meeting, predictions: Sequence[Meeting]) -> None:
        if not self._horizon.whole(Topic.PREDICTIONS, example.part) or not self._caused(example):
            return
        if any(p.content == example.content for p in predictions):
            self._find("doubled", example, "is the second example of one prediction")
        elif not self._notes.explained(example.content):
            self._find("doubled", example, "was made of nothing that was predicted")

    def _caused(self, example: Meeting) -> bool:
        return self._horizon.caused(Topic.EXAMPLES, example.part, example.off)

    def _same(self, example: Meeting, prediction: Meeting, outcomes: Sequence[Meeting]) -> None:
        said = Place(Topic.PREDICTIONS, prediction.part, prediction.off)
        if prediction.at < self._horizon.since(Topic.PREDICTIONS, prediction.part):
            return  # what was served may be an earlier copy, where the log was not read
        if example.served != prediction.served and not self._notes.explained(prediction.content):
            self._find("altered", example, f"is not what {said} served")
        labels = {outcome.content for outcome in outcomes}
        whole = self._horizon.whole(Topic.OUTCOMES, example.part) and self._caused(example)
        if example.label not in labels and whole and not self._notes.explained(example.key):
            self._find("altered", example, "has a label that no outcome of its key gives")

    def _unjoined(
        self, prediction: Meeting, predictions: Sequence[Meeting], outcomes: Sequence[Meeting], gone: bool
    ) -> bool:
        """Judges a prediction without an example. Returns whether it may have left before its outcome came:
        what comes of later predictions of its key then depends on the order of reading."""
        outcome = next((o for o in outcomes if self._in_time(prediction, o)), None)
        if outcome is None or self._undecided(prediction, predictions, outcome, outcomes, gone):
            self._notes.counts["unlabelled"] += 1
            return outcome is None
        if self._notes.explained(prediction.content):
            return False
        if min(prediction.at, outcome.at) < self._horizon.since(Topic.EXAMPLES, prediction.part):
            self._notes.unchecked["predictions older than what was read of examples"] += 1
        elif not self._passed(prediction, outcome):
            self._notes.pending[Topic.PREDICTIONS.suffix] += 1
        elif not self._excused(Topic.PREDICTIONS, prediction.part, prediction.off) and not self._excused(
            Topic.OUTCOMES, outcome.part, outcome.off
        ):
            place = Place(Topic.PREDICTIONS, prediction.part, prediction.off)
            with_ = Place(Topic.OUTCOMES, outcome.part, outcome.off)
            self._notes.find(
                "lost", place, f"has no example, though {with_} came in time", prediction.content
            )
            self.unsound.add(prediction.part)
        return False

    def _undecided(
        self,
        prediction: Meeting,
        predictions: Sequence[Meeting],
        outcome: Meeting,
        outcomes: Sequence[Meeting],
        gone: bool,
    ) -> bool:
        """Whether it depends on the order of reading, or on the room there was, if the two met."""
        later = self._outcomes.get(outcome.part, 0) - outcome.served
        forgotten = prediction is not predictions[0] and later >= self._room
        return gone or forgotten or outcome is not outcomes[0]

    def _in_time(self, prediction: Meeting, outcome: Meeting) -> bool:
        return prediction.at >= outcome.clock - self._within and outcome.at >= prediction.clock - self._within

    def _passed(self, prediction: Meeting, outcome: Meeting) -> bool:
        """Whether the join had read both."""
        return all(
            each.off
            < max(
                self._horizon.positions.get((Topic(each.topic), each.part), 0),
                self._rule.reached(Topic.EXAMPLES, each.part, Topic(each.topic), each.part) + 1,
            )
            for each in (prediction, outcome)
        )

    def _find(self, kind: str, example: Meeting, text: str) -> None:
        place = Place(Topic.EXAMPLES, example.part, example.off)
        self._notes.find(kind, place, text, example.content)  # type: ignore[arg-type]
        self.unsound.add(example.part)
