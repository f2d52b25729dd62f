"""The run of a real pipeline that all tests of the ledger begin with."""

import pytest

from tests.audit.tape import Tape


@pytest.fixture
def tape(original: Tape) -> Tape:
    """One's own, to tamper with."""
    return original.copy()
