"""The forget loss where learning the concept again would lead: so that a few steps of fine-tuning do not bring it back.

Beside the training a relearner goes on: Adam on the denoising loss of the concept's own pictures under their own prompts, from
the salient weights as they are. At every step it takes one, and the forget loss is also taken, to first order, at the weights
that it has come to; after a number of steps it begins anew from the model. So the look ahead is many steps long for the price
of one. (Meta-unlearning, Gao et al., ICCV 2025, arXiv 2410.12777, takes a few steps from the present weights each time.)
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from erase.methods.base import Dealt, Figures, Gradients, Step, two_losses
from erase.processes import num_processes
from erase.salient import SalientWeights

BETAS = (0.9, 0.999)  # the relearner's, torch's own defaults
TAKEN = "taken"
DISPLACEMENT, MEAN, SQUARE = "displacement/", "mean/", "square/"  # in the step's memory, each with a weight's name


def look_ahead(
    step: Step, salient: SalientWeights, dealt: Dealt, share: float, *, rate: float, horizon: int, scale: float, seed: int
) -> Figures:
    """Add a share of the forget loss's gradient at the relearner's weights to the salient ones, after a step of the relearner.

    `rate` is the relearner's learning rate, `horizon` how many steps it takes before it begins anew, `scale` what gradients are
    multiplied by. Figures: `relearning_loss`, the relearner's own; `ahead_loss`, this process's share of the forget loss there.
    """
    own = dict(salient.gradients)
    taken = int(step.memory[TAKEN]) if TAKEN in step.memory else horizon
    if taken >= horizon:
        _begin(step.memory, salient)
        taken = 0
    step.generator.manual_seed(seed)
    with salient.displaced(_part(step.memory, DISPLACEMENT)):
        loss = relearning_loss(step)
        gradients = _gradients(loss, salient, scale)
    _advance(step.memory, gradients, rate, taken + 1)
    total = 0.0
    salient.gradients.clear()
    with salient.displaced(_part(step.memory, DISPLACEMENT)):
        for part, target in dealt:
            forget_loss, _, _ = two_losses(step, part.chosen(part.forget), target[part.forget])
            (share * forget_loss * scale).backward()
            total += forget_loss.item()
    for name, gradient in own.items():
        salient.gradients[name] = gradient.float() + salient.gradients.get(name, 0.0)
    return {"relearning_loss": loss.item() / num_processes(), "ahead_loss": total}  # they are added up over the processes


def relearning_loss(step: Step) -> Tensor:
    """The denoising loss of half a forget batch of the concept's own pictures under their own prompts."""
    data = step.data
    own = step.randint(len(data.forget_latents), max(1, step.forget_batch_size // 2))
    latents = data.forget_latents[own]
    noisy_latents, timesteps, noise = replace(step, importance=None).noisy(latents)
    model_pred = step.family.predict(noisy_latents, timesteps, data.conditioning(data.forget_prompt[own])).float()
    return F.mse_loss(model_pred, step.family.target(latents, noise, timesteps).to(model_pred))


def _begin(memory: dict[str, Tensor], salient: SalientWeights) -> None:
    """A relearner that stands where the model stands."""
    memory.clear()
    for name, values in salient.originals.items():
        for kind in (DISPLACEMENT, MEAN, SQUARE):
            memory[kind + name] = torch.zeros_like(values, dtype=torch.float32)
    memory[TAKEN] = torch.tensor(0)


def _part(memory: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(kind): values for name, values in memory.items() if name.startswith(kind)}


def _gradients(loss: Tensor, salient: SalientWeights, scale: float) -> Gradients:
    """The loss's gradients of the salient weights, which do not stay where the step's own are collected."""
    salient.gradients.clear()
    (loss * scale).backward()
    return {name: gradient.float() / scale for name, gradient in salient.gradients.items()}


@torch.no_grad()
def _advance(memory: dict[str, Tensor], gradients: Gradients, rate: float, taken: int) -> None:
    """One step of Adam, down the relearner's loss; none where a gradient is not finite (it overflowed in float16)."""
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
        return
    for name, gradient in gradients.items():
        mean, square = memory[MEAN + name], memory[SQUARE + name]
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        corrected = (square / (1 - BETAS[1] ** taken)).sqrt_().add_(1e-8)
        memory[DISPLACEMENT + name].addcdiv_(mean, corrected, value=-rate / (1 - BETAS[0] ** taken))
    memory[TAKEN] = torch.tensor(taken)
