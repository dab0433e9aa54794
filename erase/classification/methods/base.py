"""What every unlearning method of a classifier shares: its common settings, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import nn

from erase.classification.loop import BatchNorm
from erase.classification.split import Loader
from erase.methods.base import Config
from erase.salient import SalientWeights


class ClassifierMethod(Config):
    """Settings of every method."""

    density: float | None = Field(None, gt=0, le=1)
    """Share of the weights that may change, the most salient for the forget set; none: all of them."""
    batchnorm: BatchNorm = "frozen"
    """Whether the running statistics of BatchNorm stay as they are, or follow the batches that training sees."""


class TrainedMethod(ClassifierMethod):
    """Settings of the methods that take optimizer steps."""

    epochs: int = Field(5, ge=1, le=10_000)
    """Passes over the set that leads: retain, or forget where only that is read."""
    learning_rate: float = Field(0.01, gt=0)
    """SGD's first learning rate (momentum 0.9); it falls to zero along a cosine."""


@dataclass(frozen=True)
class Task:
    """What a method works on: the model is changed in place, through `salient` where there is a mask."""

    model: nn.Module
    forget: Loader
    retain: Loader
    salient: SalientWeights | None
    generator: torch.Generator
    fresh: Callable[[], nn.Module] | None
