"""An operator's verdict on a model, named by its pipeline's name alone or by the module that declares it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from aiokafka import TopicPartition
from pydantic import ValidationError

from .models.features import PipelineError, did_you_mean
from .models.pipeline import Pipeline, load, name_of
from .models.routing import MAX_BARRED, Route, Routing
from .supervisor.known import wall_clock
from .supervisor.lifecycle import OPERATOR
from .supervisor.operator import issue
from .topics.catalog import Catalog
from .topics.connection import Connection
from .topics.log import Out, Record, Writer
from .topics.messages import State, Verdict
from .topics.store import Inspector

OUT = frozenset({State.QUARANTINED, State.DESTROYED, State.PROBATION})  # where a model can be admitted from


@dataclass(frozen=True)
class Known:
    """What a verdict needs to know of a pipeline."""

    name: str
    models: Collection[str]
    serving: Collection[str] = ()
    fallback: str = ""


async def decide(
    connection: Connection, model_ref: str, state: State, reason: str, *, by: str, of_slice: str = ""
) -> Verdict:
    """Issues the verdict on "pipeline/model" or "module:pipeline/model", and returns it once it is in force; with
    `of_slice`, "name=value", on that slice alone.

    Raises PipelineError for a name that is not one and for a model or slice that cannot be admitted, for it is not
    out; TopicMissing, Overruled, KafkaError.
    """
    where, _, model = model_ref.rpartition("/")
    if not where or not model:
        raise PipelineError(f"{model_ref!r} does not name a model; write pipeline/model, as in flights/eager")
    declared = load(where) if ":" in where else None
    name = declared.name if declared else where
    versions, verdicts = await _read(connection, name)
    # Every model publishes a version as soon as the learner starts.
    models = (
        declared.models if declared else {*_published(versions), *(v.model for _, v in verdicts if v.model)}
    )
    if model not in models:
        hint = did_you_mean(model, models, f"; its models are {', '.join(sorted(models)) or 'not known yet'}")
        raise PipelineError(f"{name} has no model {model!r}{hint}")
    # Which models are live by declaration does not matter: a verdict replaces a route whole.
    now = _routing([model], verdicts).routes[model]
    if of_slice:
        _check_slice(f"{name}/{model}", declared, now, of_slice, admit=state is not State.QUARANTINED)
    elif state is not State.QUARANTINED and now.state not in OUT:
        raise PipelineError(f"{name}/{model} is not quarantined: there is nothing to admit")
    known = Known(name, tuple(models))
    return await issue(connection, known, model, state, reason, by=by, of_slice=of_slice)


def _check_slice(model: str, declared: Pipeline | None, now: Route, of_slice: str, *, admit: bool) -> None:
    feature, equals, _ = of_slice.partition("=")
    if not equals:
        raise PipelineError(f"{of_slice!r} is no slice; write feature=value, as in region=west")
    if declared is not None and feature not in declared.slices:
        hint = did_you_mean(
            feature, declared.slices, f"; declared are {', '.join(declared.slices) or 'none'}"
        )
        raise PipelineError(f"{feature!r} is no slice of {declared.name}{hint}")
    if admit and of_slice not in now.barred:
        raise PipelineError(f"{model} is not quarantined where {of_slice}: there is nothing to admit")
    if not admit and of_slice not in now.barred and len(now.barred) >= MAX_BARRED:
        raise PipelineError(
            f"{model} is quarantined in {MAX_BARRED} slices already; quarantine it as a whole"
        )


async def hold(
    connection: Connection, pipeline_ref: str, reason: str, *, by: str, held: bool = True
) -> Verdict:
    """Holds the supervisors of "pipeline" or "module:pipeline", or releases them; returns what was written.

    It counts from its place in the log on: no verdict that a supervisor writes behind it is obeyed by anybody.
    Raises PipelineError if that changes nothing; TopicMissing, KafkaError.
    """
    name = name_of(pipeline_ref)
    routing = _routing([], (await _read(connection, name))[1])
    if held and routing.hold is not None:
        raise PipelineError(f"{name} is held by {routing.hold.by} already: {routing.hold.reason}")
    if not held and routing.hold is None:
        raise PipelineError(f"{name} is not held: there is nothing to release")
    state = State.QUARANTINED if held else State.LIVE
    ruling = Verdict(
        model="", state=state, follows=-1, policy=OPERATOR, reason=reason, by=by, at_ms=wall_clock()
    )
    writer = Writer(connection)
    await writer.start()
    try:
        await writer.write([Out(f"{name}.verdicts", 0, b"", ruling.encode())])
    finally:
        await writer.stop()
    return ruling


async def _read(connection: Connection, name: str) -> tuple[list[Record], list[tuple[int, Verdict]]]:
    """The records of `models`, and the verdicts with their offsets."""
    async with Catalog(connection) as catalog:
        partitions = await catalog.partition_count(f"{name}.models")
        await catalog.partition_count(f"{name}.verdicts")
    async with Inspector(connection) as inspector:
        versions = [
            record
            for partition in range(partitions)
            for record in await inspector.read_all(TopicPartition(f"{name}.models", partition))
        ]
        verdicts = await inspector.read_all(TopicPartition(f"{name}.verdicts", 0))
    return versions, [(r.offset, v) for r in verdicts if (v := _verdict(r)) is not None]


def _published(records: list[Record]) -> set[str]:
    keys = [(record.key or b"").decode(errors="replace").split("/") for record in records]
    return {parts[0] for parts in keys if len(parts) > 1}


def _verdict(record: Record) -> Verdict | None:
    try:
        return Verdict.model_validate_json(record.value or b"")
    except ValidationError:
        return None


def _routing(models: Collection[str], verdicts: list[tuple[int, Verdict]]) -> Routing:
    routing = Routing.declared(models, models)
    for offset, verdict in verdicts:
        routing = routing.obey(offset, verdict)
    return routing
