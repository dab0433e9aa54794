"""EraseDiff: keep, subject to forgetting (Wu et al., CVPR 2025, arXiv 2401.05779).

min over theta of the retain loss r, such that theta minimises the forget loss f = mean ||y - eps_u(x_t | c)||^2, whose target y
leads away from the true denoising. As a constraint: f(theta) - min f <= 0. The inner minimum is a constant of theta, so the
first-order step needs no inner loop: along grad r + lambda grad f with the smallest lambda >= 0 for which f falls by at least
eta ||grad f||^2, that is lambda = max(0, eta - <grad r, grad f> / ||grad f||^2).

The release's commands for Stable Diffusion relabel (another prompt's prediction, by the model being trained; here by the
original) and fix lambda at 0.1 or 1. Uniform noise, and a lambda that follows the gradients, are in its DDPM code.
"""

from typing import Literal

from pydantic import Field

from erase.methods.base import Gradients, Method, Remapping, Retain, Rows, Step, dot, losses_apart, picture_rows


class EraseDiff(Remapping):
    """EraseDiff (Wu et al., CVPR 2025)."""

    name: Literal["erasediff"] = "erasediff"
    """The method's name."""
    target: Literal["relabel", "uniform"] = "relabel"
    """y: the original's prediction for what the concept becomes, as the release does for text-to-image; or noise drawn from
    U(0, 1), another distribution than the model knows, by which the pictures are noised too."""
    eta: float = Field(1.0, gt=0)
    """How much the forget loss must fall, in units of its squared gradient."""
    retain: Retain = "denoise"
    """`denoise`: the denoising loss on retain pictures; `distill`: keep the original's predictions there."""


def rows(config: EraseDiff, step: Step) -> Rows:
    """Forget pictures that mean what the concept becomes or are noised uniformly, and retain pictures."""
    uniform = config.target == "uniform"
    return picture_rows(step, relabelled=not uniform, retain=config.retain, uniform=uniform)


def combine(config: EraseDiff, forget: Gradients, retain: Gradients) -> Gradients:
    """The direction nearest to the retain gradient along which the forget loss falls as much as it must."""
    square = dot(forget, forget)
    multiplier = max(0.0, config.eta - dot(retain, forget) / square) if square else 0.0
    return {name: retain[name] + multiplier * forget[name] for name in retain}


METHOD = Method(
    line="keeps, under the constraint that the forget loss falls (bi-level, first order)",
    paper="Wu et al., CVPR 2025, arXiv 2401.05779",
    rows=rows,
    loss=losses_apart,
    combine=combine,
)
