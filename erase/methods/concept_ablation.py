"""Concept Ablation: pictures of the anchor, asked for by the concept's prompt (Kumari et al., ICCV 2023, arXiv 2303.13516).

`model`: mean ||eps_u(x_t | c*) - sg eps_u(x_t | c)||^2 with x the anchor's pictures, c the anchor's prompt, c* the concept's.
`noise`: mean ||eps - eps_u(x_t | c*)||^2, the pairs redefined. Both with the denoising loss on the anchor's own pairs.

The release weighs that by 1 against the other (diffusers, where styles go without) or the other by 0.2 (compvis). Its anchor is
a superordinate ("cat" for Grumpy Cat), here a sibling unless one is named.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from erase.methods.base import Config, Figures, Method, Rows, Step, keys_and_values, two_losses
from pipelines.family import Family


class ConceptAblation(Config):
    """Concept ablation (Kumari et al., ICCV 2023)."""

    name: Literal["concept_ablation"] = "concept_ablation"
    """The method's name."""
    anchor: str | tuple[str, ...] = "nearest"
    """What the concept becomes: a name, `nearest` (its first relative), or `next` (the next in the list); for several concepts
    a list, one each in their order."""
    target: Literal["model", "noise"] = "model"
    """`model`: the model's own prediction for the anchor's prompt; `noise`: the noise in the anchor's picture."""
    weights: Literal["key_value", "full"] = "key_value"
    """`key_value`: the key and value projections of the cross-attentions; `full`: all weights."""
    teacher: Literal["moving", "frozen"] = "moving"
    """Whose prediction `model` aims at: that of the model being trained, as in the paper, or of the original."""
    regularisation: float = Field(1.0, ge=0)
    """Weight of the denoising loss on the anchor's pictures under the anchor's prompt."""


def rows(config: ConceptAblation, step: Step) -> Rows:
    """Pictures of the anchor, asked for as the concept; and as many more, asked for as themselves."""
    data = step.data
    if not len(data.dual_index):
        raise ValueError(
            "concept_ablation learns from pictures of the anchor: give data.num_anchor above 0 and a named anchor."
        )
    num_forget, num_retain = step.forget_batch_size, step.retain_batch_size
    pictures = data.dual_index[step.randint(len(data.dual_index), num_forget + num_retain)]
    noisy_latents, timesteps, noise = step.noisy(data.retain_latents[pictures])
    forget = torch.arange(len(pictures)) < num_forget
    return Rows(
        noisy_latents=noisy_latents,
        timesteps=timesteps,
        noise=step.family.target(data.retain_latents[pictures], noise, timesteps),
        asked=torch.where(forget, data.retain_dual[pictures], data.retain_prompt[pictures]),
        meant=data.retain_prompt[pictures],
        distilled=forget & torch.tensor(config.target == "model"),
        forget=forget,
        num_forget=num_forget,
        num_retain=num_retain,
    )


def loss(config: ConceptAblation, step: Step, part: Rows, target: Tensor) -> tuple[Tensor, Figures]:
    """A part's share of the ablation loss and its regularisation."""
    forget_loss, retain_loss, figures = two_losses(step, part, target)
    return forget_loss + config.regularisation * retain_loss, figures


def scope(config: ConceptAblation, family: Family) -> set[str]:
    """Keys and values of the cross-attentions, or all weights."""
    if config.weights == "full":
        return {name for name, _ in family.denoiser.named_parameters()}
    return keys_and_values(family)


METHOD = Method(
    line="the anchor's pictures answer to the concept's prompt",
    paper="Kumari et al., ICCV 2023, arXiv 2303.13516",
    rows=rows,
    loss=loss,
    scope=scope,
)
