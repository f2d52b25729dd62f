"""A month of traffic in which nothing is wrong passes without a word from the supervisor.

`python -m tests.judgement --months 20` does the same for twenty seeds.
"""

from __future__ import annotations

import pytest

from tests.judgement.calm import month


@pytest.mark.parametrize("seed", [1, 2])
def test_a_calm_month(seed: int) -> None:
    world = month(seed)
    assert world.told == []
    assert world.served.by["learned"] > 30_000 and world.served.out_of_bounds == 0
