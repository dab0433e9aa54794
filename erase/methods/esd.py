"""ESD: the concept's prompt is taught the original's own negative guidance (Gandikota et al., ICCV 2023, arXiv 2303.07345).

mean ||eps_u(x_t | c) - (eps(x_t) - eta (eps(x_t | c) - eps(x_t)))||^2, eps the frozen original and c the concept alone, as
"a dog" or "neon style": whatever else c named would be led away from as well. The paper's script draws x_t by sampling the
student down to t at every step, the present release by sampling the original; here x_t are noised pictures that the original
drew for sentences with the concept, which costs one pass a step.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from erase.methods.base import Config, Figures, Method, Rows, Step, two_losses
from pipelines.family import Family


class Esd(Config):
    """Erased Stable Diffusion (Gandikota et al., ICCV 2023)."""

    name: Literal["esd"] = "esd"
    """The method's name."""
    weights: Literal["x", "u", "full"] = "x"
    """`x`: the cross-attentions, for what a prompt names; `u`: all but them, so that the concept goes whatever is asked (the
    paper's script leaves out the output convolution and the time embedding as well); `full`: both."""
    asked: Literal["concept", "sentence"] = "concept"
    """What the model is asked while it learns: `concept`: the concept alone, as in the release; `sentence`: the prompts of the
    pictures, of whose prediction the concept's part is taken alone (the release's --erase_from)."""
    negative_guidance: float = Field(1.0, ge=0)
    """eta: how far beyond the empty prompt's prediction the target lies; 0 makes the concept mean nothing. The present release
    counts from the concept's own prediction, so that its default of 2 is 1 here."""


def rows(config: Esd, step: Step) -> Rows:
    """Pictures of the concept, led away from the concept alone."""
    data = step.data
    if data.forget_alone is None:
        raise ValueError("data.safetensors is of an older version and has no prompt for the concept alone: delete it.")
    own = step.randint(len(data.forget_latents), step.forget_batch_size)
    noisy_latents, timesteps, noise = step.noisy(data.forget_latents[own])
    asked = data.forget_alone[own] if config.asked == "concept" else data.forget_prompt[own]
    every = torch.ones(len(own), dtype=torch.bool)
    return Rows(
        noisy_latents=noisy_latents,
        timesteps=timesteps,
        noise=step.family.target(data.forget_latents[own], noise, timesteps),
        asked=asked,
        meant=asked,
        distilled=every,
        forget=every,
        num_forget=len(own),
        num_retain=0,
        avoided=data.forget_alone[own],
    )


def targets(config: Esd, step: Step, part: Rows) -> Tensor:
    """The guided prediction away from the concept; of a sentence, with what its other words change."""
    assert part.avoided is not None
    empty, concept = step.ask(part, step.data.empty_prompt.expand(len(part))), step.ask(part, part.avoided)
    target = away(empty, concept, config.negative_guidance)
    return target if config.asked == "concept" else target + step.ask(part, part.asked) - concept


def away(empty: Tensor, concept: Tensor, eta: float) -> Tensor:
    """The empty prompt's prediction, moved away from the concept's by eta times their difference."""
    return empty - eta * (concept - empty)


def loss(config: Esd, step: Step, part: Rows, target: Tensor) -> tuple[Tensor, Figures]:
    """A part's share of the squared distance from the target."""
    forget_loss, _, figures = two_losses(step, part, target)
    return forget_loss, figures


def scope(config: Esd, family: Family) -> set[str]:
    """Cross-attentions, everything else, or all."""
    every = {name for name, _ in family.denoiser.named_parameters()}
    cross = {f"{name}.{part}" for name, module in family.cross_attention().items() for part, _ in module.named_parameters()}
    return {"x": cross, "u": every - cross, "full": every}[config.weights]


METHOD = Method(
    line="the concept's prompt predicts away from the concept (negative guidance)",
    paper="Gandikota et al., ICCV 2023, arXiv 2303.07345",
    rows=rows,
    loss=loss,
    targets=targets,
    scope=scope,
)
