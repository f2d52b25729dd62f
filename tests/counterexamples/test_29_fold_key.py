"""A fold by another key than the pipeline's is an error when the declaration is read.

Facts are placed by the pipeline's key, and a fold's states lie beside them. A fold by carrier in a
pipeline by origin would have a state of the same carrier on each partition that one of its origins hashes
to, each with a share of its facts and none with all. It cannot be built.
"""

from __future__ import annotations

import pytest
from river import linear_model

from riverkeeper import Model, fold
from riverkeeper.models.features import PipelineError
from riverkeeper.topics.partition import partition
from tests.agents.tiny import Sale, tiny
from tests.counterexamples.without import Remedy

REMEDIES = [
    Remedy(
        "models/features.py",
        "        if declared.key != self.key:\n",
        "        if False:\n",
        what="a fold is keyed as the pipeline is",
    ),
]

SHOPS = ["north", "south", "east", "west"]


@fold(key="basket", start=0)
def bought(count: int, sold: Sale) -> int:
    """How often a basket was added to, in whichever shop."""
    return count + 1


@fold(key="shop", start=0)
def sales(count: int, sold: Sale) -> int:
    return count + 1


def test_a_state_that_would_be_split_is_refused() -> None:
    by_shop = tiny(features=["amount", sales], key="shop")
    # One basket, filled in four shops: its facts are on several partitions, each with states of its own.
    assert len({partition(shop.encode(), by_shop.partitions) for shop in SHOPS}) > 1
    with pytest.raises(PipelineError) as caught:
        tiny(features=["amount", bought], key="shop")
    for word in ("tiny", "'bought'", "'basket'", "'shop'", "split"):
        assert word in str(caught.value)
    tiny(features=["amount", bought], key="basket")


def test_also_one_that_no_model_asks_for() -> None:
    """It would be asked for some day, with half of its facts in it."""
    models = {"line": Model(linear_model.LinearRegression, features=("amount",))}
    with pytest.raises(PipelineError, match="'bought' is keyed by 'basket'"):
        tiny(features=["amount", bought], models=models)
