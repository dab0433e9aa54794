"""ESD: the concept's prompt is taught the original's own negative guidance (Gandikota et al., ICCV 2023, arXiv 2303.07345).

mean ||eps_u(x_t | c) - (eps(x_t) - eta (eps(x_t | c) - eps(x_t)))||^2, eps the frozen original. The paper draws x_t by sampling
the student down to t at every step; here x_t are noised pictures that the original drew for c, which costs one pass a step.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from erase.methods.base import Config, Figures, Method, Rows, Step, picture_rows, two_losses
from pipelines.family import Family


class Esd(Config):
    """Erased Stable Diffusion (Gandikota et al., ICCV 2023)."""

    name: Literal["esd"] = "esd"
    """The method's name."""
    weights: Literal["x", "u", "full"] = "x"
    """`x`: the cross-attentions, for what a prompt names; `u`: all but them, so that the concept goes whatever is asked;
    `full`: both."""
    negative_guidance: float = Field(1.0, ge=0)
    """eta: how far beyond the empty prompt's prediction the target lies; 0 makes the concept mean nothing."""


def rows(config: Esd, step: Step) -> Rows:
    """Pictures of the concept, under its prompt."""
    return picture_rows(step, relabelled=True, retain="distill", num_retain=0)


def targets(config: Esd, step: Step, part: Rows) -> Tensor:
    """The guided prediction away from the concept."""
    empty = step.ask(part, step.data.empty_prompt.expand(len(part)))
    return away(empty, step.ask(part, part.asked), config.negative_guidance)


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
