"""Gradient ascent on the forget set (Thudi et al., EuroS&P 2022, arXiv 2109.13398), with a retain loss to hold it.

Forget: -mean ||eps - eps_u(x_t | c)||^2, which has no lower end: a few small steps forget, many destroy the model. Retain: the
denoising loss on other pictures, or the original's predictions, times alpha. Thudi et al. have no such term (alpha 0); it is
from SalUn's release, whose gradient ascent has alpha 0.1.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from erase.methods.base import Config, Figures, Method, Retain, Rows, Step, picture_rows, two_losses


class GradientAscent(Config):
    """Gradient ascent (Thudi et al., EuroS&P 2022)."""

    name: Literal["gradient_ascent"] = "gradient_ascent"
    """The method's name."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the retain loss; 0 is the plain method."""
    retain: Retain = "denoise"
    """`denoise`: the denoising loss on retain pictures; `distill`: keep the original's predictions there."""


def rows(config: GradientAscent, step: Step) -> Rows:
    """Forget and retain pictures, each under its own prompt."""
    return picture_rows(step, relabelled=False, retain=config.retain)


def loss(config: GradientAscent, step: Step, part: Rows, target: Tensor) -> tuple[Tensor, Figures]:
    """A part's share of alpha * retain - forget."""
    forget_loss, retain_loss, figures = two_losses(step, part, target)
    return config.alpha * retain_loss - forget_loss, figures


METHOD = Method(
    line="the denoising loss on the concept's pictures is raised",
    paper="Thudi et al., EuroS&P 2022, arXiv 2109.13398",
    rows=rows,
    loss=loss,
    falls=False,
)
