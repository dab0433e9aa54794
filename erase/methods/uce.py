"""UCE: the cross-attentions' keys and values edited in closed form (Gandikota et al., WACV 2024, arXiv 2308.14761, eq. 7).

For every such matrix W, min over W' of e sum ||W' c - W c*||^2 + p sum ||W' k - W k||^2 + l ||W' - W||^2, over the token
embeddings c of the concept's prompts (c* at the same place of the anchor's prompt) and k of the prompts to keep. The minimum is
W M with one M for all of them. What the pooled embedding of SDXL says is not edited.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from erase.methods.base import Config, Figures, Method, Step, keys_and_values
from erase.precision import exact
from erase.salient import SalientWeights
from pipelines.family import Family


class Uce(Config):
    """Unified concept editing (Gandikota et al., WACV 2024)."""

    name: Literal["uce"] = "uce"
    """The method's name."""
    anchor: str | tuple[str, ...] = "nearest"
    """What the concept becomes: a name, `nearest` (its first relative), `next` (the next in the list), or `none` (the empty
    prompt); for several concepts a list, one each in their order."""
    erase_weight: float = Field(1.0, gt=0)
    """e: weight of the concept's tokens."""
    preserve_weight: float = Field(1.0, ge=0)
    """p: weight of the tokens of the prompts to keep."""
    ridge: float = Field(0.5, gt=0)
    """l: weight of staying with the original matrix; near 0 the tokens are met exactly where they do not contradict."""


def start(config: Uce, step: Step, salient: SalientWeights) -> Figures:
    """Write W M into the salient weights: with a mask, what is outside it stays as it was."""
    data, table = step.data, step.data.table["prompt_embeds"].double()
    pairs = torch.stack([data.forget_prompt, data.forget_relabel[:, 0]], 1).unique(dim=0)
    kept = torch.cat([data.retain_prompt, data.empty_prompt[None]]).unique()
    edited, anchors = table[pairs[:, 0]].flatten(0, 1), table[pairs[:, 1]].flatten(0, 1)
    matrix = edit(edited, anchors, table[kept].flatten(0, 1), config)
    weights = dict(step.family.denoiser.named_parameters())
    change = 0.0
    for name in salient.values:
        weight = exact(weights[name].detach())
        edited_weight = (weight @ matrix.to(weight.device)).float().to(weights[name].device)
        values = edited_weight.flatten()[salient.index(name)]
        change = max(change, float((values - salient.master(name)).abs().max()))
        salient.set_master(name, values)
    return {"loss": 0.0, "prompts_edited": float(len(pairs)), "prompts_kept": float(len(kept)), "largest_change": change}


def edit(concept: Tensor, anchor: Tensor, kept: Tensor, config: Uce) -> Tensor:
    """The matrix M (D, D) of float64 token embeddings (N, D), (N, D) and (K, D)."""
    keep = config.preserve_weight * kept.T @ kept + config.ridge * torch.eye(kept.shape[1], dtype=kept.dtype)
    normal = config.erase_weight * concept.T @ concept + keep
    wanted = config.erase_weight * anchor.T @ concept + keep
    return torch.linalg.solve(normal, wanted.T).T


def scope(config: Uce, family: Family) -> set[str]:
    """Keys and values of the cross-attentions."""
    return keys_and_values(family)


METHOD = Method(
    line="keys and values of the cross-attentions edited in closed form, no training",
    paper="Gandikota et al., WACV 2024, arXiv 2308.14761",
    rows=None,
    loss=None,
    start=start,
    scope=scope,
)
