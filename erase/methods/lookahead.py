"""The forget loss where learning the concept again would lead: so that a few steps of fine-tuning do not bring it back.

Beside the training a relearner goes on: Adam on the denoising loss of the concept's own pictures under their own prompts. It
is kept as its displacement from the salient weights, which moves with them. At every step it takes one, and a share of the
forget loss is taken, to first order, at the weights that it has come to, in place of the model's own; after a number of steps
it begins anew where the model stands. So the look is 1 to that many steps ahead, for the price of one and of the forget rows.

Meta-unlearning (Gao et al., ICCV 2025, arXiv 2410.12777) has the same aim; it also lets what is akin to the concept suffer once
that is learned again, which this does not.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from erase.methods.base import Dealt, Figures, Gradients, Step, two_losses
from erase.processes import num_processes, sum_over_processes
from erase.salient import SalientWeights

BETAS = (0.9, 0.999)  # the relearner's, torch's own defaults
TAKEN = "taken"
DISPLACEMENT, MEAN, SQUARE = "displacement/", "mean/", "square/"  # in the step's memory, each with a weight's name


def look_ahead(
    step: Step,
    salient: SalientWeights,
    dealt: Dealt,
    share: float,
    *,
    learning_rate: float,
    horizon: int,
    scale: float,
    seed: int,
) -> Figures:
    """Add a share of the forget loss's gradient at the relearner's weights to the salient ones, after a step of the relearner.

    `horizon`: how many steps the relearner takes before it begins anew; `scale`: what gradients are multiplied by. Every
    process takes the same step with it. Figures: `relearner_loss`, its own; `lookahead_loss`, the forget loss where it is;
    `loss`, what that adds to the step's. Raises ValueError where the relearner's gradient is not finite (under a loss
    scale that is left to the loop, which leaves the step out).
    """
    own = dict(salient.gradients)
    taken = int(step.memory[TAKEN]) if TAKEN in step.memory else horizon
    if taken >= horizon:
        _begin(step.memory, salient)
        taken = 0
    step.generator.manual_seed(seed)
    with salient.displaced(_part(step.memory, DISPLACEMENT)):
        loss = relearner_loss(step)
        gradients = _gradients(loss, salient, scale)
    if all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
        _advance(step.memory, gradients, learning_rate, taken + 1)
        total = _forget(step, salient, dealt, share * scale)
    elif scale == 1:
        raise ValueError(
            f"the relearner's gradient is not finite after {taken} of its steps; the state before it is kept. "
            f"Try a smaller method.lookahead_learning_rate (now {learning_rate:g})."
        )
    else:  # the gradients that overflowed stay among the step's, so that this is left out and the scale falls
        total = 0.0
    for name, gradient in own.items():
        salient.gradients[name] = gradient.float() + salient.gradients.get(name, 0.0)
    return {"relearner_loss": loss.item() / num_processes(), "lookahead_loss": total, "loss": share * total}


def relearner_loss(step: Step) -> Tensor:
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
    """The loss's gradients of the salient weights, the mean over the processes; they stand among the step's until the next."""
    salient.gradients.clear()
    (loss * scale).backward()
    sums = {name: sum_over_processes(gradient.float()) for name, gradient in salient.gradients.items()}
    return {name: gradient / (scale * num_processes()) for name, gradient in sums.items()}


@torch.no_grad()
def _advance(memory: dict[str, Tensor], gradients: Gradients, learning_rate: float, taken: int) -> None:
    """One step of Adam, down the relearner's loss."""
    for name, gradient in gradients.items():
        mean, square = memory[MEAN + name], memory[SQUARE + name]
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        corrected = (square / (1 - BETAS[1] ** taken)).sqrt_().add_(1e-8)
        memory[DISPLACEMENT + name].addcdiv_(mean, corrected, value=-learning_rate / (1 - BETAS[0] ** taken))
    memory[TAKEN] = torch.tensor(taken)


def _forget(step: Step, salient: SalientWeights, dealt: Dealt, weight: float) -> float:
    """Leave the weighed gradients of the forget rows' loss at the relearner's weights; that loss."""
    salient.gradients.clear()
    total = 0.0
    with salient.displaced(_part(step.memory, DISPLACEMENT)):
        for part, target in dealt:
            forget_loss, _, _ = two_losses(step, part.chosen(part.forget), target[part.forget])
            (weight * forget_loss).backward()
            total += forget_loss.item()
    return total
