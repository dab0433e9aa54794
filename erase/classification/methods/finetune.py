"""Training on, without relabelling: Retrain, fine-tuning, l1-sparse fine-tuning, and gradient ascent.

Retrain is the standard that every other method is measured against. FT: fine-tuning on the retain set alone (Warnecke et al.
2023; Golatkar et al. 2020), forgetting by catastrophic forgetting. l1-sparse: the same with an l1 penalty that fades (Jia et
al., NeurIPS 2023). GA: the cross-entropy on the forget set is made larger (Thudi et al. 2022).
"""

from collections.abc import Iterator
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from erase.classification.loop import descend, train
from erase.classification.methods.base import Task, TrainedMethod


class Retrain(TrainedMethod):
    name: Literal["retrain"] = "retrain"
    """A fresh model, trained on the retain set alone."""
    epochs: int = Field(40, ge=1, le=10_000)
    """Passes over the retain set."""
    learning_rate: float = Field(0.1, gt=0)
    """SGD's first learning rate."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty, as the original model had it."""


def retrain(config: Retrain, task: Task) -> None:
    """Train a fresh model on the retain set and put its weights into the given one."""
    if task.fresh is None:
        raise ValueError("retrain needs `fresh`, a function that makes an untrained model.")
    if task.salient is not None:
        raise ValueError("retrain starts from nothing: it takes no mask; leave density out.")
    model = task.fresh()
    train(model, task.retain, epochs=config.epochs, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    task.model.load_state_dict(model.state_dict())


class FineTune(TrainedMethod):
    name: Literal["ft"] = "ft"
    """Fine-tuning on the retain set."""


class L1Sparse(TrainedMethod):
    name: Literal["l1_sparse"] = "l1_sparse"
    """Fine-tuning on the retain set with a fading l1 penalty."""
    gamma: float = Field(5e-4, ge=0)
    """Weight of the l1 norm at the first step; it falls to zero linearly."""


def finetune(config: FineTune | L1Sparse, task: Task) -> None:
    """Descend on the retain set's cross-entropy, plus gamma (1 - t/T) ||theta||_1 for l1-sparse."""
    steps = config.epochs * len(task.retain)
    gamma = config.gamma if isinstance(config, L1Sparse) else 0.0

    def losses() -> Iterator[Tensor]:
        step = 0
        for _ in range(config.epochs):
            for inputs, labels in task.retain:
                loss = F.cross_entropy(task.model(inputs), labels)
                if gamma:
                    loss = loss + gamma * (1 - step / steps) * _l1_norm(task)
                step += 1
                yield loss

    descend(task.model, losses(), num_steps=steps, learning_rate=config.learning_rate, salient=task.salient)


def _l1_norm(task: Task) -> Tensor:
    """Over the weights that may change, through the model so that the mask's hooks see the gradient."""
    parts = [parameter.abs().sum() for parameter in task.model.parameters() if parameter.requires_grad]
    return sum(parts[1:], parts[0])


class GradientAscent(TrainedMethod):
    name: Literal["gradient_ascent"] = "gradient_ascent"
    """Climbing the loss of the forget set."""


def gradient_ascent(config: GradientAscent, task: Task) -> None:
    """Descend on minus the forget set's cross-entropy; the retain set is not read."""
    steps = config.epochs * len(task.forget)
    losses = (-F.cross_entropy(task.model(x), y) for _ in range(config.epochs) for x, y in task.forget)
    descend(task.model, losses, num_steps=steps, learning_rate=config.learning_rate, salient=task.salient)
