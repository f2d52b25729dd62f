"""The declaration of a pipeline, checked when it is imported.

Every fault raises `PipelineError`, which names the pipeline, the thing and the remedy.
"""

from __future__ import annotations

import bisect
import hashlib
import importlib
import importlib.util
import io
import itertools
import math
import pickle
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from river import base

from ..topics.messages import Answer, Fact, LabelValue
from .canary import Canary
from .features import Declared, Feature, Fold, Graph, PipelineError, did_you_mean, field_types
from .objectives import Objectives
from .quality import Task

Factory: TypeAlias = Callable[[], Any]  # of a River estimator
Delivery: TypeAlias = Literal["origin", "transactional"]

# A topic's name is at most 249 characters of these; 49 are left for the suffix.
LEGAL_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}")
CONSTANT = "constant"  # the name under which the last fallback answers
SHARES_TOLERANCE = 1e-9
HASHES = 2**32  # values of crc32


@dataclass(frozen=True)
class Label:
    """The outcome's field that is to be predicted, and how long to wait for it."""

    field: str
    within: timedelta


@dataclass(frozen=True)
class Bounds:
    """Where an answer must lie to be served, ends included. Probabilities by class have 0..1 in any case."""

    low: float
    high: float

    def admits(self, answer: Answer) -> bool:
        """Whether the answer is finite and inside; by class, each between 0 and 1, and at least one."""
        if isinstance(answer, dict):
            return bool(answer) and all(0.0 <= probability <= 1.0 for probability in answer.values())
        return self.low <= answer <= self.high and math.isfinite(answer)


@dataclass(frozen=True)
class Dedupe:
    """How far back a repeated id is recognised: by append time, and by number of ids per partition."""

    window: timedelta = timedelta(hours=1)
    ids: int = 1_000_000  # ~100 MB with ids of 36 characters


@dataclass(frozen=True)
class EventFields:
    """Where a plain JSON event keeps its id, its time and its type."""

    id: str = "id"
    time: str = "time"
    type: str = "type"


@dataclass(frozen=True)
class Model:
    """An estimator with its settings. `features` None: all that the pipeline lists.

    With `mini_batch` it learns by `learn_many`, as many examples at once as have arrived.
    """

    factory: Factory
    features: tuple[str, ...] | None = None
    warmup: int = 100  # examples learned before a version's answers are served; 0 for what need not learn
    mini_batch: bool = False


@dataclass(frozen=True)
class Publish:
    """When the learner publishes a version: by examples or by time, whichever is first, within its budget."""

    every_examples: int = 1_000
    every: timedelta = timedelta(seconds=10)
    budget: float = 0.1  # share of the learner's time that snapshots may take
    keep: int = 20  # versions whose bytes are kept


@dataclass(frozen=True)
class Shed:
    """What may be left undone under backlog. What is not declared here is done, however late.

    Score is behind when the oldest fact at hand has waited for `after` (None: half of the deadline, or
    `BACKLOG` without one); models without traffic are then asked for a share of the facts only, chosen by
    the fact's id. Learn is behind when its oldest example has waited for `learn_after`; it then learns a
    share of the examples, by stretches of `SHED_STRETCH` offsets, and marks the others as skipped.
    """

    shadows: float = 0.1  # share still asked: probation goes on, at a tenth of its pace
    examples: float = 1.0  # share still learned; 1: all of them, late
    after: timedelta | None = None
    learn_after: timedelta = timedelta(minutes=5)  # a third of the default `Objectives.max_staleness`


BACKLOG = timedelta(seconds=1)  # ten polls: a waiting fact is no backlog before that
SHED_STRETCH = 200  # examples learned or skipped together, so that a version's spans stay few

DEDUPE = Dedupe()
EVENT = EventFields()
PUBLISH = Publish()
OBJECTIVES = Objectives()
PROBABILITY = Bounds(0.0, 1.0)


