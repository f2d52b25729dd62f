"""What the judgement's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Verdicts are told by the worlds; of refused versions some stories have dozens."""
    with structlog.testing.capture_logs():
        yield
