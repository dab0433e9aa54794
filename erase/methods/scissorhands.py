"""Scissorhands: the weights that the concept hangs on drawn anew, then a repair (Wu & Harandi, ECCV 2024, arXiv 2401.06187).

Trim: connection sensitivity |theta| * sum over batches of |dL(forget) / dtheta|; of the top share of the salient weights (of
all, without a mask), those that lie in some layers are drawn anew. The release's script for classes takes a thousandth, and of
these those in two self-attentions of the decoder, named by SD 1.4's block numbers: here it is all self-attentions. It measures
on the guidance-mixed prediction (`guidance_scale`), its scripts for nudity on the prediction alone. (Its code for classifiers
draws the last blocks anew; UnlearnCanvas' copy, of a hundredth, those in the cross-attentions.)

Repair: g, the gradient of r - lambda f (r and f the denoising losses of what is kept and of the forget set), without its part
along grad f where a step would learn the concept again: the nearest v to g with <v, grad f> <= 0. So v = grad r - a grad f with
a = max(lambda, <grad r, grad f> / ||grad f||^2). (The release's scripts for Stable Diffusion do not project.)
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from erase.guidance import guided
from erase.methods.base import (
    Config,
    Figures,
    Gradients,
    Method,
    Retain,
    Rows,
    Step,
    dot,
    losses_apart,
    picture_rows,
)
from erase.precision import loss_scale
from erase.saliency import top_mask
from erase.salient import SalientWeights


class Scissorhands(Config):
    """Scissorhands (Wu & Harandi, ECCV 2024)."""

    name: Literal["scissorhands"] = "scissorhands"
    """The method's name."""
    trimmed: float = Field(0.001, gt=0, le=1)
    """Share of the salient weights, the most sensitive ones, of which those in the layers `drawn_anew` are."""
    drawn_anew: Literal["self_attention", "cross_attention", "all"] = "self_attention"
    """Where trimmed connections are drawn anew: in the self-attentions (the release: in two of them); in the cross-attentions;
    or in all layers, which destroys far more."""
    draw: Literal["normal", "uniform"] = "normal"
    """What they are drawn from: `normal`, with a standard deviation of 0.02, as in the release's script for classes; `uniform`
    in +-1 / sqrt(inputs), as in an untrained layer and in its code for classifiers. Biases become zero in both."""
    guidance_scale: float = Field(1.0, gt=0)
    """Guidance of the prediction whose loss the sensitivity is of: 1 is the denoising loss, as in the paper and the release's
    scripts for nudity; its script for classes has 8.5."""
    ascent: float = Field(0.1, ge=0)
    """lambda: how much of the forget set's own gradient is climbed while the rest is repaired."""
    rounds: int = Field(4, ge=1)
    """Batches over which the absolute gradients are summed."""
    retain: Retain = "denoise"
    """`denoise`: the denoising loss on retain pictures; `distill`: keep the original's predictions there."""


STD = 0.02  # of the normal draw


def start(config: Scissorhands, step: Step, salient: SalientWeights) -> Figures:
    """Draw the most sensitive weights of the layers anew; their biases become zero, the norms' weights stay."""
    layers = {"self_attention": step.family.self_attention, "cross_attention": step.family.cross_attention}
    within = tuple(f"{name}." for name in layers[config.drawn_anew]()) if config.drawn_anew in layers else ("",)
    shapes = {name: p.shape for name, p in step.family.denoiser.named_parameters()}
    trimmed = 0
    for name, chosen in top_mask(sensitivity(config, step, salient), config.trimmed).items():
        matrix = shapes.get(f"{name.removesuffix('.bias')}.weight", shapes[name])
        if not name.startswith(within) or len(matrix) < 2:
            continue
        drawn = torch.zeros(chosen.shape) if name.endswith(".bias") else _drawn(config, step, len(chosen), matrix)
        salient.set_master(name, torch.where(chosen, drawn.to(chosen.device), salient.master(name)))
        trimmed += int(chosen.sum())
    return {"loss": 0.0, "trimmed": float(trimmed)}


def sensitivity(config: Scissorhands, step: Step, salient: SalientWeights) -> Gradients:
    """|weight| times the sum over forget batches of the absolute gradients, each row in a pass of its own to save memory."""
    scale, sums = loss_scale(step.family.denoiser), dict[str, Tensor]()
    for _ in range(config.rounds):
        part = picture_rows(step, relabelled=False, retain="denoise", num_retain=0)
        for row in part.split(len(part)):
            prediction = guided(step.family, step.data, row.noisy_latents, row.timesteps, row.asked, config.guidance_scale)
            (scale * (prediction - row.noise.to(prediction)).square().mean()).backward()
        for name, gradient in salient.gradients.items():
            sums[name] = gradient.float().abs() + sums.get(name, 0.0)
        salient.gradients.clear()
    return {name: salient.master(name).abs() * total for name, total in sums.items()}


def _drawn(config: Scissorhands, step: Step, num: int, matrix: torch.Size) -> Tensor:
    """New values (num,) of a matrix or convolution of this shape."""
    if config.draw == "normal":
        return STD * torch.randn(num, generator=step.generator)
    return (2 * torch.rand(num, generator=step.generator) - 1) / math.sqrt(matrix[1:].numel())


def rows(config: Scissorhands, step: Step) -> Rows:
    """Forget and retain pictures, each under its own prompt."""
    return picture_rows(step, relabelled=False, retain=config.retain)


def combine(config: Scissorhands, forget: Gradients, retain: Gradients) -> Gradients:
    """The repair's direction, projected so that a step along it does not lower the forget set's denoising loss."""
    square = dot(forget, forget)
    along = max(config.ascent, dot(retain, forget) / square) if square else 0.0
    return {name: retain[name] - along * forget[name] for name in retain}


METHOD = Method(
    line="the most sensitive connections drawn anew, then repaired by projected gradients",
    paper="Wu & Harandi, ECCV 2024, arXiv 2401.06187",
    rows=rows,
    loss=losses_apart,
    falls=False,
    combine=combine,
    start=start,
)
