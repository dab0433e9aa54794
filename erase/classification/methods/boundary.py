"""Boundary unlearning (Chen et al., CVPR 2023).

Shrink moves the forget rows over their nearest boundary; expand gives them a class of their own that is then taken away.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from erase.classification.loop import descend, evaluation_mode
from erase.classification.methods.base import Task, TrainedMethod


class BoundaryShrink(TrainedMethod):
    name: Literal["boundary_shrink"] = "boundary_shrink"
    """Each forget row gets the label of its nearest wrong class."""
    bound: float = Field(0.1, gt=0)
    """Length of the sign-gradient step (per input value) that looks for the nearest boundary."""


def boundary_shrink(config: BoundaryShrink, task: Task) -> None:
    """Descend on the forget rows with the nearest wrong class, found on the model as it was before; retain is not read."""
    before = deepcopy(task.model)
    steps = config.epochs * len(task.forget)

    def losses() -> Iterator[Tensor]:
        for _ in range(config.epochs):
            for inputs, labels in task.forget:
                nearest = nearest_wrong_class(before, inputs, labels, config.bound)
                yield F.cross_entropy(task.model(inputs), nearest)

    descend(task.model, losses(), num_steps=steps, learning_rate=config.learning_rate, salient=task.salient)


def nearest_wrong_class(model: nn.Module, inputs: Tensor, labels: Tensor, bound: float) -> Tensor:
    """The likeliest wrong class after one fast-gradient-sign step away from the right one (Goodfellow et al. 2015)."""
    with evaluation_mode(model), torch.enable_grad():
        adversarial = inputs.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(adversarial), labels, reduction="sum"), adversarial)
        with torch.no_grad():
            logits = model(inputs + bound * gradient.sign())
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


class BoundaryExpand(TrainedMethod):
    name: Literal["boundary_expand"] = "boundary_expand"
    """The forget rows are trained to a shadow class, whose logit is then removed."""


def boundary_expand(config: BoundaryExpand, task: Task) -> None:
    """Descend on the forget rows with the shadow class C as their label; the retain set is not read.

    Its logit is a second head beside the last linear layer, which keeps its shape: removing the class is dropping that head.
    """
    head = last_linear(task.model)
    shadow = nn.Linear(head.in_features, 1)
    nn.init.normal_(shadow.weight, std=float(head.weight.detach().std()), generator=task.generator)
    nn.init.zeros_(shadow.bias)
    shadow = shadow.to(head.weight)
    features: dict[str, Tensor] = {}

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        features["last"] = arguments[0]

    hook = head.register_forward_pre_hook(keep)
    steps = config.epochs * len(task.forget)

    def losses() -> Iterator[Tensor]:
        for _ in range(config.epochs):
            for inputs, labels in task.forget:
                logits = task.model(inputs)
                widened = torch.cat([logits, shadow(features["last"])], 1)
                yield F.cross_entropy(widened, torch.full_like(labels, logits.shape[1]))

    try:
        extra = list(shadow.parameters())
        descend(task.model, losses(), num_steps=steps, learning_rate=config.learning_rate, salient=task.salient, extra=extra)
    finally:
        hook.remove()


def last_linear(model: nn.Module) -> nn.Linear:
    """The classifier's head: its last linear layer."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("boundary_expand needs a model that ends in a linear layer; this one has none.")
    return layers[-1]
