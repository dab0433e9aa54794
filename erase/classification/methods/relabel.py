"""Random labels, and SalUn: the same on the salient weights alone (Fan et al., ICLR 2024, eq. 6; Golatkar et al. 2020 for RL).

min over theta_u of  E_{(x,y) in D_f, y' != y} CE(theta_u; x, y')  +  alpha E_{(x,y) in D_r} CE(theta_u; x, y),
with theta_u = m * theta + (1 - m) * theta_o, y' uniform over the classes that are not y.
"""

from collections.abc import Iterator
from itertools import cycle
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from erase.classification.loop import descend, evaluation_mode, forever
from erase.classification.methods.base import Task, TrainedMethod
from erase.classification.split import Batch


class RandomLabel(TrainedMethod):
    name: Literal["random_label"] = "random_label"
    """Other labels for the forget set, the right ones for the retain set."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the retain loss against the forget loss."""
    redraw: bool = True
    """Whether y' is drawn anew at each step, or once for the run (as the authors' code does; the forget set is then held in
    memory)."""


class SalUn(RandomLabel):
    name: Literal["salun"] = "salun"  # type: ignore[assignment]
    """Random labels on the salient weights alone."""
    density: float | None = Field(0.5, gt=0, le=1)
    """Share of the weights that may change."""


def random_label(config: RandomLabel, task: Task) -> None:
    """Descend on forget and retain loss together, one batch of each per step; an epoch is a pass over the retain set."""
    if isinstance(config, SalUn) and task.salient is None:
        raise ValueError("salun trains the salient weights: give it a density or a mask (random_label does without).")
    steps = config.epochs * len(task.retain)

    num_classes = count_classes(task)

    def wrong(batch: Batch) -> Batch:
        return batch[0], other_labels(batch[1], num_classes, task.generator)

    def losses() -> Iterator[Tensor]:
        relabelled = map(wrong, forever(task.forget)) if config.redraw else cycle([wrong(batch) for batch in task.forget])
        for _ in range(config.epochs):
            for (kept_inputs, kept_labels), (inputs, labels) in zip(task.retain, relabelled, strict=False):
                logits = task.model(torch.cat([inputs, kept_inputs]))
                forget_loss = F.cross_entropy(logits[: len(labels)], labels)
                yield forget_loss + config.alpha * F.cross_entropy(logits[len(labels) :], kept_labels)

    descend(task.model, losses(), num_steps=steps, learning_rate=config.learning_rate, salient=task.salient)


@torch.no_grad()
def count_classes(task: Task) -> int:
    """How many classes the model tells apart."""
    with evaluation_mode(task.model):
        inputs, _ = next(iter(task.forget))
        return int(task.model(inputs[:1]).shape[1])


def other_labels(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """A label for each row, uniform over the classes that are not its own."""
    shift = torch.randint(1, num_classes, labels.shape, generator=generator).to(labels.device)
    return (labels + shift) % num_classes