class Pipeline:
    """A declaration and what follows from it. Frozen once constructed.

    - `task` is inferred from the estimators and the type of the label
    - `graph` holds the features that some model asks for; `model_features` those of each model, in the
      graph's order; `fingerprint` is the graph's
    - `shares` is the part of the traffic that each serving model gets; they sum to 1
    - `types` maps the type field of an event to its class
    - `trusted` names the modules, apart from River's, that hold parts of the estimators
    - `backlog` is how long a fact may wait before learning makes way for serving, and `shed` applies
    - `revision` is 16 hex digits that change with all that decides which outputs a record has, and on
      which partition; agents of different revisions must not share a checkpoint

    Without `bounds` a classifier has those of a probability. Without `constant` the last fallback is
    0 for regression and 0.5 for a binary label, moved inside the bounds; multiclass must declare it.

    `slices` names features by whose values models are judged apart. `objectives` is what models are held
    to, all or each by name; `policies` judge beside the built-in ones (docs/judgement.md). `canary` is a model
    without traffic that may earn it, by a growing share of the keys.

    A fact whose prediction could not be written within `deadline` of the fact's append is late: no model
    but a cheap fallback is asked for it. Without a deadline nothing is ever late.
    """

    def __init__(
        self,
        *,
        name: str,
        facts: type[Fact],
        outcomes: type[Fact],
        key: str,
        join: str,
        features: Sequence[Declared],
        label: Label,
        models: Mapping[str, Model | Factory],
        serve: str | Mapping[str, float],
        fallback: str,
        bounds: Bounds | None = None,
        constant: Answer | None = None,
        dedupe: Dedupe | None = DEDUPE,
        event: EventFields = EVENT,
        partitions: int = 8,
        model_partitions: int = 1,
        delivery: Delivery = "origin",
        publish: Publish = PUBLISH,
        max_pending: int = 200_000,  # predictions that wait for their outcome, per partition; ~60 MB
        slices: Sequence[str] = (),
        objectives: Objectives | Mapping[str, Objectives] = OBJECTIVES,
        policies: Sequence[Callable[..., Any]] = (),
        canary: Canary | None = None,
        deadline: timedelta | None = None,
        shed: Shed | None = None,
    ) -> None:
        self.name = _checked_name(name)
        self.facts = facts
        self.outcomes = outcomes
        self.key = key
        self.join = join
        self.features = tuple(features)
        self.label = label
        self.dedupe = dedupe
        self.event = event
        self.partitions = partitions
        self.model_partitions = model_partitions
        self.delivery = delivery
        self.publish = publish
        self.max_pending = max_pending
        self.slices = tuple(slices)
        self.policies = tuple(policies)
        self.deadline = deadline
        self.shed = shed
        self.backlog = self._checked_backlog()
        self._check_types()
        self._check_fields()
        self._check_limits()
        self.models = self._checked_models(models)
        self.fallback = self._known_model("fallback", fallback)
        self._objectives = self._checked_objectives(objectives)
        self.shares = self._checked_shares({serve: 1.0} if isinstance(serve, str) else dict(serve))
        self.canary = self._checked_canary(canary)
        self.task = self._checked_task()
        self.bounds = self._checked_bounds(bounds)
        self.constant = self._checked_constant(constant)
        self.graph = Graph.resolve(name, self.features, self._wanted(), facts, key)
        self._check_slices()
        self.model_features = {model: self._features_of(model) for model in self.models}
        self.fingerprint = self.graph.fingerprint
        self.revision = self._revision()
        self.types = {each.type_name(): each for each in (facts, outcomes)}
        self.trusted = frozenset().union(*(own_modules(each.factory()) for each in self.models.values()))
        self._thresholds = tuple(itertools.accumulate(self.shares.values()))
        self._frozen = True

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, "_frozen"):
            raise AttributeError(f"{self.name}: a pipeline is frozen; {name!r} is set where it is declared")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<pipeline {self.name}: {', '.join(self.models)}>"

    # Names in the log

    def topic(self, suffix: str) -> str:
        return f"{self.name}.{suffix}"

    def agent_group(self, agent: str) -> str:
        return f"{self.name}.{agent}"

    def transactional_id(self, agent: str, partition: int) -> str:
        return f"{self.name}.{agent}.{partition}"

    # Traffic

    def route_for(self, fact_ids: Sequence[str]) -> list[str]:
        """The model that each fact is meant for. A function of the id and the shares alone."""
        models = tuple(self.shares)
        if len(models) == 1:
            return [models[0]] * len(fact_ids)
        last = len(models) - 1
        points = (zlib.crc32(fact_id.encode()) / HASHES for fact_id in fact_ids)
        # The sum of the shares may fall short of 1 by a rounding error.
        return [models[min(bisect.bisect_right(self._thresholds, point), last)] for point in points]

    def spared(self, fact_id: str) -> bool:
        """Whether models without traffic are asked for this fact even under backlog."""
        return self.shed is None or zlib.crc32(b"shadow/" + fact_id.encode()) / HASHES < self.shed.shadows

    def taught(self, partition: int, offset: int) -> bool:
        """Whether the example there is learned even if learning is behind."""
        stretch = b"%d/%d" % (partition, offset // SHED_STRETCH)
        return self.shed is None or zlib.crc32(stretch) / HASHES < self.shed.examples

    @property
    def serving(self) -> tuple[str, ...]:
        """The models with traffic, and the fallback: those that are live before any verdict."""
        return tuple(dict.fromkeys((*self.shares, self.fallback)))

    def label_of(self, outcome: Fact) -> LabelValue:
        label: LabelValue = getattr(outcome, self.label.field)
        return label

    def objectives(self, model: str) -> Objectives:
        """What the model is held to."""
        return self._objectives.get(model, OBJECTIVES)

    # Checks

    def _error(self, message: str) -> PipelineError:
        return PipelineError(f"{self.name}: {message}")

    def _check_types(self) -> None:
        for role, each in (("facts", self.facts), ("outcomes", self.outcomes)):
            if not (isinstance(each, type) and issubclass(each, Fact)):
                raise self._error(f"{role}={each!r} is not a class derived from Fact; derive it")
        if self.facts.type_name() == self.outcomes.type_name():
            raise self._error(
                f"{self.facts.__name__} and {self.outcomes.__name__} both have the event type "
                f"{self.facts.type_name()!r}; set event_type on one of them"
            )

    def _check_fields(self) -> None:
        self._check_field("key", self.key, self.facts)
        self._check_field("join", self.join, self.facts)
        self._check_field("join", self.join, self.outcomes)
        self._check_field("label", self.label.field, self.outcomes)
        ours, theirs = (field_types(each)[self.join] for each in (self.facts, self.outcomes))
        if ours != theirs:
            raise self._error(
                f"join {self.join!r} is {ours} in {self.facts.__name__} but {theirs} in "
                f"{self.outcomes.__name__}, and would not meet; give both one type"
            )

    def _check_field(self, role: str, name: str, where: type[Fact]) -> None:
        known = field_types(where)
        if name not in known:
            hint = did_you_mean(name, known, f"; it has {', '.join(sorted(known))}")
            raise self._error(f"{role} {name!r} is not a field of {where.__name__}{hint}")

    def _check_limits(self) -> None:
        positive: dict[str, float | timedelta] = {
            "label within": self.label.within,
            **({"dedupe window": self.dedupe.window, "dedupe ids": self.dedupe.ids} if self.dedupe else {}),
            "partitions": self.partitions,
            "model_partitions": self.model_partitions,
            "publish every_examples": self.publish.every_examples,
            "publish every": self.publish.every,
            "publish budget": self.publish.budget,
            "publish keep": self.publish.keep,
            "max_pending": self.max_pending,
            **({"deadline": self.deadline} if self.deadline is not None else {}),
            "backlog": self.backlog,
            **({"shed learn_after": self.shed.learn_after} if self.shed is not None else {}),
        }
        for name, value in positive.items():
            if not (value > timedelta(0) if isinstance(value, timedelta) else value > 0):
                raise self._error(f"{name} is {value}; it must be more than 0")
        if self.publish.budget > 1:
            raise self._error(f"publish budget is {self.publish.budget}; it is a share of time, at most 1")
        if self.delivery not in get_args(Delivery):
            raise self._error(f"delivery is {self.delivery!r}; choose one of {', '.join(get_args(Delivery))}")

    def _checked_backlog(self) -> timedelta:
        if self.shed is not None:
            for name in ("shadows", "examples"):
                share = getattr(self.shed, name)
                if not 0 <= share <= 1:
                    raise self._error(f"shed {name} is {share}; it is a share, from 0 (none) to 1 (all)")
        after = self.shed.after if self.shed is not None else None
        if after is None:
            return self.deadline / 2 if self.deadline is not None else BACKLOG
        if self.deadline is not None and after > self.deadline:
            raise self._error(
                f"shed after {after} is beyond the deadline {self.deadline}; shadows go before answers do: "
                "make it at most the deadline, or leave it out for half of it"
            )
        return after

    def _checked_models(self, models: Mapping[str, Model | Factory]) -> dict[str, Model]:
        if not models:
            raise self._error("models is empty; declare at least the fallback")
        for name in models:
            if not LEGAL_NAME.fullmatch(name) or name == CONSTANT:
                raise self._error(
                    f"{name!r} cannot name a model; use letters, digits and '._-', but not {CONSTANT!r}"
                )
        return {name: each if isinstance(each, Model) else Model(each) for name, each in models.items()}

    def _known_model(self, role: str, name: str) -> str:
        if name not in self.models:
            hint = did_you_mean(name, self.models, f"; the models are {', '.join(self.models)}")
            raise self._error(f"{role} {name!r} is not one of the models{hint}")
        return name

    def _checked_objectives(self, declared: Objectives | Mapping[str, Objectives]) -> dict[str, Objectives]:
        by_model = (
            dict.fromkeys(self.models, declared) if isinstance(declared, Objectives) else dict(declared)
        )
        for model, objectives in by_model.items():
            self._known_model("objectives", model)
            for wrong in objectives.faults():
                raise self._error(f"objectives of {model!r}: {wrong}")
        for policy in self.policies:
            if not callable(policy):
                raise self._error(f"policies holds {policy!r}; give functions (health, vitals, now)")
        return by_model

    def _check_slices(self) -> None:
        for name in self.slices:
            if name not in self.graph.wanted:
                hint = did_you_mean(name, self.graph.wanted, "; add it to features, and to those of a model")
                raise self._error(f"slices names {name!r}, which is no feature of any model{hint}")

    def _checked_canary(self, canary: Canary | None) -> Canary | None:
        if canary is None:
            return None
        self._known_model("canary", canary.model)
        if canary.model in self.serving:
            raise self._error(
                f"canary {canary.model!r} has traffic already; leave it out of serve and fallback"
            )
        for fault in canary.faults():
            raise self._error(f"canary {canary.model!r}: {fault}")
        return canary

    def _checked_shares(self, shares: dict[str, float]) -> dict[str, float]:
        for model, share in shares.items():
            self._known_model("serve", model)
            if not share > 0:
                raise self._error(
                    f"serve gives {model!r} the share {share}; leave it out to run it in shadow"
                )
        if not abs(sum(shares.values()) - 1.0) <= SHARES_TOLERANCE:
            raise self._error(f"the shares in serve sum to {sum(shares.values())}; they must sum to 1")
        return shares

    def _checked_task(self) -> Task:
        annotation = field_types(self.outcomes)[self.label.field]
        tasks = {model: self._task_of(model, annotation) for model in self.models}
        first, task = next(iter(tasks.items()))
        for model, other in tasks.items():
            if other != task:
                raise self._error(
                    f"model {first!r} is for {task}, but model {model!r} for {other}; "
                    "a pipeline has one task: drop one, or declare two pipelines"
                )
        self._check_label(task, annotation)
        return task

    def _task_of(self, model: str, label: Any) -> Task:
        estimator = self._estimator(model)
        if isinstance(estimator, base.AnomalyDetector):
            raise self._error(f"model {model!r} is an anomaly detector, not supported yet; use a classifier")
        if isinstance(estimator, base.Regressor):
            return "regression"
        if not isinstance(estimator, base.Classifier):
            raise self._error(
                f"model {model!r} is a {type(estimator).__name__}, neither a regressor nor a classifier; "
                "end it in one"
            )
        self._check_classifier(model, estimator, label)
        return "binary" if label is bool else "multiclass"

    def _check_classifier(self, model: str, estimator: Any, label: Any) -> None:
        last = getattr(estimator, "_last_step", estimator)
        if type(last).predict_proba_one is base.Classifier.predict_proba_one:
            raise self._error(
                f"model {model!r}: {type(last).__name__} gives no probabilities; choose a classifier "
                "that has predict_proba_one"
            )
        if label is not bool and not last._multiclass:
            raise self._error(
                f"model {model!r}: {type(last).__name__} tells two classes apart, but label "
                f"{self.label.field!r} is not bool; wrap it in river.multiclass.OneVsRestClassifier"
            )

    def _estimator(self, model: str) -> Any:
        factory = self.models[model].factory
        if not callable(factory):
            raise self._error(
                f"model {model!r} is a {type(factory).__name__}; give a function that makes one: lambda: ..."
            )
        estimator = factory()
        if not isinstance(estimator, base.Estimator):
            raise self._error(
                f"model {model!r} makes a {type(estimator).__name__}, not a River estimator; return one"
            )
        if self.models[model].mini_batch:
            self._check_mini_batch(model, estimator)
        for path in unseeded(estimator):
            raise self._error(
                f"model {model!r}: {path} is not set, and without it a version cannot be rebuilt; "
                "give it a number"
            )
        return estimator

    def _check_mini_batch(self, model: str, estimator: Any) -> None:
        if not isinstance(estimator, base.MiniBatchRegressor | base.MiniBatchClassifier):
            raise self._error(f"model {model!r} cannot learn in mini-batches; leave out mini_batch=True")
        if importlib.util.find_spec("polars") is None:
            raise self._error(
                f"model {model!r} learns in mini-batches, which River takes as data frames; "
                "pip install 'riverkeeper[minibatch]'"
            )

    def _check_label(self, task: Task, annotation: Any) -> None:
        allowed = {"regression": (int, float), "binary": (bool,), "multiclass": (str, int)}[task]
        if annotation not in allowed:
            names = " or ".join(each.__name__ for each in allowed)
            raise self._error(
                f"label {self.label.field!r} of {self.outcomes.__name__} is {annotation}, but its models are "
                f"for {task}; annotate it as {names} (an outcome without a label is not an outcome)"
            )

    def _checked_bounds(self, bounds: Bounds | None) -> Bounds:
        if bounds is None and self.task == "regression":
            raise self._error("a regression needs bounds; declare bounds=Bounds(low, high)")
        bounds = bounds or PROBABILITY
        if not bounds.low < bounds.high:
            raise self._error(f"bounds {bounds.low}..{bounds.high} admit nothing; low must be less than high")
        within = 0.0 <= bounds.low and bounds.high <= 1.0
        if self.task == "binary" and not within:
            raise self._error(f"bounds {bounds.low}..{bounds.high} of a probability must lie in 0..1")
        if self.task == "multiclass" and bounds != PROBABILITY:
            raise self._error("bounds do not apply to probabilities by class; drop them")
        return bounds

    def _checked_constant(self, constant: Answer | None) -> Answer:
        if constant is None and self.task == "multiclass":
            raise self._error(
                "constant is missing; declare the last fallback: each class with its probability"
            )
        if constant is None:
            middle = 0.5 if self.task == "binary" else 0.0
            return float(min(max(middle, self.bounds.low), self.bounds.high))
        if isinstance(constant, dict) is not (self.task == "multiclass"):
            raise self._error(f"constant {constant!r} does not answer a {self.task}; see Answer")
        if not self.bounds.admits(constant):
            limits = "0..1" if isinstance(constant, dict) else f"{self.bounds.low}..{self.bounds.high}"
            raise self._error(
                f"constant {constant!r} lies outside {limits}; it is served unchecked: move it inside"
            )
        if isinstance(constant, dict):
            return dict(constant)
        return float(constant)

    def _wanted(self) -> set[str]:
        listed = [each if isinstance(each, str) else each.name for each in self.features if _named(each)]
        for name, model in self.models.items():
            for wish in model.features or ():
                if wish not in listed:
                    hint = did_you_mean(wish, listed, "; add it to features")
                    raise self._error(f"model {name!r} asks for {wish!r}, which nothing provides{hint}")
        everything = any(model.features is None for model in self.models.values())
        return set(listed) if everything else {f for m in self.models.values() for f in m.features or ()}

    def _features_of(self, model: str) -> tuple[str, ...]:
        asked = self.models[model].features
        return tuple(name for name in self.graph.wanted if asked is None or name in asked)

    def _revision(self) -> str:
        declared = {
            "facts": self._schema(self.facts),
            "outcomes": self._schema(self.outcomes),
            "event": self.event,
            "key": self.key,
            "join": self.join,
            "label": self.label.field,
            "partitions": self.partitions,
            "model_partitions": self.model_partitions,
            "dedupe": [self.dedupe.window.total_seconds(), self.dedupe.ids] if self.dedupe else None,
        }
        return hashlib.sha256(msgspec.json.encode(declared)).hexdigest()[:16]

    def _schema(self, fact_type: type[Fact]) -> Any:
        try:
            return [fact_type.type_name(), _undescribed(msgspec.json.schema(fact_type))]
        except TypeError as error:
            raise self._error(
                f"{fact_type.__name__} has no JSON schema: {error}; use types that JSON has"
            ) from error


def _checked_name(name: str) -> str:
    if LEGAL_NAME.fullmatch(name):
        return name
    raise PipelineError(
        f"{name!r} cannot name a pipeline, for its topics begin with it; use up to 200 letters, digits, "
        "'.', '_' and '-', a letter or digit first"
    )


def _named(declared: object) -> bool:
    # What is neither is left for the graph to refuse.
    return isinstance(declared, (str, Feature, Fold))


def _undescribed(schema: Any) -> Any:
    """Without descriptions: a docstring is no part of a contract between agents."""
    if isinstance(schema, dict):
        return {
            name: _undescribed(value)
            for name, value in schema.items()
            if not (name == "description" and isinstance(value, str))
        }
    return [_undescribed(each) for each in schema] if isinstance(schema, (list, tuple)) else schema


def unseeded(estimator: Any) -> Iterator[str]:
    """The paths of a River estimator's seeds that are None, its parts included."""
    yield from _unseeded(type(estimator).__name__, estimator)


def _unseeded(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, base.Base):
        value = value._get_params()
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "seed" and each is None:
                yield f"{path}.seed"
            yield from _unseeded(f"{path}.{name}", each)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            # A part that _get_params has opened is (its class, its parameters).
            yield from _unseeded(path, each)


def own_modules(estimator: object) -> frozenset[str]:
    """The modules of an estimator's parts that are not River's."""
    modules: set[str] = set()

    class Parts(pickle.Pickler):
        def persistent_id(self, part: object) -> None:
            if isinstance(part, base.Base):
                modules.add(type(part).__module__)

    Parts(io.BytesIO()).dump(estimator)
    return frozenset(m for m in modules if m.partition(".")[0] != "river")


def load(ref: str) -> Pipeline:
    """The pipeline at "module:attribute"; the working directory is searched first.

    Imports the module, so runs its code. Raises PipelineError if there is none; what the module itself
    raises passes through.
    """
    found, attribute = members(ref, "a pipeline", "my_module:flights")
    pipelines = [name for name, value in found.items() if isinstance(value, Pipeline)]
    hint = did_you_mean(
        attribute, pipelines, f"; its pipelines are {', '.join(pipelines)}" if pipelines else ""
    )
    if attribute not in found:
        raise PipelineError(f"{ref}: the module has no {attribute!r}{hint}")
    pipeline = found[attribute]
    if not isinstance(pipeline, Pipeline):
        raise PipelineError(f"{ref} is a {type(pipeline).__name__}, not a Pipeline{hint}")
    return pipeline


def members(ref: str, what: str, example: str) -> tuple[dict[str, Any], str]:
    """All that the module of "module:attribute" holds, and the attribute's name, which may not be among it.

    Raises as `load`; `what` and `example` say what was to be named.
    """
    module_name, colon, attribute = ref.partition(":")
    if not (colon and module_name and attribute):
        raise PipelineError(f"{ref!r} does not name {what}; write module:attribute, as in {example}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return vars(_imported(module_name, here)), attribute


def _imported(module_name: str, here: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the pipeline's own imports lack is the user's to see.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        nearby = [path.stem for path in Path(here).glob("*.py")]
        hint = did_you_mean(module_name, nearby, "; run in its directory, or install it")
        raise PipelineError(
            f"there is no module {module_name!r} in {here} or among the installed{hint}"
        ) from None
