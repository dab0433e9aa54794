"""Forget-Me-Not: attention resteering, the concept's words are no longer looked at (Zhang et al., 2023, arXiv 2303.17591).

The squared attention probability on the concept's tokens and on those that end the prompt, in pictures of the concept under its
prompt: summed over the tokens, the mean over all heads and places of all cross-attentions together, so that a layer weighs as
its number of places. (The release takes the root of the sum, which scales a batch's gradient and nothing else.) Nothing holds
the rest but a small number of steps, as in the paper. The release first learns a word for the concept; here its name is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from erase.methods.base import Config, Figures, Method, Rows, Step, picture_rows
from pipelines.family import Family


class ForgetMeNot(Config):
    """Forget-Me-Not (Zhang et al., 2023)."""

    name: Literal["forget_me_not"] = "forget_me_not"
    """The method's name."""
    weights: Literal["full", "cross_attention"] = "full"
    """`full`: all weights, as in the release; `cross_attention`: the cross-attentions alone."""
    end_tokens: bool = True
    """Whether the tokens that end and fill up the prompt count as well, as in the release (use_pooler): CLIP reads from left to
    right, so they have the whole sentence in them, and the concept is looked up there too."""


class Recorder:
    """An attention processor that computes what the module would and keeps the probabilities (B * heads, places, tokens)."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The module's output (B, places, width)."""
        query, key, value = (
            attn.head_to_batch_dim(project(states))
            for project, states in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        self.maps.append(attn.get_attention_scores(query, key, attention_mask))
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(torch.bmm(self.maps[-1], value))))


@contextmanager
def recorded(family: Family) -> Iterator[list[Tensor]]:
    """The attention maps of the block's predictions, one per cross-attention."""
    recorder = Recorder()
    modules: list[Any] = list(family.cross_attention().values())
    before = [module.processor for module in modules]
    try:
        for module in modules:
            module.set_processor(recorder)
        yield recorder.maps
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(processor)


def rows(config: ForgetMeNot, step: Step) -> Rows:
    """Pictures of the concept, under its prompt."""
    return picture_rows(step, relabelled=False, retain="denoise", num_retain=0)


def loss(config: ForgetMeNot, step: Step, part: Rows, target: Tensor) -> tuple[Tensor, Figures]:
    """A part's share of the attention that the concept's words get."""
    if getattr(step.family.denoiser, "is_gradient_checkpointing", False):
        raise ValueError("forget_me_not reads attention maps, which train.gradient_checkpointing throws away: leave that out.")
    tokens, ends = step.data.concept_tokens, step.data.end_tokens
    if tokens is None or ends is None:
        raise ValueError(
            "data.safetensors is of an older version and does not say where words and ends of prompts are: delete it."
        )
    if config.end_tokens:
        tokens = tokens | ends
    with recorded(step.family) as maps:
        step.family.predict(part.noisy_latents, part.timesteps, step.data.conditioning(part.asked))
    share = attention_on(maps, tokens[part.asked])
    forget_loss = share.sum() / part.num_forget
    return forget_loss, {"forget_loss": forget_loss.item()}


def attention_on(maps: list[Tensor], tokens: Tensor) -> Tensor:
    """Each row's (N,) squared probabilities on its chosen tokens (N, L), summed, mean over the heads and places of all maps."""
    squares = [one.float().unflatten(0, (len(tokens), -1)).square().flatten(1, 2) for one in maps]  # (N, heads * places, L)
    num = sum(layer.shape[1] for layer in squares)
    return torch.stack([(layer.sum(1) * tokens.to(layer.device)).sum(1) for layer in squares]).sum(0) / num


def scope(config: ForgetMeNot, family: Family) -> set[str]:
    """All weights, or the cross-attentions."""
    every = {name for name, _ in family.denoiser.named_parameters()}
    cross = {f"{name}.{part}" for name, module in family.cross_attention().items() for part, _ in module.named_parameters()}
    return {"cross_attention": cross, "full": every}[config.weights]


METHOD = Method(
    line="attention turns away from the concept's words and the prompt's end",
    paper="Zhang et al., 2023, arXiv 2303.17591",
    rows=rows,
    loss=loss,
    falls=False,
    scope=scope,
)
