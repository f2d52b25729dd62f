"""Other models over a stretch of the log, beside what was served: `riverkeeper replay`."""

from .candidates import declared, own, stored
from .reading import Replay, replay
from .report import matrix, text
from .worlds import MAX_HELD, Candidate, Row, World

__all__ = [
    "MAX_HELD",
    "Candidate",
    "Replay",
    "Row",
    "World",
    "declared",
    "matrix",
    "own",
    "replay",
    "stored",
    "text",
]
