"""Scissorhands: the weights that the concept hangs on drawn anew, then a repair (Wu & Harandi, ECCV 2024, arXiv 2401.06187).

Trim: connection sensitivity |theta * dL(forget) / dtheta|; of the top share of the matrices' weights, those that lie in some
layers are drawn anew. The release's script for classes takes a thousandth of all weights, and of these those in two
self-attentions of the decoder, named by SD 1.4's block numbers: here it is all self-attentions. (Its code for classifiers draws
all of them anew; UnlearnCanvas' copy, of a hundredth, those in the cross-attentions.)

Repair: g, the gradient of r - lambda f (r and f the denoising losses of what is kept and of the forget set), without its part
along grad f where a step would learn the concept again: the nearest v to g with <v, grad f> <= 0. So v = grad r - a grad f with
a = max(lambda, <grad r, grad f> / ||grad f||^2). (The release's scripts for Stable Diffusion do not project.)
"""

import math
from typing import Literal

import torch
from pydantic import Field

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
    two_losses,
)
from erase.saliency import top_mask
from erase.salient import SalientWeights


class Scissorhands(Config):
    """Scissorhands (Wu & Harandi, ECCV 2024)."""

    name: Literal["scissorhands"] = "scissorhands"
    """The method's name."""
    trimmed: float = Field(0.001, gt=0, le=1)
    """Share of the salient matrix weights, the most sensitive ones, of which those in the layers `drawn_anew` are."""
    drawn_anew: Literal["self_attention", "cross_attention", "all"] = "self_attention"
    """Where trimmed connections are drawn anew: in the self-attentions, as in the release; in the cross-attentions; or in all
    layers, as in its code for classifiers, which destroys far more."""
    ascent: float = Field(0.1, ge=0)
    """lambda: how much of the forget set's own gradient is climbed while the rest is repaired."""
    rounds: int = Field(4, ge=1)
    """Batches over which the connection sensitivity is summed."""
    retain: Retain = "denoise"
    """`denoise`: the denoising loss on retain pictures; `distill`: keep the original's predictions there."""


def start(config: Scissorhands, step: Step, salient: SalientWeights) -> Figures:
    """Draw the most sensitive weights anew, as an untrained layer has them: uniform in +-1 / sqrt(inputs).

    Biases and the norms' weights are no connections: they stay.
    """
    layers = {"self_attention": step.family.self_attention, "cross_attention": step.family.cross_attention}
    within = tuple(f"{name}." for name in layers[config.drawn_anew]()) if config.drawn_anew in layers else ("",)
    for _ in range(config.rounds):
        part = picture_rows(step, relabelled=False, retain="denoise", num_retain=0)
        two_losses(step, part, part.noise)[0].backward()
    shapes = {name: p.shape for name, p in step.family.denoiser.named_parameters() if p.dim() > 1}
    scores = {n: (salient.master(n) * g.float()).abs() for n, g in salient.gradients.items() if n in shapes}
    salient.gradients.clear()
    trimmed = 0
    for name, chosen in top_mask(scores, config.trimmed).items():
        if not name.startswith(within):
            continue
        bound = 1 / math.sqrt(shapes[name][1:].numel())
        drawn = (2 * torch.rand(chosen.shape, generator=step.generator) - 1) * bound
        salient.set_master(name, torch.where(chosen, drawn.to(chosen.device), salient.master(name)))
        trimmed += int(chosen.sum())
    return {"loss": 0.0, "trimmed": float(trimmed)}


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
