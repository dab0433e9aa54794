"""The classifiers' loop: one optimizer step per loss, through the mask if there is one."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase.classification.split import Loader
from erase.saliency import Mask, saliency, top_mask
from erase.salient import SalientWeights

BatchNorm = Literal["frozen", "update"]


def descend(
    model: nn.Module,
    losses: Iterable[Tensor],
    *,
    num_steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    salient: SalientWeights | None = None,
    extra: Sequence[nn.Parameter] = (),
) -> list[float]:
    """Take one SGD step (momentum 0.9, learning rate falling to zero along a cosine) per loss; returns the losses' values.

    `losses` is lazy: each is computed at the weights of its step. With `salient` only the masked weights are trained, else
    all of the model's; `extra` parameters are trained beside them. Raises ValueError when a loss is not finite.
    """
    parameters = salient.parameters() if salient else list(model.parameters())
    optimizer = torch.optim.SGD([*parameters, *extra], lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    values = []
    for step, loss in enumerate(losses):
        values.append(loss.item())
        if not math.isfinite(values[-1]):
            raise ValueError(
                f"the loss became {values[-1]} at step {step + 1}: take a smaller learning_rate than {learning_rate}."
            )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if salient:
            salient.write()
    return values


def train(
    model: nn.Module,
    data: Loader,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    batchnorm: BatchNorm = "update",
) -> list[float]:
    """Ordinary training with cross-entropy, in place: the original model, and Retrain on the retain set."""
    with training_mode(model, batchnorm):
        losses = (F.cross_entropy(model(inputs), labels) for _ in range(epochs) for inputs, labels in data)
        steps = epochs * len(data)
        return descend(model, losses, num_steps=steps, learning_rate=learning_rate, weight_decay=weight_decay)


@contextmanager
def training_mode(model: nn.Module, batchnorm: BatchNorm) -> Iterator[None]:
    """The model in training mode for the block, with the running statistics of normalisation layers held still if `frozen`."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    if batchnorm == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for the block."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def forget_mask(model: nn.Module, forget: Loader, density: float) -> Mask:
    """The weights most salient for the forget set: SalUn's mask (Fan et al. 2024, eq. 4), cross-entropy summed over rows."""
    with evaluation_mode(model):
        losses = (F.cross_entropy(model(inputs), labels, reduction="sum") for inputs, labels in forget)
        return top_mask(saliency(model, losses), density)


@torch.no_grad()
def predict(model: nn.Module, data: Loader) -> tuple[Tensor, Tensor]:
    """(probabilities (N, C), labels (N,)) on the CPU, in evaluation mode; the same order only if `data` does not shuffle."""
    with evaluation_mode(model):
        parts = [(model(inputs).softmax(1), labels) for inputs, labels in data]
    return torch.cat([probabilities for probabilities, _ in parts]).cpu(), torch.cat([labels for _, labels in parts]).cpu()


def forever(data: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch after another."""
    while True:
        yield from data
