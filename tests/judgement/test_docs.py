"""The policy that docs/judgement.md shows is the one that is tested."""

from __future__ import annotations

import inspect
from pathlib import Path

from tests.judgement import test_own_policy

PAGE = Path(__file__).parents[2] / "docs" / "judgement.md"


def test_the_example_is_the_tested_one() -> None:
    source = inspect.getsource(test_own_policy)
    shown = source.split("# own: begin\n")[1].split("# own: end")[0]
    assert "".join(shown.split()) in "".join(PAGE.read_text().split())
