"""Influence unlearning (Koh & Liang 2017; Izzo et al. 2021; Jia et al. 2023): one damped Newton step instead of training.

theta_u = theta + alpha H^-1 (1/N) (sum_f grad l - |D_f|/|D_r| sum_r grad l), H the Hessian of the mean loss over the retain
set plus damping. H^-1 v is solved by conjugate gradients on Hessian-vector products, for the weights that may change.
"""

import logging
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from erase.classification.loop import evaluation_mode
from erase.classification.methods.base import ClassifierMethod, Task
from erase.classification.split import Loader
from erase.salient import SalientWeights

logger = logging.getLogger(__name__)


class Influence(ClassifierMethod):
    name: Literal["influence"] = "influence"
    """One Newton step away from the forget set."""
    alpha: float = Field(1.0, gt=0)
    """Length of the step; 1 is the influence function's own."""
    damping: float = Field(0.01, gt=0)
    """Added to the Hessian's diagonal."""
    num_iterations: int = Field(20, ge=1)
    """Conjugate-gradient iterations at most; each is a pass over the retain set."""


def influence(config: Influence, task: Task) -> None:
    """Put theta + alpha H^-1 v into the model."""
    weights = FlatWeights(task.model, task.salient)
    with evaluation_mode(task.model):
        forget, num_forget = summed_gradient(task.model, weights, task.forget)
        retain, num_retain = summed_gradient(task.model, weights, task.retain)
        vector = (forget - num_forget / num_retain * retain) / (num_forget + num_retain)

        def product(direction: Tensor) -> Tensor:
            return hessian_product(task.model, weights, task.retain, direction) + config.damping * direction

        weights.add(config.alpha * conjugate_gradients(product, vector, config.num_iterations))


class FlatWeights:
    """The weights that may change as one vector: all of the model's, or those of the mask."""

    def __init__(self, model: nn.Module, salient: SalientWeights | None) -> None:
        self.salient = salient
        self.names = list(salient.values) if salient else [name for name, _ in model.named_parameters()]
        named = dict(model.named_parameters())
        self.dense = [named[name] for name in self.names]

    def gather(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Gradients of the dense tensors -> the vector's entries."""
        rows = zip(self.names, tensors, strict=True)
        return torch.cat([t.reshape(-1)[self.salient.index(n)] if self.salient else t.reshape(-1) for n, t in rows])

    def spread(self, vector: Tensor) -> list[Tensor]:
        """The vector -> dense tensors, zero outside the mask."""
        dense, position = [], 0
        for name, tensor in zip(self.names, self.dense, strict=True):
            index = self.salient.index(name) if self.salient else torch.arange(tensor.numel(), device=tensor.device)
            part = vector[position : position + len(index)].to(tensor.dtype)
            dense.append(torch.zeros_like(tensor).reshape(-1).index_copy(0, index, part).view(tensor.shape))
            position += len(index)
        return dense

    @torch.no_grad()
    def add(self, vector: Tensor) -> None:
        """Theta += vector."""
        if self.salient is None:
            for tensor, part in zip(self.dense, self.spread(vector), strict=True):
                tensor.add_(part)
            return
        sizes = [len(value) for value in self.salient.values.values()]
        for value, part in zip(self.salient.values.values(), vector.split(sizes), strict=True):
            value.add_(part.to(value.dtype))
        self.salient.write()


def summed_gradient(model: nn.Module, weights: FlatWeights, data: Loader) -> tuple[Tensor, int]:
    """(sum over rows of the cross-entropy's gradient, number of rows)."""
    total, rows = torch.zeros(()), 0
    for inputs, labels in data:
        loss = F.cross_entropy(model(inputs), labels, reduction="sum")
        total = total.to(loss.device) + weights.gather(torch.autograd.grad(loss, weights.dense))
        rows += len(labels)
    return total, rows


def hessian_product(model: nn.Module, weights: FlatWeights, data: Loader, direction: Tensor) -> Tensor:
    """H v of the mean cross-entropy, by differentiating grad . v (Pearlmutter 1994)."""
    total, rows, spread = torch.zeros_like(direction), 0, weights.spread(direction)
    for inputs, labels in data:
        loss = F.cross_entropy(model(inputs), labels, reduction="sum")
        gradient = torch.autograd.grad(loss, weights.dense, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(gradient, spread, strict=True))
        assert isinstance(along, Tensor)
        total += weights.gather(torch.autograd.grad(along, weights.dense, materialize_grads=True))
        rows += len(labels)
    return total / rows


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], vector: Tensor, num_iterations: int, tolerance: float = 1e-6
) -> Tensor:
    """The x of `product(x) = vector` (Hestenes & Stiefel 1952), to a residual of `tolerance` times the vector's length.

    Stops where the curvature is not positive (a network's Hessian may have such directions), which the log says.
    """
    solution, residual = torch.zeros_like(vector), vector.clone()
    direction, square = residual.clone(), residual @ residual
    goal = tolerance**2 * square
    for iteration in range(num_iterations):
        if square <= goal:
            break
        curved = product(direction)
        curvature = direction @ curved
        if curvature <= 0:
            logger.warning("conjugate gradients met negative curvature after %d iterations; more damping helps.", iteration)
            return solution if iteration else vector
        length = square / curvature
        solution += length * direction
        residual -= length * curved
        square, before = residual @ residual, square
        direction = residual + square / before * direction
    return solution
