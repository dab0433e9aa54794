"""SalUn: random labels or a concept remapped, on the salient weights alone (Fan et al., ICLR 2024, eq. 7).

Forget: mean ||eps_u(x_t | c) - eps(x_t | c')||^2 with c' != c; the target carries no gradient. Retain: the denoising loss on
other pictures, as in the paper, or the original model's own predictions there (distillation), times alpha.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from erase.methods.base import Config, Step


class SalUn(Config):
    """Saliency unlearning (Fan et al., ICLR 2024)."""

    name: Literal["salun"] = "salun"
    """The method's name."""
    relabel: Literal["random_label", "concept_remap"] = "concept_remap"
    """`random_label` draws another concept at every step; `concept_remap` always takes the anchor."""
    anchor: str | tuple[str, ...] = "nearest"
    """What the concept is remapped to: a name, `nearest` (its first relative), or `next` (the next in the list); for several
    concepts a list, one each in their order."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the retain loss against the forget loss."""
    retain: Literal["distill", "denoise"] = "distill"
    """`distill`: keep the original's predictions on retain prompts; `denoise`: the paper's denoising loss."""
    teacher: Literal["frozen", "moving"] = "frozen"
    """`frozen`: targets come from the original weights; `moving`: from the model being trained, as the reference code does."""
    anchor_share: float = Field(0.5, ge=0, le=1)
    """Share of the forget batch whose noisy latents come from pictures of c' and not of c: the states that the concept's
    prompt must lead through once it means c' (0 is the paper's loss)."""
    empty_prompt_share: float = Field(0.15, ge=0, le=1)
    """Share of the retain batch that is conditioned on the empty prompt, so that guidance keeps its footing."""


def loss(config: SalUn, step: Step) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step, forget and retain in one forward pass, and its parts for the record."""
    data, family = step.data, step.family
    states_of_other = round(config.anchor_share * step.forget_batch_size) if len(data.dual_index) else 0
    own = step.randint(len(data.forget_latents), step.forget_batch_size - states_of_other)
    other = data.dual_index[step.randint(max(1, len(data.dual_index)), states_of_other)]
    kept = step.randint(len(data.retain_latents), step.retain_batch_size)
    choice = step.randint(data.forget_relabel.shape[1], len(own))
    num_forget = len(own) + len(other)

    latents = torch.cat([data.forget_latents[own], data.retain_latents[other], data.retain_latents[kept]])
    noisy_latents, timesteps, noise = step.noisy(latents)
    empty = torch.rand(len(kept), generator=step.generator) < config.empty_prompt_share
    kept_prompt = torch.where(empty, data.empty_prompt, data.retain_prompt[kept])
    asked = torch.cat([data.forget_prompt[own], data.retain_dual[other], kept_prompt])
    meant = torch.cat([data.forget_relabel[own, choice], data.retain_prompt[other], kept_prompt])

    if config.retain == "distill":
        target = step.teacher(noisy_latents, timesteps, data.conditioning(meant))
    else:
        head = slice(0, num_forget)
        forget_target = step.teacher(noisy_latents[head], timesteps[head], data.conditioning(meant[head]))
        denoising = family.target(latents[num_forget:], noise[num_forget:], timesteps[num_forget:])
        target = torch.cat([forget_target, denoising])
    model_pred = family.predict(noisy_latents, timesteps, data.conditioning(asked))
    forget_loss = F.mse_loss(model_pred[:num_forget].float(), target[:num_forget].float())
    retain_loss = F.mse_loss(model_pred[num_forget:].float(), target[num_forget:].float())
    total = forget_loss + config.alpha * retain_loss
    return total, {"forget_loss": forget_loss.item(), "retain_loss": retain_loss.item()}
