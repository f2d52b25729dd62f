"""Versions put on `models` by the test, where what matters is who serves them."""

from __future__ import annotations

from river.base import Estimator

from riverkeeper.models.pipeline import Pipeline
from riverkeeper.models.version import Sealed, dump, environment, seal
from riverkeeper.topics.log import Out

SIGNING_KEY = b"test"  # that of `tests.agents.tiny.runtime`


def sealed(
    pipeline: Pipeline, model: str, number: int, estimator: Estimator, *, fingerprint: str = ""
) -> Sealed:
    """A version that has learned for long enough to be served, of this pipeline's features if not said."""
    return seal(
        model=model,
        version=number,
        line=0,
        parent=number - 1,
        fingerprint=fingerprint or pipeline.fingerprint,
        environment=environment(),
        spans=(),
        offsets={},
        learned=1_000,
        data=dump(estimator),
        published_ms=0,
        key=SIGNING_KEY,
    )


def outs(pipeline: Pipeline, version: Sealed) -> list[Out]:
    """To partition 0, where every model of a pipeline with one partition of `models` is."""
    return [Out(pipeline.topic("models"), 0, key, value) for key, value in version.records()]
