"""What may be tried in a replay: declared models, stored versions, and a mapping of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aiokafka import TopicPartition
from pydantic import ValidationError

from ..models.features import PipelineError, did_you_mean
from ..models.pipeline import Model, Pipeline, members
from ..models.unpickle import AllowList, UntrustedVersion
from ..models.version import (
    MAX_HELD_BYTES,
    MAX_MANIFESTS,
    Assembler,
    BadVersion,
    ManifestKey,
    begin,
    parse_key,
    verify,
)
from ..topics.connection import Connection
from ..topics.messages import Manifest
from ..topics.partition import partition
from ..topics.store import Inspector
from .worlds import Candidate

LIBRARY_BYTES = 4 * MAX_HELD_BYTES  # of one partition of `models` in memory, as learn holds it when it starts


def declared(pipeline: Pipeline, name: str) -> Candidate:
    """A model of the pipeline as it is declared now, begun from nothing. Raises PipelineError."""
    return _candidate(name, _known(pipeline, name), pipeline.model_features[name])


def own(pipeline: Pipeline, ref: str) -> list[Candidate]:
    """The models of "module:mapping": by name a `Model`, or what makes an estimator. Raises PipelineError."""
    module, attribute = members(ref, "a mapping of candidates", "my_module:candidates")
    if attribute not in module:
        mappings = [name for name, value in module.items() if isinstance(value, Mapping)]
        raise PipelineError(f"{ref}: the module has no {attribute!r}{did_you_mean(attribute, mappings)}")
    found = module[attribute]
    found = found() if callable(found) else found
    if not isinstance(found, Mapping) or not found:
        raise PipelineError(
            f'{ref} is {type(found).__name__}, no mapping of candidates: {{"slow": lambda: LinearRegression(...)}}'
        )
    return list(_each(pipeline, ref, found))


def _each(pipeline: Pipeline, ref: str, found: Mapping[str, Any]) -> Iterator[Candidate]:
    wanted = tuple(pipeline.graph.wanted)
    for name, made in found.items():
        model = made if isinstance(made, Model) else Model(made)
        if not callable(model.factory):
            raise PipelineError(f"{ref}: {name!r} is {made!r}; give a Model, or what makes an estimator")
        features = wanted if model.features is None else tuple(model.features)
        for feature in features:
            if feature not in wanted:
                hint = did_you_mean(feature, wanted, f"; one of {', '.join(wanted)} is")
                raise PipelineError(
                    f"{ref}: {name!r} asks for {feature!r}, which predictions of {pipeline.name} do not carry{hint}"
                )
        yield _candidate(str(name), model, features)


def _candidate(name: str, model: Model, features: tuple[str, ...]) -> Candidate:
    return Candidate(name, model.factory(), features, model.warmup, model.mini_batch)


async def stored(
    pipeline: Pipeline, connection: Connection, ref: str, key: bytes, *, learns: bool
) -> Candidate:
    """A version "model/number" as it was published. Raises PipelineError if it is not to be had."""
    name, _, number = ref.partition("/")
    model = _known(pipeline, name)
    if not number.isdecimal():
        raise PipelineError(
            f"{ref!r} names no version: write {name}/12, as `riverkeeper status` numbers them"
        )
    library = Assembler(keep=MAX_MANIFESTS, max_bytes=LIBRARY_BYTES)
    place = TopicPartition(pipeline.topic("models"), partition(name.encode(), pipeline.model_partitions))
    async with Inspector(connection) as inspector:
        for record_key, value in (await inspector.read_table(place)).items():
            if _ours(record_key, value, name, key):
                library.feed(record_key, value)
    try:
        estimator = begin(library.blob(name, int(number)), model.factory, AllowList(pipeline.trusted))
    except (BadVersion, UntrustedVersion) as error:
        kept = [str(m.version) for m in library.manifests(name)][-10:]
        raise PipelineError(f"{error}; the newest of {name} are {', '.join(kept) or 'none'}") from error
    return Candidate(
        f"{name}/{number}", estimator, pipeline.model_features[name], 0, model.mini_batch, learns=learns
    )


def _ours(record_key: bytes, value: bytes, name: str, key: bytes) -> bool:
    """Whether it is a part of this model's versions that may be opened: signed with our key, or a chunk."""
    try:
        parsed = parse_key(record_key)
        if parsed.model != name:
            return False
        if isinstance(parsed, ManifestKey):
            verify(Manifest.model_validate_json(value), key)
    except (BadVersion, ValidationError):
        return False
    return True


def _known(pipeline: Pipeline, name: str) -> Model:
    if name not in pipeline.models:
        hint = did_you_mean(name, pipeline.models, f"; one of {', '.join(pipeline.models)} is")
        raise PipelineError(f"{pipeline.name} has no model {name!r}{hint}")
    return pipeline.models[name]
