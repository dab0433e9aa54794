"""MUNBa: the Nash bargain of the forget and the retain gradient (Wu & Harandi, ICCV 2025, arXiv 2411.15537).

Forget and retain losses as SalUn's. The bargain maximises log <g_f, d> + log <g_r, d> over steps d of one length; its solution
d = a_f g_f + a_r g_r solves G G^T a = 1 / a. For two gradients in closed form a_i = sqrt((1 - cos) / (sin^2 + xi)) / ||g_i||:
both gain alike, however long they are.

In the release the targets are those of the model being trained, here of the original; it adds an L1 penalty on the trained
weights, not here, and trains the cross-attentions (classes) or all but them (nudity), here any weights.
"""

import math
from typing import Literal

from pydantic import Field

from erase.methods.base import Gradients, Method, Remapping, Retain, Rows, Step, dot, losses_apart, picture_rows


class Munba(Remapping):
    """Machine unlearning by Nash bargaining (Wu & Harandi, ICCV 2025)."""

    name: Literal["munba"] = "munba"
    """The method's name."""
    retain: Retain = "denoise"
    """`denoise`: the denoising loss on retain pictures, as in the paper; `distill`: keep the original's predictions there."""
    xi: float = Field(1e-8, ge=0)
    """Keeps the closed form finite where the two gradients lie on one line."""


def rows(config: Munba, step: Step) -> Rows:
    """Forget pictures that mean what the concept becomes, and retain pictures."""
    return picture_rows(step, relabelled=True, retain=config.retain)


def combine(config: Munba, forget: Gradients, retain: Gradients) -> Gradients:
    """The bargain."""
    return nash(forget, retain, config.xi)


def nash(one: Gradients, other: Gradients, xi: float) -> Gradients:
    """The Nash bargaining solution of two gradients; of the one alone where the other is zero."""
    lengths = math.sqrt(dot(one, one)), math.sqrt(dot(other, other))
    if not all(lengths):
        return {name: one[name] + other[name] for name in one}
    cosine = dot(one, other) / (lengths[0] * lengths[1])
    size = math.sqrt((1 - cosine) / (1 - cosine**2 + xi)) if cosine < 1 else math.sqrt(0.5)
    return {name: (size / lengths[0]) * one[name] + (size / lengths[1]) * other[name] for name in one}


METHOD = Method(
    line="forget and retain gradient strike the Nash bargain",
    paper="Wu & Harandi, ICCV 2025, arXiv 2411.15537",
    rows=rows,
    loss=losses_apart,
    combine=combine,
)
