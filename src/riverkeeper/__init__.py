"""Keeps online models alive in production. What a pipeline's author needs is here."""

from .models.canary import Canary
from .models.features import PipelineError, feature, fold
from .models.objectives import Objectives
from .models.pipeline import Bounds, Dedupe, EventFields, Label, Model, Pipeline, Publish, Shed
from .topics.messages import Fact

__all__ = [
    "Bounds",
    "Canary",
    "Dedupe",
    "EventFields",
    "Fact",
    "Label",
    "Model",
    "Pipeline",
    "PipelineError",
    "Publish",
    "Objectives",
    "Shed",
    "feature",
    "fold",
]
