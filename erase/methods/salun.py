"""SalUn: random labels or a concept remapped, on the salient weights alone (Fan et al., ICLR 2024, eq. 7).

Forget: mean ||eps_u(x_t | c) - eps(x_t | c')||^2 with c' != c; the target carries no gradient. Retain: the denoising loss on
other pictures, as in the paper, or the original model's own predictions there (distillation), times alpha.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from erase.methods.base import Config, Rows, Step


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


def rows(config: SalUn, step: Step) -> Rows:
    """The pictures of one step: forget pictures, pictures of what the concept becomes, retain pictures."""
    data = step.data
    states_of_other = round(config.anchor_share * step.forget_batch_size) if len(data.dual_index) else 0
    own = step.randint(len(data.forget_latents), step.forget_batch_size - states_of_other)
    other = data.dual_index[step.randint(max(1, len(data.dual_index)), states_of_other)]
    kept = step.randint(len(data.retain_latents), step.retain_batch_size)
    choice = step.randint(data.forget_relabel.shape[1], len(own))
    latents = torch.cat([data.forget_latents[own], data.retain_latents[other], data.retain_latents[kept]])
    noisy_latents, timesteps, noise = step.noisy(latents)
    empty = torch.rand(len(kept), generator=step.generator) < config.empty_prompt_share
    kept_prompt = torch.where(empty, data.empty_prompt, data.retain_prompt[kept])
    forget = torch.arange(len(latents)) < len(own) + len(other)
    return Rows(
        noisy_latents=noisy_latents,
        timesteps=timesteps,
        noise=step.family.target(latents, noise, timesteps),
        asked=torch.cat([data.forget_prompt[own], data.retain_dual[other], kept_prompt]),
        meant=torch.cat([data.forget_relabel[own, choice], data.retain_prompt[other], kept_prompt]),
        distilled=forget | (config.retain == "distill"),
        forget=forget,
        num_forget=len(own) + len(other),
        num_retain=len(kept),
    )


def loss(config: SalUn, step: Step, part: Rows, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    """A part's share of the step's loss, forget and retain in one forward pass, and its two terms for the record."""
    model_pred = step.family.predict(part.noisy_latents, part.timesteps, step.data.conditioning(part.asked)).float()
    target, forget = target.to(model_pred), part.forget.to(model_pred.device)
    size = target[0].numel()

    def mean(chosen: Tensor, num: int) -> Tensor:
        return F.mse_loss(model_pred[chosen], target[chosen], reduction="sum") / (max(1, num) * size)

    forget_loss, retain_loss = mean(forget, part.num_forget), mean(~forget, part.num_retain)
    return forget_loss + config.alpha * retain_loss, {"forget_loss": forget_loss.item(), "retain_loss": retain_loss.item()}
