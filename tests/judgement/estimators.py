"""Estimators that are tampered with, and one that waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from river import base, optim

from tests.judgement.world import World, learned


def _linear(world: World, model: str) -> Any:
    estimator: Any = world.students[model].estimator
    return estimator["LinearRegression"]


def set_rates(world: World, model: str, rate: float) -> None:
    """Of what is learned from now on."""
    linear = _linear(world, model)
    linear.optimizer.lr = optim.schedulers.Constant(rate)
    linear.intercept_lr = optim.schedulers.Constant(rate)


def blank(world: World, model: str) -> None:
    """Without weights, and without a rate to learn any."""
    linear = _linear(world, model)
    linear._weights.clear()
    set_rates(world, model, 0.0)


def shift_region(world: World, model: str, region: str, by: float) -> None:
    """The answers for one region, for good."""
    linear = _linear(world, model)
    name = next(each for each in linear._weights if each.endswith(f"region_{region}"))
    linear._weights[name] += by
    set_rates(world, model, 0.0)


def at_once() -> None:
    """Takes no time."""


def always() -> bool:
    return True


class Laden(base.Regressor):
    """As `learned`, with something that the world outside does before every answer and every example."""

    wait: ClassVar[Callable[[], None]] = staticmethod(at_once)
    heed: ClassVar[Callable[[], bool]] = staticmethod(always)  # whether to learn the example

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def learn_one(self, x: dict[Any, Any], y: float) -> None:
        if type(self).heed():
            self.inner.learn_one(x, y)

    def predict_one(self, x: dict[Any, Any]) -> float:
        type(self).wait()
        return float(self.inner.predict_one(x))


def laden() -> Laden:
    return Laden(learned())
