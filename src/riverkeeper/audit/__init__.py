"""The outside reader's account of a pipeline: every id from its event to the versions that learned it.

Knows what any program on the topics may know, and the pipeline's declaration; shares no code with the
agents whose work it sums up.
"""

from .reading import CannotAudit, audit
from .report import Finding, Report, text

__all__ = ["CannotAudit", "Finding", "Report", "audit", "text"]
